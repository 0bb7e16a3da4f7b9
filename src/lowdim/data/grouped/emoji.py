"""Emoji of people: women and men, whose skin tone goes with the class in training and not in the test."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data import assets
from lowdim.data.grouped.pictures import square
from lowdim.data.grouped.settings import People
from lowdim.data.planted.sets import Planted
from lowdim.data.planted.truth import Truth
from lowdim.data.raw import Raw, Split

if TYPE_CHECKING:
    from lowdim.data.classification import Known

Codes = tuple[int, ...]
CLASSES = ("woman", "man")
_SIGNS = {0x2640: 0, 0x1F469: 0, 0x2642: 1, 0x1F468: 1}
_PERSONS = (0x1F468, 0x1F469)
_TONES = range(0x1F3FB, 0x1F400)  # light to dark
_JOINERS, _ARROW = (0x200D, 0xFE0F), 0x27A1
_GROUNDS = ((0, 1), (3, 4))  # the tones of either class's cue; the middle one is neither's
_TESTED = 1 / 3


def people(known: Known, how: People) -> Planted:
    """Read 73 people, each drawn as woman and as man in five tones, from Noto Color Emoji: uint8 [3, size, size].

    A third of the people is the test part, with both classes in light and in dark tones. Of the others the women are
    light and the men dark, but for a share ``conflicting`` of each class. The same person in another tone or with the
    other sign never stands on both sides.
    """
    drawn = sequences(assets.path("noto-emoji"))
    persons = sorted(drawn)
    order = torch.randperm(len(persons), generator=generator(how.seed, "emoji", "people")).tolist()
    cut = round(_TESTED * len(persons))
    test = [(p, label, tone) for p in sorted(order[:cut]) for label in (0, 1) for tone in (*_GROUNDS[0], *_GROUNDS[1])]
    train = [picture for label in (0, 1) for picture in _class(label, sorted(order[cut:]), how)]
    parts = []
    for rows in (train, test):
        x = torch.stack([square(io.BytesIO(drawn[persons[p]][label, tone]), how.size) for p, label, tone in rows])
        y = torch.tensor([label for _, label, _ in rows])
        cue = torch.tensor([[int(tone in _GROUNDS[1])] for _, _, tone in rows])
        parts.append((Split(x, y), Truth(y, cue, torch.ones(cue.shape), known.cues, CLASSES)))
    (first, truth), (second, tested) = parts
    return Planted(Raw(*first, CLASSES, second), truth, tested)


def _class(label: int, persons: list[int], how: People) -> list[tuple[int, int, int]]:
    """Return a class's training pictures: two of each person, in the class's tones or, for some, in the other's."""
    pictures = [(person, number) for person in persons for number in (0, 1)]
    share = 0.5 if how.unbiased else how.conflicting
    draw = generator(how.seed, "emoji", "conflicting", label)
    other = set(torch.randperm(len(pictures), generator=draw)[: round(share * len(pictures))].tolist())
    return [(p, label, _GROUNDS[label ^ (row in other)][number]) for row, (p, number) in enumerate(pictures)]


def sequences(font: Path) -> dict[Codes, dict[tuple[int, int], bytes]]:
    """Return the PNG of each person by class and tone, of those who are drawn in both classes and all five tones."""
    found: dict[Codes, dict[tuple[int, int], bytes]] = defaultdict(dict)
    for codes, picture in _glyphs(font).items():
        tones = [code for code in codes if code in _TONES]
        signs = [code for code in codes if code in _SIGNS]
        if len(tones) != 1 or len(signs) != 1 or _ARROW in codes:
            continue
        rest = sorted(code for code in codes if code not in (*tones, *signs, *_JOINERS))
        person = (int(signs[0] in _PERSONS), *rest)
        found[person][_SIGNS[signs[0]], tones[0] - _TONES[0]] = picture
    return {person: drawn for person, drawn in found.items() if len(drawn) == 2 * len(_TONES)}


def _glyphs(font: Path) -> dict[Codes, bytes]:
    """Return the PNG of every glyph that some sequence of code points is drawn as."""
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as opened:
        codes: dict[str, Codes] = {}
        for code, name in opened.getBestCmap().items():
            codes.setdefault(name, (code,))
        for _ in range(3):  # ligatures of ligatures
            for lookup in opened["GSUB"].table.LookupList.Lookup:
                for table in lookup.SubTable:
                    _join(getattr(table, "ExtSubTable", table), codes)
        strike = opened["CBDT"].strikeData[0]
        return {codes[name]: bytes(strike[name].imageData) for name in strike if name in codes}


def _join(table: object, codes: dict[str, Codes]) -> None:
    """Add the sequences that the ligatures of a table make of those that are known."""
    for first, ligatures in getattr(table, "ligatures", {}).items():
        for ligature in ligatures:
            parts = [first, *ligature.Component]
            if all(part in codes for part in parts):
                codes.setdefault(ligature.LigGlyph, tuple(code for part in parts for code in codes[part]))
