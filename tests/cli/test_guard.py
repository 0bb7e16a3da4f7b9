from __future__ import annotations

import ast
import errno
import re
from pathlib import Path
from typing import Annotated

import pytest
import typer

import lowdim
from lowdim.cli import app
from lowdim.cli.guard import describe, flags_of, guarded
from lowdim.core.errors import CheckpointError, LowdimError, NumericalError, RecipeError


def run(error: BaseException, debug: bool = False) -> int:
    @guarded(after_interrupt="Try --resume.")
    def command(
        samples: int = 1,
        resume: bool = False,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        debug: bool = False,
    ) -> None:
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


COMMANDS = {command.callback.__name__.replace("_", "-"): command.callback for command in app.registered_commands}
ERRORS: list[Exception] = [
    CheckpointError("unfinished. Resume it, overwrite it, or remove it."),
    CheckpointError("it has code. If you trust it, allow it with trust_remote_code=True."),
    NumericalError("a block produced NaN. Try compute='float32'."),
    LowdimError("the windows are too long; use evaluation.context=128 or less"),
    LowdimError("context=256 is longer than the model's 128 positions; use context=128 or less"),
    LowdimError("that is no number. Use dtype='bf16' there, or device='cpu'."),
    MemoryError("tried 16 GiB"),
    OSError(errno.ENOSPC, "No space left on device", "/out/x"),
    ZeroDivisionError("division by zero"),
]
QUIET = {"train-sparse", "rank", "sweep", "methods", "convert", "report"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHER_PROGRAMS = {
    "--merge",
    "--no-deps",
    "--only-binary",
    "--no-input",
    "--disable-pip-version-check",
    "--help",
    "--version",
}
OTHER_PROGRAMS |= {"--platform", "--python-version", "--implementation", "--abi", "--report", "--measure"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_advised_no_flag_that_it_lacks(name: str) -> None:
    flags = flags_of(COMMANDS[name])
    assert {"--debug"} <= flags
    for error in ERRORS:
        assert set(FLAG.findall(describe(error, flags))) <= flags, error


def test_advice_is_given_where_the_flag_is() -> None:
    said = {name: [describe(error, flags_of(command)) for error in ERRORS] for name, command in COMMANDS.items()}
    assert said["prune"][0].endswith("(--overwrite or --resume)")
    assert said["convert"][0].endswith("(--overwrite)")
    assert all(said[name][1].endswith("(--trust-remote-code)") for name in said if name not in QUIET)
    assert all(said[name][2].endswith("(--compute)") for name in ("evaluate", "inspect"))
    assert said["prune"][2].endswith("(--set compute=...)")
    assert said["prune"][3].endswith("(--set evaluation.context=...)")
    assert said["evaluate"][4].endswith("(--context)")
    assert said["generate"][5].endswith("(--dtype)")


def texts(file: Path) -> list[str]:
    """Return the texts in a file of Python, those that explain it left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    told = {id(n.body[0].value) for n in nodes if n.body and isinstance(n.body[0], ast.Expr)}
    plain = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return [node.value for node in plain if isinstance(node.value, str)]


def test_every_flag_that_a_message_names_exists() -> None:
    home = Path(lowdim.__file__).parent
    everywhere = {flag for command in COMMANDS.values() for flag in flags_of(command)} | OTHER_PROGRAMS
    rooms = {"infer/bench": "bench", "infer/serve": "serve"}
    rooms |= {f"cli/{name.replace('-', '_')}.py": name for name in COMMANDS if name != "sweep"}  # it runs the others
    for file in sorted(home.rglob("*.py")):
        where = file.relative_to(home).as_posix()
        own = next((flags_of(COMMANDS[name]) for room, name in rooms.items() if where.startswith(room)), everywhere)
        allowed = own | OTHER_PROGRAMS
        for text in texts(file):
            assert set(FLAG.findall(text)) <= allowed, f"{where}: {text}"
