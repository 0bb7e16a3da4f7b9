from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests import forked

from lowdim.cli import screen


def lowdim(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lowdim", *arguments]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        *(("ascii", words.split()) for words in ("--help", "methods", "prune --help", "prune m o --sparsity 2")),
        ("utf-8", ["methods"]),
        ("latin-1", ["methods"]),
    ],
)
def test_any_encoding_and_a_narrow_terminal(encoding: str, arguments: list[str]) -> None:
    done = lowdim(*arguments, PYTHONIOENCODING=encoding, PYTHONUTF8="0", COLUMNS="30", LC_ALL="C")
    assert done.returncode == (2 if "2" in arguments else 0), done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    (done.stdout + done.stderr).decode(encoding)


def test_a_table_in_a_pipe_is_not_cut() -> None:
    out = lowdim("methods", COLUMNS="40", PYTHONIOENCODING="utf-8").stdout.decode()
    assert "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs" in out


def test_signs_that_an_encoding_lacks_are_spelled() -> None:
    screen.prepare()
    assert "60 × 2 − 1 ≤ …".encode("ascii", "lowdim.spell") == b"60 x 2 - 1 <= ..."
    assert "日本".encode("ascii", "lowdim.spell") == b"??"


def test_only_the_first_rank_shows_results(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    screen.show("the result")
    screen.table(["a"], [["1"]])
    screen.say("an error")
    assert capsys.readouterr() == ("", "[rank 1] an error\n")


def test_an_empty_table_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen.table(["a", "b"], [])
    assert capsys.readouterr().out == ""


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    screen.table(["a"], [["[bold]x[/bold]"], [None]])
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_a_reader_that_leaves_ends_nothing(model: Path, tmp_path: Path) -> None:
    """What is printed after it has gone goes nowhere, and the page behind that is written."""
    for words in (["methods"], ["methods", "--json"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "lowdim", *words]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b""), words
    flags = ["--sparsity", "0.5", "--method", "magnitude", "--set", "evaluation.text=null", "--quiet"]
    program = forked.Program(forked.lowdim, "prune", model, tmp_path / "out", *flags)
    program.stdout.close()
    assert (program.stderr.read(), program.wait()) == ("", 0)
    program.close()
    assert (tmp_path / "out.html").is_file()
