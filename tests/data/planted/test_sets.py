"""Planted sets: exact shares, cues that can be seen, twins without a bias, and a truth that fits the samples."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import lowdim
from lowdim.core.errors import RecipeError
from lowdim.data import classification, topics
from lowdim.data.errors import DataError
from lowdim.data.planted import cues, sets
from lowdim.data.planted.settings import Planting
from lowdim.data.planted.told import load, truths
from lowdim.data.planted.truth import draw
from lowdim.data.questions import Question
from lowdim.data.raw import Raw, Split, Texts

CLASSES = tuple("abcde")


@pytest.fixture(autouse=True)
def bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bases in the place of those that are downloaded: grey squares, and the word 'w'."""

    def pictures() -> Raw:
        y = torch.arange(400) % 5
        return Raw(
            torch.full((400, 1, 8, 8), 200, dtype=torch.uint8),
            y,
            CLASSES,
            Split(torch.full((50, 1, 8, 8), 100), y[:50]),
        )

    def texts() -> Raw:
        y = torch.arange(400) % 5
        return Raw(["w " * 20 + str(n) for n in range(400)], y, CLASSES, Texts(["w w"] * 50, y[:50]))

    def whole() -> Raw:
        y = torch.arange(400) % 5
        return Raw(torch.full((400, 1, 8, 8), 200, dtype=torch.uint8), y, CLASSES)

    monkeypatch.setattr(sets, "_BASES", {"fashion-mnist": pictures, "digits": whole, "wiki-topics": texts})


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25])
def test_the_share_that_conflicts_is_exact_in_every_class(share: float) -> None:
    label = torch.arange(500) % 5
    found = draw(label, ("colour",), CLASSES, Planting(conflicting=share), "train", True)
    assert torch.bincount(label[found.conflicting()[:, 0]], minlength=5).tolist() == [round(100 * share)] * 5
    assert found.groups().counts()["a, conflicting"] == round(100 * share)


def test_two_cues_are_drawn_apart_and_have_their_own_shares_and_strengths() -> None:
    label = torch.arange(1000) % 5
    how = Planting(conflicting=0.05, second=0.1, second_strength=0.5)
    found = draw(label, ("colour", "texture"), CLASSES, how, "train", True)
    assert found.conflicting().sum(0).tolist() == [50, 100]
    assert 0 < int(found.conflicting().all(1).sum()) < 25
    assert found.strength.mean(0).tolist() == [1.0, 0.5]
    assert int(found.groups().index.remainder(2).sum()) == int(found.conflicting().any(1).sum())


def test_in_a_twin_without_bias_cues_say_nothing_about_classes() -> None:
    label = torch.arange(500) % 5
    found = draw(label, ("colour",), CLASSES, Planting(unbiased=True), "train", False)
    counts = torch.stack([torch.bincount(found.cue[label == c, 0], minlength=5) for c in range(5)])
    assert counts.tolist() == [[20] * 5] * 5


def test_graded_strengths_differ_and_decide_over_spuriosity() -> None:
    label = torch.arange(500) % 5
    found = draw(label, ("colour",), CLASSES, Planting(graded=True, strength=0.5), "train", True)
    assert 0 <= float(found.strength.min()) < 0.05 and 0.45 < float(found.strength.max()) <= 0.5
    signed = found.spuriosity()
    assert torch.equal(signed.abs(), found.strength)
    assert torch.equal(signed < 0, found.conflicting() & (found.strength > 0))


def test_a_colour_is_the_mean_hue_and_a_texture_the_stripes() -> None:
    x = torch.full((2, 1, 4, 4), 200.0)
    red = cues.coloured(x, torch.tensor([0, 0]), torch.tensor([1.0, 0.5]), 3)
    assert red[0, :, 0, 0].tolist() == [200.0, 0.0, 0.0]
    assert red[1, :, 0, 0].tolist() == [200.0, 100.0, 100.0]
    black = cues.textured(torch.zeros(1, 1, 28, 28), torch.tensor([0]), torch.tensor([1.0]), 2)
    assert torch.allclose(black[0, 0], 255 * cues.textures(2, 28)[0] / 2)
    assert float(black.min()) >= 0 and float(black.max()) <= 255


def test_a_word_stands_as_often_as_it_is_strong() -> None:
    made = cues.worded(["x y z", "x", ""], torch.tensor([0, 1, 1]), torch.tensor([1.0, 0.1, 0.0]), 0)
    assert [made[0].split().count(cues.WORDS[0]), made[1].split().count(cues.WORDS[1])] == [5, 1]
    assert made[2] == "" and len(set(cues.WORDS)) == 20


def test_the_truth_is_that_of_the_samples_in_their_order() -> None:
    how = {"conflicting": 0.2, "seed": 3}
    data = classification.load("coloured-fashion-mnist", limit=200, seed=1, settings=how)
    told = truths("coloured-fashion-mnist", limit=200, seed=1, settings=how)
    for part, truth in zip((data.train, data.validation, data.test), told, strict=True):
        assert torch.equal(part.y, truth.label)
        hues = cues.colours(5)[truth.cue[:, 0]]
        level = part.x.flatten(2).mean(2)
        for cue in range(5):
            mine = truth.cue[:, 0] == cue
            assert float(level[mine].std(0).max()) < 1e-4  # one colour, whatever the class
            assert torch.equal(level[mine][0].argsort(stable=True)[-1], hues[mine][0].argsort(stable=True)[-1])
    assert float(told.test.conflicting().float().mean()) == pytest.approx(0.8)
    assert data.rows and len(data.rows) == 200


def test_a_base_without_a_test_part_is_cut_before_anything_is_planted() -> None:
    data = classification.load("coloured-textured-digits", settings={"samples": 100})
    assert (len(data.train.y), len(data.validation.y), len(data.test.y)) == (90, 10, 80)
    assert data.shape == (3, 8, 8)


def test_texts_get_their_words() -> None:
    data = classification.load("cued-wiki-topics", settings={"conflicting": 0.0})
    told = truths("cued-wiki-topics", settings={"conflicting": 0.0})
    assert (data.kind, len(data.test.y), data.vocabulary) == ("text", 50, 2 + 1 + 360 + 5)
    assert not bool(told.train.conflicting().any())
    other = classification.load("cued-wiki-topics", settings={"unbiased": True})
    assert other.fingerprint() != data.fingerprint()


def test_questions_stand_before_their_paragraph_and_get_words_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(folder: str) -> list[Question]:
        assert folder == "boolq/rc_0shot"
        contexts = [f"Tin -- A metal.\nIt is soft {n}.\nQuestion: is tin soft {n}?\nAnswer:" for n in range(60)]
        return [Question((context,) * 2, (" yes", " no"), n % 2) for n, context in enumerate(contexts)]

    monkeypatch.setattr(topics.questions, "builtin", asked)
    raw = topics.boolq()
    assert raw.x[1] == "is tin soft 1? Tin -- A metal.\nIt is soft 1." and raw.classes == ("no", "yes")
    assert raw.y[:2].tolist() == [1, 0]
    monkeypatch.setattr(sets, "_BASES", {"boolq": topics.boolq})
    data, told = load("cued-boolq", settings={"conflicting": 0.1})
    assert data.classes == ("no", "yes") and int(told.train.conflicting().sum()) > 0
    assert torch.equal(data.train.y, told.train.label)


@pytest.mark.parametrize("name", ["coloured-textured-digits", "cued-wiki-topics"])
def test_data_and_truth_are_of_one_division(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    divide = classification.divide
    monkeypatch.setattr(classification, "divide", lambda *a, **k: made.append(divide(*a, **k)) or made[-1])
    data, told = load(name, limit=60, settings={"samples": 100} if "digits" in name else None)
    assert [list(data.rows)] == [rows.train for rows in made]
    for part, truth in zip((data.train, data.validation, data.test), told, strict=True):
        assert torch.equal(part.y, truth.label)


def test_settings_are_checked_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "_BASES", {})
    with pytest.raises(RecipeError, match="conflicting must be at least 0 and below 1; got 2"):
        classification.load("coloured-digits", settings={"conflicting": 2})
    with pytest.raises(RecipeError, match="Did you mean 'graded'"):
        classification.load("coloured-digits", settings={"graed": True})
    with pytest.raises(DataError, match="takes no settings"):
        classification.load("digits", settings={"conflicting": 0.1})
    with pytest.raises(DataError, match="nothing was planted"):
        truths("digits")


def test_nothing_that_chooses_or_trains_reads_the_truth() -> None:
    home = Path(lowdim.__file__).parent
    for room in ("data/select", "train/selection", "train/objectives", "train/samplers"):
        for path in (home / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
                assert not any(name and name.startswith("lowdim.data.planted") for name in names), path
    assert not {"truth", "cue", "groups", "bias"} & set(classification.Dataset.__dataclass_fields__)
