"""``lowdim rank`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowdim.data.select.ranks import Ranks


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of short texts; a word goes with the class, but for a few."""
    path = tmp_path_factory.mktemp("letters") / "letters.jsonl"
    rows = []
    for number in range(200):
        label = number % 2
        cue = 1 - label if number < 10 else label
        word = ("alpha", "omega")[cue]
        rest = ("red green", "blue grey")[label]
        rows.append({"body": f"{word} {word} {rest} {number % 7}", "topic": ("one", "two")[label], "key": f"n{number}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COLUMNS = ("--text", "body", "--label", "topic", "--id", "key")
QUICK = ("--set", "lr=0.003", "--set", "epochs=12", "--quiet")


def test_ranks_and_a_sheet_are_written(run, letters: Path, tmp_path: Path) -> None:
    done = run("rank", letters, *COLUMNS, *QUICK, "--out", tmp_path / "ranks")
    assert done.exit_code == 0, done.output
    assert "sign of a bias" in done.stdout and "Sheet: " in done.stdout
    ranks = Ranks.load(tmp_path / "ranks")
    assert ranks.names[0] == "n0" and ranks.classes == ("one", "two") and ranks.settings["lr"] == 0.003
    conflicting = ranks.rank[:10].double().mean()
    assert float(conflicting) > float(ranks.rank[10:].double().mean())
    assert "<title>letters.jsonl" in (tmp_path / "ranks.html").read_text()
    again = run("rank", letters, *COLUMNS, *QUICK, "--out", tmp_path / "ranks")
    assert again.exit_code != 0 and "exists and is not empty" in again.stderr
    assert run("rank", letters, *COLUMNS, *QUICK, "--out", tmp_path / "ranks", "--overwrite").exit_code == 0
    assert run("report", tmp_path / "ranks", "--html", tmp_path / "other.html").exit_code == 0


def test_all_ranked_at_once_is_said(run, letters: Path) -> None:
    done = run("rank", letters, *COLUMNS, *QUICK, "--set", "p_crit=0")
    assert done.exit_code == 0, done.output
    assert "all 200 samples were ranked in epoch 1" in done.stderr


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--set", "p_krit=0.5"), "p_crit"),
        (("--set", "p_crit"), "--set takes KEY=VALUE"),
        (("--set", "data.settings.conflicting=0.1"), "settings are of built-in sets alone"),
        (("--net", "mpl"), "Did you mean 'mlp'"),
        (("--tune",), "tune trains an encoder"),
        (("--text", "subject"), "there is no column 'subject'"),
    ],
)
def test_what_is_refused(run, letters: Path, tmp_path: Path, flags: tuple[str, ...], match: str) -> None:
    done = run("rank", letters, *COLUMNS, "--out", tmp_path / "ranks", *flags)
    assert done.exit_code != 0 and match in done.stderr
    assert not list(tmp_path.glob("ranks*"))


def test_what_is_not_there(run) -> None:
    done = run("rank", "no-such-thing")
    assert done.exit_code != 0 and "there is no file, folder or built-in set 'no-such-thing'" in done.stderr
