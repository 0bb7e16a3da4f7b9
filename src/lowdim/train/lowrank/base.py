"""What every way of choosing ranks answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import LowdimError
from lowdim.core.settings import Range, Settings, check

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class RankRule(Settings, ABC):
    """Settings that say how many directions each layer keeps."""

    @abstractmethod
    def ranks(self, weights: Mapping[str, Tensor], keep: float) -> dict[str, int]:
        """Return the ranks of the layers to factorise; the others stay dense.

        Args:
            weights: by layer in model order, [out, in].
            keep: of all directions, the sum of min(out, in), the share that is kept.

        Raises:
            RecipeError: the share is out of range.
        """

    def of(self, model: nn.Module, names: list[str], keep: float) -> dict[str, int]:
        """Return the ranks of named layers of a model, for `lowdim.nn.lowrank.factorise_`.

        Raises:
            LowdimError: a name is no layer of the model with a matrix.
        """
        modules = dict(model.named_modules())
        found: dict[str, Any] = {name: getattr(modules.get(name), "weight", None) for name in names}
        if odd := [name for name, weight in found.items() if weight is None or weight.dim() != 2]:
            raise LowdimError(f"{odd[0]} is no layer with a matrix. Name linear layers as named_modules() does.")
        return self.ranks({name: weight.detach() for name, weight in found.items()}, keep)


def check_keep(keep: float) -> None:
    """Refuse a share that is none.

    Raises:
        RecipeError: see above.
    """
    check("keep", keep, Range(above=0, most=1, why="the share of directions that is kept"))
