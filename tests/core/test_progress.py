from __future__ import annotations

from lowdim.core.progress import Progress, Silent


def test_silent_progress_prints_nothing_and_lets_errors_through(capfd) -> None:
    progress: Progress = Silent()
    try:
        with progress.stage("prune", 3, "blocks") as stage:
            stage.advance()
            stage.advance(2)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the error was swallowed")
    assert capfd.readouterr() == ("", "")
