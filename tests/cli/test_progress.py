from __future__ import annotations

import io

import pytest
from rich.console import Console

from lowdim.cli import progress as module
from lowdim.cli import screen
from lowdim.cli.progress import terminal


def use(progress: module.Progress) -> None:
    with progress.stage("Prune [blocks]", 3, "blocks") as stage:
        for _ in range(3):
            stage.advance()
        with progress.stage("inner", 2) as inner:
            inner.advance(2)


def test_without_a_terminal_a_stage_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    use(terminal())
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "Prune [blocks]: 3 blocks ..."
    assert lines[1] == "inner: 2 ..."
    assert lines[2].startswith("inner: done in ")
    assert lines[3].startswith("Prune [blocks]: done in ")
    assert lines[4:] == []
    assert "\x1b" not in err
    assert "\r" not in err


def test_a_stage_that_fails_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with terminal().stage("Prune", 30, "blocks") as stage:
            stage.advance(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "Prune: stopped at 4 of 30 after" in capsys.readouterr().err


def test_quiet_and_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(terminal(quiet=True))
    monkeypatch.setenv("RANK", "1")
    use(terminal())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bars_fit_any_terminal(width: int, encoding: str) -> None:
    screen.prepare()
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="lowdim.spell", write_through=True)
    bars = module._Terminal(Console(file=file, force_terminal=True, width=width, legacy_windows=False))
    use(bars)
    text = raw.getvalue().decode(encoding)
    assert "Prune" in text
    assert "3/3" in text
    assert ("\u2501" in text) == (encoding == "utf-8" and width > 60)


def test_no_color_has_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    use(module._Terminal(Console(file=file, force_terminal=True, width=100)))
    assert "\x1b[3" not in file.getvalue()


def test_nothing_is_left_running_after_an_error() -> None:
    bars = module._Terminal(Console(file=io.StringIO(), force_terminal=True, width=80))
    with pytest.raises(ZeroDivisionError), bars.stage("a", 1), bars.stage("b", 1):
        raise ZeroDivisionError
    assert bars._open == 0
    assert not bars._bars.live.is_started
    assert bars._bars.task_ids == []
