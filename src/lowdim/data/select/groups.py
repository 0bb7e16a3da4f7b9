"""Groups of samples, such as those of a class that agree with a cue and those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowdim.core.lazy import torch
from lowdim.data.errors import DataError

PARTS = ("spurious", "conflicting")


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each sample belongs to.

    Attributes:
        index: int64 [samples], from 0.
        names: of the groups; one may be empty.

    Raises:
        DataError: there is no sample, or an index is no group.

    Example:
        >>> Groups(torch.tensor([0, 1, 0]), ("spurious", "conflicting")).counts()
        {'spurious': 2, 'conflicting': 1}
    """

    index: torch.Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.index.dtype != torch.int64 or self.index.dim() != 1 or not len(self.index):
            raise DataError(f"groups must be int64 [samples]; got {self.index.dtype} {list(self.index.shape)}")
        wrong = (self.index < 0) | (self.index >= len(self.names))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise DataError(
                f"sample {row} has group {int(self.index[row])}, and groups run from 0 to {len(self.names) - 1}. "
                "Number them from 0, and give every one a name."
            )

    def __len__(self) -> int:
        return len(self.index)

    def counts(self) -> dict[str, int]:
        """Return the samples of each group, by name."""
        found = torch.bincount(self.index, minlength=len(self.names)).tolist()
        return dict(zip(self.names, found, strict=True))

    def check(self, samples: int) -> None:
        """Refuse another number of samples.

        Raises:
            DataError: see above.
        """
        if len(self) != samples:
            raise DataError(f"groups are of {len(self)} samples, and the data has {samples}. Use groups of this data.")


def of_classes(label: torch.Tensor, conflicting: torch.Tensor, classes: Sequence[str]) -> Groups:
    """Return two groups of each class: 2 c for its samples that go with the cue, 2 c + 1 for those that do not.

    Args:
        label: int64 [samples], the class c of each.
        conflicting: bool [samples].
        classes: the classes' names.

    Example:
        >>> of_classes(torch.tensor([0, 1]), torch.tensor([False, True]), ["cat", "dog"]).index
        tensor([0, 3])
    """
    names = tuple(f"{name}, {part}" for name in classes for part in PARTS)
    return Groups(2 * label + conflicting.long(), names)
