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
            inner.log("a note on [this]")
    progress.log("the end")


def test_without_a_terminal_a_stage_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    use(terminal())
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "Prune [blocks]: 3 blocks ..."
    assert lines[1] == "inner: 2 ..."
    assert lines[2] == "a note on [this]"
    assert lines[3].startswith("inner: done in ")
    assert lines[4].startswith("Prune [blocks]: done in ")
    assert lines[5:] == ["the end"]
    assert "\x1b" not in err
    assert "\r" not in err


def test_a_long_stage_says_how_far_it_is_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with terminal().stage("Evaluate", 10, "steps") as stage:
        for _ in range(10):
            now += 12
            stage.advance()
    assert capsys.readouterr().err.splitlines() == [
        "Evaluate: 10 steps ...",
        "Evaluate: 3 of 10, about 84 s left",
        "Evaluate: 6 of 10, about 48 s left",
        "Evaluate: 9 of 10, about 12 s left",
        "Evaluate: done in 120.0 s",
    ]


@pytest.mark.parametrize("step", [1.0, 60.0, 600.0])
def test_a_bar_knows_the_time_left_however_long_a_step_takes(step: float) -> None:
    now = 0.0
    console = Console(file=io.StringIO(), force_terminal=True, width=100, get_time=lambda: now)
    bars = module._Terminal(console)
    with bars.stage("Prune", 10, "blocks") as stage:
        for _ in range(3):
            now += step
            stage.advance()
        assert bars._bars.tasks[0].time_remaining == 7 * step


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
    assert "the end" in text
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
