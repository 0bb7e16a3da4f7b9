"""What is known of a run's samples beside themselves: their groups, and their ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.data import classification
from lowdim.data.classification import Dataset
from lowdim.data.errors import DataError
from lowdim.data.labelled import own
from lowdim.data.planted import told as planted
from lowdim.data.planted.truth import Truth
from lowdim.data.select.groups import Groups
from lowdim.data.select.ranks import Ranks
from lowdim.train.compare.recipe import Ranking, TrainingRecipe
from lowdim.train.objectives.base import Samples


@dataclass(frozen=True)
class Labelled:
    """Groups of samples by their labels.

    Attributes:
        groups: of each class, by which cues the samples conflict with.
        conflicting: bool [samples], whether a sample conflicts with any cue.
    """

    groups: Groups
    conflicting: Tensor


@dataclass(frozen=True)
class Told:
    """What is known of the samples of a run.

    Attributes:
        train: of the training samples by label, or None; likewise ``validation`` and ``test``.
        ranks: of the training samples, or None.
        ranked: their groups by rank, which take the place of those by label, or None where none are wanted.
    """

    train: Labelled | None = None
    validation: Labelled | None = None
    test: Labelled | None = None
    ranks: Ranks | None = None
    ranked: Labelled | None = None

    def samples(self, data: Dataset, seed: int, wrong: Tensor | None = None) -> Samples:
        """Return what objectives and samplers are told of the training samples."""
        known = self.ranked or self.train
        groups, conflicting = (None, None) if known is None else (known.groups, known.conflicting)
        return Samples(*data.train, len(data.classes), seed, groups, self.ranks, conflicting, wrong)

    def fingerprint(self) -> dict[str, str]:
        """Return what a resumed run must share: a hash of the ranks and one of the groups, if there are any."""
        found = {}
        if self.ranks is not None:
            found["ranks"] = hashlib.sha256(self.ranks.rank.numpy().tobytes()).hexdigest()
        parts = {part: getattr(self, part) for part in ("train", "validation", "test")}
        digest = hashlib.sha256()
        for part, known in parts.items():
            if known is not None:
                digest.update(repr((part, known.groups.names, len(known.groups))).encode())
                digest.update(known.groups.index.numpy().tobytes() + known.conflicting.numpy().tobytes())
        return found | ({"groups": digest.hexdigest()} if any(parts.values()) else {})

    def facts(self) -> dict[str, Any]:
        """Return how many samples of each group there are, and where the groups come from."""
        found: dict[str, Any] = {}
        if self.train is not None and self.test is not None:
            counts = {"train": self.train.groups.counts(), "test": self.test.groups.counts()}
            found["groups"] = {
                name: {part: each[name] for part, each in counts.items()} for name in self.test.groups.names
            }
        if self.ranks is not None:
            found["ranks"] = {"method": self.ranks.method, "last": int(self.ranks.rank.max())}
        if self.ranked is not None:
            found["ranks"]["conflicting"] = int(self.ranked.conflicting.sum())
        return found


def labelled(truth: Truth, by: str | None = None) -> Labelled:
    """Return the groups of labelled samples: of each class, one for every way to go with cues or against them.

    Args:
        truth: about the samples.
        by: the one cue that groups are made by; None takes all.

    Example:
        >>> truth = Truth(torch.tensor([0, 0]), torch.tensor([[0], [1]]), torch.ones(2, 1), ("colour",), ("cat", "dog"))
        >>> labelled(truth).groups.counts()["cat, conflicting"]
        1
    """
    conflicting = truth.conflicting()
    if by is not None or len(truth.names) == 1:
        cue = 0 if by is None else truth.names.index(by)
        return Labelled(truth.groups(cue), conflicting[:, cue])
    ways = 2 ** len(truth.names)
    code = (conflicting.long() * 2 ** torch.arange(len(truth.names))).sum(1)
    names = tuple(f"{name}, {_way(way, truth.names)}" for name in truth.classes for way in range(ways))
    return Labelled(Groups(ways * truth.label + code, names), conflicting.any(1))


def _way(way: int, cues: tuple[str, ...]) -> str:
    against = [cue for place, cue in enumerate(cues) if way >> place & 1]
    return f"conflicting {' and '.join(against)}" if against else "spurious"


def read(recipe: TrainingRecipe) -> tuple[Dataset, dict[str, Labelled]]:
    """Return the data that a recipe names, and the groups of its parts where it has labels of them."""
    chosen, by = recipe.data, recipe.groups
    how: dict[str, Any] = chosen.model_dump()
    if classification.find(chosen.name).cues:
        data, truths = planted.load(**how)
        return data, {part: labelled(truth, by) for part, truth in truths._asdict().items()}
    if by is None:
        return classification.load(**how), {}
    data, groups = own.grouped(column=by, **how)
    return data, {part: Labelled(*each) for part, each in groups.items()}


def told(recipe: TrainingRecipe, data: Dataset, ranks: Ranks | None, groups: Mapping[str, Labelled]) -> Told:
    """Return what is known of the samples of a recipe.

    Args:
        recipe: what is asked of them.
        data: as it was cut.
        ranks: of the training samples, or None.
        groups: by label and part: "train", "validation", "test".

    Raises:
        DataError: ranks or groups are of other samples.
    """
    ranked = None
    if ranks is not None:
        ranks.check(data)
        if "groups" in recipe.objective.requires | recipe.sampler.requires:
            by_rank = ranks.groups(Ranking(path="").share if recipe.ranks is None else recipe.ranks.share)
            ranked = Labelled(by_rank, by_rank.index % 2 == 1)
    for part, label in groups.items():
        label.groups.check(len(getattr(data, part).y))
        if len(label.conflicting) != len(label.groups):
            raise DataError(
                f"{len(label.conflicting)} samples of {part} conflict or do not, and {len(label.groups)} have groups"
            )
    return Told(**groups, ranks=ranks, ranked=ranked)
