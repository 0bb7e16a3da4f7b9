"""Sets of pictures with a corruption laid over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.core.settings import Settings, check, count, share, within
from lowdim.data import vision
from lowdim.data.corrupted import CORRUPTIONS, corrupt
from lowdim.data.raw import Raw, Split

if TYPE_CHECKING:
    from lowdim.data.classification import Known


@dataclass(frozen=True)
class Corruption(Settings):
    """What is done to which pictures.

    Attributes:
        corruption: one of `lowdim.data.corrupted.CORRUPTIONS`.
        severity: from 1 to 5.
        share: of the training pictures that are corrupted, drawn; the others stay clean.
        test: whether the test pictures are "corrupted", all of them, or "clean".
        samples: of the training pictures at most so many, the first; None takes all.
        seed: of what is drawn.

    Raises:
        RecipeError: a value is out of its range.
    """

    corruption: str = "gaussian-noise"
    severity: int = within(3, least=1, most=5, whole=True)
    share: float = share(1.0)
    test: Literal["corrupted", "clean"] = "corrupted"
    samples: int | None = count(None)
    seed: int = count(0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check("corruption", self.corruption, tuple(CORRUPTIONS))


def corrupted(known: Known, how: Corruption) -> Raw:
    """Read pictures, uint8 [1, 28, 28], and corrupt a share of those to train on, and the test pictures if asked."""
    base = vision.fashion_mnist()
    assert isinstance(base.x, torch.Tensor) and isinstance(base.test, Split)
    x, y = base.x[: how.samples], base.y[: how.samples]
    rows = torch.randperm(len(y), generator=generator(how.seed, "corrupted", known.base))[: round(how.share * len(y))]
    rows = rows.sort().values
    x = x.clone()
    x[rows] = corrupt(x[rows], how.corruption, how.severity, seed=how.seed)
    test = base.test.x
    if how.test == "corrupted":
        test = corrupt(test, how.corruption, how.severity, seed=how.seed + 1)
    return Raw(x, y, base.classes, Split(test, base.test.y))
