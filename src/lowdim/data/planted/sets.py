"""The planted sets, and what was planted in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data import topics, vision
from lowdim.data.planted import cues
from lowdim.data.planted.settings import Planting
from lowdim.data.planted.truth import Truth, draw
from lowdim.data.raw import Raw, Split, Texts

if TYPE_CHECKING:
    from lowdim.data.classification import Known

_TEST = 0.2  # of a base without a test part of its authors
_BASES = {
    "fashion-mnist": vision.fashion_mnist,
    "digits": vision.mnist_5k,
    "wiki-topics": topics.wiki_topics,
    "20-newsgroups": topics.newsgroups,
}
_LAID = {"colour": cues.coloured, "texture": cues.textured}


@dataclass(frozen=True, eq=False)
class Planted:
    """Samples with cues, and, apart from them, the truth about both parts."""

    raw: Raw
    train: Truth
    test: Truth


def images(known: Known, how: Planting) -> Planted:
    """Read pictures and lay colours or textures over them: fp32 [samples, channels, 28, 28] in [0, 255]."""
    train, test, classes = _parts(known, how)
    truths = _truths(known, how, train[1], test[1], classes)
    made = []
    for (x, y), truth in zip((train, test), truths, strict=True):
        for place, name in enumerate(known.cues):
            x = _LAID[name](x, truth.cue[:, place], truth.strength[:, place], len(classes))
        made.append(Split(x, y))
    return Planted(Raw(*made[0], classes, made[1]), *truths)


def texts(known: Known, how: Planting) -> Planted:
    """Read texts and put a word into each."""
    train, test, classes = _parts(known, how)
    truths = _truths(known, how, train[1], test[1], classes)
    made = [
        Texts(cues.worded(x, truth.cue[:, 0], truth.strength[:, 0], how.seed), y)
        for (x, y), truth in zip((train, test), truths, strict=True)
    ]
    return Planted(Raw(*made[0], classes, made[1]), *truths)


def _parts(known: Known, how: Planting) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the base's training and test part, and the classes; where nobody set a test part aside, a fifth is."""
    base = _BASES[known.base]()
    count = len(base.y)
    if base.test is not None:
        kept = slice(how.samples)
        return (base.x[kept], base.y[kept]), base.test, base.classes
    order = torch.randperm(count, generator=generator(0, "data", "test", known.base)).tolist()
    held = round(_TEST * count)
    rest = sorted(order[held:])[: how.samples]
    return _rows(base, rest), _rows(base, sorted(order[:held])), base.classes


def _rows(raw: Raw, rows: list[int]) -> tuple[Any, torch.Tensor]:
    x = raw.x[rows] if isinstance(raw.x, torch.Tensor) else [raw.x[row] for row in rows]
    return x, raw.y[rows]


def _truths(
    known: Known, how: Planting, train: torch.Tensor, test: torch.Tensor, classes: tuple[str, ...]
) -> tuple[Truth, Truth]:
    return (
        draw(train, known.cues, classes, how, "train", not how.unbiased),
        draw(test, known.cues, classes, how, "test", False),
    )
