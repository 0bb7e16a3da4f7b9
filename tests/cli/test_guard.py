from __future__ import annotations

import errno

import pytest
import typer

from lowdim.cli.guard import guarded
from lowdim.core.errors import CheckpointError, RecipeError


def run(error: BaseException, debug: bool = False) -> int:
    @guarded(after_interrupt="Try --resume.")
    def command(debug: bool = False) -> None:
        raise error

    with pytest.raises(typer.Exit) as exit_:
        command(debug=debug)
    return exit_.value.exit_code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RecipeError("sparsity must be less"), 2, "Error: sparsity must be less"),
        (CheckpointError("shard 3 is truncated"), 1, "Error: shard 3 is truncated"),
        (CheckpointError("it exists. Overwrite it."), 1, "Overwrite it. (--overwrite)"),
        (
            CheckpointError("unfinished. Resume it, overwrite it, or remove it."),
            1,
            "remove it. (--overwrite or --resume)",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 1, "the disk is full: /out/x"),
        (PermissionError(13, "Permission denied", "/out"), 1, "/out: Permission denied."),
        (MemoryError("tried 16 GiB"), 1, "out of memory (tried 16 GiB). Lower --samples"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero. This is not"),
        (KeyboardInterrupt(), 130, "Interrupted. Try --resume."),
    ],
)
def test_an_error_is_one_paragraph_and_an_exit_code(error, code, said, capsys) -> None:
    assert run(error) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback_too(capsys) -> None:
    assert run(CheckpointError("torn"), debug=True) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.rstrip().endswith("Error: torn")


def test_a_deliberate_exit_passes_through(capsys) -> None:
    assert run(typer.Exit(5)) == 5
    assert capsys.readouterr().err == ""


def test_other_ranks_name_themselves(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "2")
    run(CheckpointError("torn"))
    assert capsys.readouterr().err == "[rank 2] Error: torn\n"
