"""What a network is trained for, sample by sample, and what an objective is told of the samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.recipe.families import build, describe
from lowdim.core.settings import Settings
from lowdim.data.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowdim.data.select.groups import Groups
    from lowdim.data.select.ranks import Ranks

Memory = dict[str, Any]


class Drawn(NamedTuple):
    """A batch as an objective sees it.

    Attributes:
        x: [samples, ...].
        y: int64 [samples].
        rows: positions of the samples among those that are trained on, int64 [samples].
        groups: int64 [samples], or None where the samples have none.
        memory: what the objective remembers, the dictionary that `Objective.begin` returned; saved with the run.
        partners: of each sample, what a sampler of pairs drew with it: x of the partners, as many tensors as there are.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    groups: Tensor | None
    memory: Memory
    partners: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Samples:
    """All that objectives and samplers are told of the samples that are trained on.

    Attributes:
        x: the samples, [samples, ...].
        y: their classes, int64 [samples].
        classes: how many classes there are.
        seed: of every draw.
        groups: of the samples, or None.
        ranks: of the samples, or None.
        conflicting: bool [samples], whether a sample contradicts what goes with its class, or None.
        wrong: bool [samples], what a network that was stopped early (`Objective.early`) got wrong, or None.
    """

    x: Tensor
    y: Tensor
    classes: int
    seed: int = 0
    groups: Groups | None = None
    ranks: Ranks | None = None
    conflicting: Tensor | None = None
    wrong: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __post_init__(self) -> None:
        for known in (self.groups, self.ranks):
            if known is not None and len(known) != len(self):
                raise DataError(
                    f"{len(known)} groups or ranks were given for {len(self)} samples. Use those of this data."
                )

    @property
    def index(self) -> Tensor:
        """The group of each sample, int64 [samples]."""
        assert self.groups is not None
        return self.groups.index

    def counts(self) -> Tensor:
        """Return how many samples each group has, int64 [groups]."""
        assert self.groups is not None
        return torch.bincount(self.index, minlength=len(self.groups.names))


@dataclass(frozen=True)
class Objective(Settings, ABC):
    """What a network is trained for. Subclasses are frozen dataclasses of a paper's hyper-parameters.

    A step minimises mean_i w_i l_i over the samples of a batch: l is `loss`, w what `weights` says of each sample,
    scaled to a mean of 1 over all samples; an objective that `draws` has its samples drawn by w instead. One whose
    weights change from step to step gives them by `weighed`.

    Attributes:
        needs: what has to be known of the samples: "groups", "ranks" or "pairs" (which a sampler draws).
        usual_sampler: name of the sampler that a recipe takes where it names none.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    usual_sampler: ClassVar[str] = "shuffled"

    @property
    def requires(self) -> frozenset[str]:
        """What has to be known of the samples, by this objective and by one that lies below it."""
        return self.needs

    @property
    def early(self) -> int:
        """Epochs of plain training after which a first network says which samples it gets wrong; 0 for no such."""
        return 0

    @property
    def draws(self) -> bool:
        """Whether samples are drawn by `weights`, instead of their losses being weighed."""
        return False

    @property
    def passes(self) -> float:
        """Arithmetic of a step beside plain training's: 1 for a forward and a backward pass."""
        return 1.0

    def check_kind(self, kind: str) -> None:
        """Refuse a kind of data ("image", "table", "text") that cannot be trained on so.

        Raises:
            RecipeError: names the objective and the remedy.
        """

    def begin(self, samples: Samples) -> Memory:
        """Return what the objective remembers, as it is before the first step.

        Raises:
            RecipeError: the samples are not such as can be trained on.
        """
        return {}

    def weights(self, samples: Samples) -> Tensor | None:
        """Return a weight of at least 0 for every sample, fp32 [samples]; None where all are alike."""
        return None

    def forward(self, net: nn.Module, batch: Drawn) -> Any:
        """Return what `loss` takes for the network's outputs."""
        return net(batch.x)

    @abstractmethod
    def loss(self, outputs: Any, batch: Drawn) -> Tensor:
        """Return the loss of every sample, [samples], as samplers hear it: not weighed."""

    def weighed(self, losses: Tensor, batch: Drawn) -> Tensor:
        """Return the losses of every sample as this step weighs them, [samples]; as they are by default."""
        return losses

    def mean(self, outputs: Any, batch: Drawn) -> Tensor:
        """Return the mean of `loss`, as `weighed`, over a batch whose samples all have one weight."""
        return self.weighed(self.loss(outputs, batch), batch).mean()

    def examine(self, net: nn.Module, x: Tensor, y: Tensor, seed: int) -> Mapping[str, float]:
        """Return what else there is to measure of a finished network on test examples, by name."""
        return {}


@dataclass(frozen=True)
class Reweighted(Objective):
    """The losses of another objective, weighed.

    Args:
        over: the objective below: a name, or a mapping with a name and settings.
    """

    over: Any = field(default="erm", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "over", describe("objective", build("objective", self.over)))
        if self.below.draws or self.below.early or "pairs" in self.below.requires or isinstance(self.below, Reweighted):
            raise RecipeError(
                f"objective.over {self.over['name']!r} weighs or pairs samples itself. Choose one that does not, "
                "such as erm or adversarial"
            )

    @cached_property
    def below(self) -> Objective:
        """The objective whose losses are weighed."""
        found: Objective = build("objective", self.over)
        return found

    @property
    def requires(self) -> frozenset[str]:
        """What has to be known of the samples, by this objective and the one below it."""
        return self.needs | self.below.requires

    @property
    def passes(self) -> float:
        """Arithmetic of a step beside plain training's."""
        return self.below.passes

    def check_kind(self, kind: str) -> None:
        """Refuse what the objective below does."""
        self.below.check_kind(kind)

    def begin(self, samples: Samples) -> Memory:
        """Return what the objective below remembers."""
        return self.below.begin(samples)

    def forward(self, net: nn.Module, batch: Drawn) -> Any:
        """Return what the objective below makes of a batch."""
        return self.below.forward(net, batch)

    def loss(self, outputs: Any, batch: Drawn) -> Tensor:
        """Return the losses of the objective below."""
        return self.below.loss(outputs, batch)

    def examine(self, net: nn.Module, x: Tensor, y: Tensor, seed: int) -> Mapping[str, float]:
        """Return what the objective below measures."""
        return self.below.examine(net, x, y, seed)
