"""``lowdim rank`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
        (("--set", "data.settings.conflicting=0.1"), "data.settings would change nothing: the data is a table"),
        (("--size", "32", "--skip-unreadable"), "--size and --skip-unreadable would change nothing"),
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


def test_ranks_of_pictures_of_ones_own_go_into_training(run, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(120):
        (tmp_path / "pets" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        value = draw.integers(0, 60, (8, 8, 3)) + 120 * (number % 2 if number >= 8 else 1 - number % 2)
        picture = Image.fromarray(value.astype(np.uint8))
        picture.save(tmp_path / "pets" / "ab"[number % 2] / f"{number:03}.png")
    how = ("--size", "8", "--seed", "1", "--validation", "0.2")
    done = run("rank", tmp_path / "pets", *how, *QUICK, "--set", "p_crit=0.6", "--out", tmp_path / "ranks")
    assert done.exit_code == 0, done.output
    data = ("--data", tmp_path / "pets", "--set", "data.settings.size=8", "--set", "data.validation=0.2")
    train = ("--objective", "sebra", "--ranks", tmp_path / "ranks", "--set", "net.hidden=[16]", "--epochs", "2")
    small = ("--batch", "16", "--method", "static", "--twins", "none", "--quiet")
    done = run("train-sparse", *data, "--set", "data.seed=1", *train, *small, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert [facts["data"][part] for part in ("train", "validation", "test")] == [77, 19, 24]
    assert 0 <= facts["members"]["sparse"]["test"]["accuracy"] <= 1
    other = run("train-sparse", *data, *train, *small)
    assert other.exit_code != 0 and "the ranks are of other samples" in other.stderr
