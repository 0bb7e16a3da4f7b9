"""Emoji of people, from a font that the test makes: who is paired, which tones conflict, who is tested."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from lowdim.data import assets
from lowdim.data.classification import load
from lowdim.data.grouped import emoji
from lowdim.data.planted.told import truths

PERSONS = [(0, 0x1F3C0 + n) for n in range(9)]


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(stream, "PNG")
    return stream.getvalue()


def glyphs(font: Path) -> dict[tuple[int, ...], bytes]:
    """Nine people in all tones and both signs, one who lacks a tone, one who runs to the right."""
    made = {}
    for _, person in PERSONS:
        for tone in emoji._TONES:
            for sign in (0x2640, 0x2642):
                made[sign, 0x200D, person, tone] = png(40 * (tone - 0x1F3FB) + (sign == 0x2642))
                made[0x27A1, 0x200D, sign, 0x200D, person, tone] = png(255)
    made[0x2640, 0x200D, 0x1F400, 0x1F3FB] = png(0)
    made[0x1F601,] = png(0)
    return made


@pytest.fixture(autouse=True)
def font(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emoji, "_glyphs", glyphs)
    monkeypatch.setattr(assets, "path", lambda name: tmp_path / name)


def test_people_are_drawn_in_both_classes_and_all_tones() -> None:
    found = emoji.sequences(Path("font"))
    assert sorted(found) == PERSONS
    assert all(len(drawn) == 10 for drawn in found.values())


def test_the_tone_goes_with_the_class_in_training_and_not_in_the_test() -> None:
    how = {"conflicting": 0.25, "size": 8}
    data, truth = (
        load("emoji-people", validation=0.1, settings=how),
        truths("emoji-people", validation=0.1, settings=how),
    )
    # six people of either class in two tones, of which a quarter conflicts: 3 of 12; three people in four tones tested
    assert len(data.train.y) + len(data.validation.y) == 24
    assert int(truth.train.conflicting().sum() + truth.validation.conflicting().sum()) == 6
    assert len(data.test.y) == 3 * 2 * 4
    assert truth.test.groups().counts() == {
        "woman, spurious": 6,
        "woman, conflicting": 6,
        "man, spurious": 6,
        "man, conflicting": 6,
    }
    assert torch.equal(truth.train.label, data.train.y)


def test_an_unbiased_twin_has_as_many_of_both() -> None:
    truth = truths("emoji-people", settings={"unbiased": True, "size": 8})
    assert int(truth.train.conflicting().sum() + truth.validation.conflicting().sum()) == 12
