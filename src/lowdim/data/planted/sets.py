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
    "boolq": topics.boolq,
}
_LAID: dict[str, Any] = {"colour": cues.coloured, "texture": cues.textured, "word": cues.worded}


@dataclass(frozen=True, eq=False)
class Planted:
    """Samples with cues, and, apart from them, the truth about both parts."""

    raw: Raw
    train: Truth
    test: Truth


def planted(known: Known, how: Planting) -> Planted:
    """Read pictures or texts and lay cues over them: fp32 [samples, channels, 28, 28] in [0, 255], or words."""
    *parts, classes = _parts(known, how)
    made, truths = list[Any](), list[Truth]()
    for (x, y), part in zip(parts, ("train", "test"), strict=True):
        truth = draw(y, known.cues, classes, how, part, part == "train" and not how.unbiased)
        for place, name in enumerate(known.cues):
            more = how.seed if name == "word" else len(classes)
            x = _LAID[name](x, truth.cue[:, place], truth.strength[:, place], more)
        made.append(Split(x, y) if known.kind == "image" else Texts(x, y))
        truths.append(truth)
    return Planted(Raw(made[0].x, made[0].y, classes, made[1]), *truths)


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
