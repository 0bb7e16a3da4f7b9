"""What was planted in each sample: for measuring alone. Nothing that chooses or trains may read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data.planted.settings import Planting
from lowdim.data.select.groups import Groups, of_classes


@dataclass(frozen=True, eq=False)
class Truth:
    """The cues of some samples; b counts them.

    Attributes:
        label: int64 [samples], the class.
        cue: int64 [samples, b], the class whose cue the sample has.
        strength: fp32 [samples, b], how clear it is, in [0, 1].
        names: of the cues.
        classes: the classes' names.
    """

    label: torch.Tensor
    cue: torch.Tensor
    strength: torch.Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]

    def conflicting(self) -> torch.Tensor:
        """Return whether a sample has another class's cue, bool [samples, b]."""
        return self.cue != self.label.unsqueeze(1)

    def spuriosity(self) -> torch.Tensor:
        """Return how much each cue speaks for the sample's class, fp32 [samples, b]: its strength, or minus that."""
        return torch.where(self.conflicting(), -self.strength, self.strength)

    def groups(self, cue: int | None = None) -> Groups:
        """Return two groups of each class: samples that go with a cue, and those that conflict with it.

        Args:
            cue: which; None: a sample conflicts if it does so with any.
        """
        found = self.conflicting()
        return of_classes(self.label, found.any(1) if cue is None else found[:, cue], self.classes)

    def take(self, rows: Sequence[int]) -> Truth:
        """Return the truth of some of the samples."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        parts = (self.label[index], self.cue[index], self.strength[index])
        return Truth(*parts, self.names, self.classes)


def draw(
    label: torch.Tensor, names: tuple[str, ...], classes: tuple[str, ...], how: Planting, part: str, biased: bool
) -> Truth:
    """Return which cue each sample gets, drawn apart for each cue.

    Args:
        label: int64 [samples].
        names: of the cues.
        classes: the classes' names.
        how: the settings.
        part: "train" or "test"; draws of the two are independent.
        biased: whether cues go with classes.

    Example:
        >>> label = torch.arange(100) % 2
        >>> int(draw(label, ("colour",), ("a", "b"), Planting(conflicting=0.1), "train", True).conflicting().sum())
        10
    """
    cues, strengths = [], []
    for name, share, strength in zip(names, how.shares(len(names)), how.strengths(len(names)), strict=True):
        cue = label.clone()
        for number in range(len(classes)):
            mine = (label == number).nonzero().flatten()
            source = generator(how.seed, "planted", name, part, number)
            mine = mine[torch.randperm(len(mine), generator=source)]
            if biased:
                mine = mine[: round(share * len(mine))]
                others = [other for other in range(len(classes)) if other != number]
            else:
                others = list(range(len(classes)))
            # equal numbers of every cue, up to one, in an order that is drawn
            shuffled = torch.tensor(others)[torch.randperm(len(others), generator=source)]
            cue[mine] = shuffled.repeat(len(mine) // len(others) + 1)[: len(mine)]
        cues.append(cue)
        drawn = torch.rand(len(label), generator=generator(how.seed, "planted", name, part, "strength"))
        strengths.append(strength * (drawn if how.graded else torch.ones(len(label))))
    return Truth(label, torch.stack(cues, 1), torch.stack(strengths, 1), names, classes)
