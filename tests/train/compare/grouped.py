"""A data set with a planted cue whose groups are known, small enough to train on in a second."""

from __future__ import annotations

from typing import Any

import torch

from lowdim.data.classification import Dataset, Known, cut
from lowdim.data.raw import Raw
from lowdim.data.select.groups import of_classes
from lowdim.data.select.ranks import Ranks, samples_hash
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.told import Labelled

NAME = Known("digits", "image", "none", "for tests")  # the name is a known one, for recipes


def biased(examples: int = 240, side: int = 6, classes: int = 3, seed: int = 0) -> tuple[Dataset, dict[str, Labelled]]:
    """Noisy pictures of each class, with a bright corner that tells the class of all but every tenth."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, side, side, generator=draw)
    y = torch.arange(examples) % classes
    against = torch.arange(examples) // classes % 10 == 0
    cue = torch.where(against, (y + 1) % classes, y)
    x = 0.5 * centres[y] + torch.randn(examples, 1, side, side, generator=draw)
    x[:, 0, 0, :classes] = 0
    x[torch.arange(examples), 0, 0, cue] = 6
    data = cut(NAME, Raw(x, y, tuple(f"class {i}" for i in range(classes))), validation=0.2, limit=None, seed=0)
    parts = {}
    for part in ("train", "validation", "test"):
        split = getattr(data, part)
        conflicting = split.x[:, 0, 0, :classes].argmax(1) != split.y
        parts[part] = Labelled(of_classes(split.y, conflicting, data.classes), conflicting)
    return data, parts


def ranks(data: Dataset, parts: dict[str, Labelled]) -> Ranks:
    """Ranks that know: conflicting samples come last."""
    rank = torch.where(parts["train"].conflicting, 3, 1 + torch.arange(len(data.train.y)) % 2)
    return Ranks(rank, data.train.y, data.classes, samples_hash(data), "made", {})


def recipe(**changes: Any) -> TrainingRecipe:
    given: dict[str, Any] = {
        "data": "coloured-digits",
        "net": {"name": "mlp", "hidden": [24, 16]},
        "training": {"name": "rigl", "every": 4},
        "sparsity": 0.8,
        "epochs": 3,
        "batch": 32,
        "twins": ["dense"],
        "device": "cpu",
    }
    return TrainingRecipe(**(given | changes))
