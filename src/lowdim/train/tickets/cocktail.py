"""Sparse Cocktail: element, channel and N:M sparsity, each at several ratios, in one set of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy, torch
from lowdim.core.pattern import NM, parse
from lowdim.core.settings import Moot, Settings, count, share, within

if TYPE_CHECKING:
    from lowdim.merge.trial import Validate
    from lowdim.models.subnets import Subnets
    from lowdim.train.tickets.pivot import Answer
    from lowdim.train.tickets.unified import Unified

_cotrain = Lazy("lowdim.train.tickets.cotrain")

_DECAY, _CYCLE, _RESTART, _FLOOR = 110 / 150, 20 / 150, 0.1, 0.01


@dataclass(frozen=True)
class SparseCocktail(Settings):
    """Trains one network so that many sparse networks in it are good, and names them.

    Stage 0 is dense, and its weights after some epochs are remembered. At the end of a stage masks are drawn, and the
    weights go back to those remembered, under a new optimizer:

    - element: of the weights that the last masks kept the largest, over all layers, the share 1 - ``element``;
    - N:M: the largest N of every M inputs, for each of ``groups`` once, spread over the stages from the first on;
    - channel: of each layer the outputs c of the largest sum_i (refill * E_ci + (1 - refill) * G_ci) |W_ci|, E and G
      the masks above, so that channels that the others fill stay.

    In a stage every other step is dense, and the ones between train one pattern after the other, taught by the dense
    network on the same batch (`lowdim.train.tickets.pivot.Pivot`). In the end theta begins as the weights of stage 1,
    and for every later stage theta <- p theta + (1 - p) theta_stage with the p for which the networks so far are best
    together. What is served is theta, with each network's masks and norm statistics.

    After k stages element networks have 1 - (1 - element)^k zeros, to one weight; with the defaults there are ten of
    them, ten by channels, three by N:M, and the dense one.

    Attributes:
        stages: times that masks are drawn.
        element: share of the remaining weights that a stage takes away.
        channel: share of the remaining channels that a stage takes away; 0 trains no channel networks.
        groups: N:M patterns, at most one for each stage after the first; () trains none.
        refill: weight of the element masks in a channel's score.
        distill: weight of the dense network's answer in the loss of a sparse step.
        coefficients: p, tried in this order; of equal scores the first stays.

    Paper: "Sparse Cocktail: Every Sparse Pattern Every Sparse Ratio All At Once", ICML 2024,
    https://github.com/VITA-Group/SparseCocktail.

    Example:
        >>> cocktail = SparseCocktail()
        >>> cocktail.drawn_at(), [round(cocktail.zeros(k), 2) for k in (1, 2, 10)]
        ({2: NM(keep=1, group=2), 5: NM(keep=2, group=4), 8: NM(keep=4, group=8)}, [0.2, 0.36, 0.89])
    """

    moot: ClassVar[Moot] = {"refill": ("channel", (0,))}
    stages: int = count(10)
    element: float = within(0.2, above=0, below=1)
    channel: float = within(0.1, least=0, below=1)
    groups: tuple[str, ...] = ("1:2", "2:4", "4:8")
    refill: float = share(0.8)
    distill: float = share(0.5)
    coefficients: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.groups) > max(0, self.stages - 1):
            raise RecipeError(
                f"groups names {len(self.groups)} patterns, and with stages={self.stages} there are "
                f"{max(0, self.stages - 1)} stages after the first that could begin with one. Name fewer, or take "
                "more stages"
            )
        if not self.coefficients or not all(0 <= p <= 1 for p in self.coefficients):
            raise RecipeError(f"coefficients must be one or more numbers between 0 and 1; got {self.coefficients}")
        if len(set(self.groups)) < len(self.groups):
            raise RecipeError(f"groups names a pattern twice: {', '.join(self.groups)}")
        self.patterns()

    def patterns(self) -> tuple[NM, ...]:
        """Return what ``groups`` names.

        Raises:
            RecipeError: one is not N:M.
        """
        found = [parse(each) for each in self.groups]
        if wrong := next((each for each in found if not each.groups_of), None):
            raise RecipeError(f"groups takes N:M patterns such as 2:4; got {str(wrong)!r}")
        return tuple(cast(NM, each) for each in found)

    def drawn_at(self) -> dict[int, NM]:
        """Return the first stage that trains with each N:M pattern: 2, 5 and 8 of ten for three patterns."""
        found = self.patterns()
        return {2 + index * (self.stages - 1) // len(found): pattern for index, pattern in enumerate(found)}

    def zeros(self, stage: int) -> float:
        """Return the share of zeros of element networks after so many stages."""
        return 1.0 - (1.0 - self.element) ** stage

    def rate(self, done: float) -> float:
        """Return the factor on the learning rate where the share ``done`` of a stage is over.

        Half a cosine to a hundredth over 110 of 150 epochs, then cosines of 20 epochs from a tenth to a hundredth.

        Example:
            >>> [round(SparseCocktail().rate(epoch / 150), 3) for epoch in (0, 55, 110, 130, 149)]
            [1.0, 0.505, 0.1, 0.1, 0.011]
        """
        top, part = (1.0, done / _DECAY) if done < _DECAY - 1e-9 else (_RESTART, (done - _DECAY + 1e-9) / _CYCLE % 1.0)
        return _FLOOR + (top - _FLOOR) * (1 + math.cos(math.pi * part)) / 2

    def train(
        self,
        model: torch.nn.Module,
        batches: Callable[[int], Iterable[Any]],
        optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        *,
        epochs: int,
        rewind: int,
        answer: Answer,
        validate: Validate,
        refresh: Iterable[Any] | None = None,
        rate: Callable[[float], float] | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        told: Callable[[int, int, float], None] | None = None,
    ) -> Subnets:
        """Train a network and return the networks in it; the model ends as the dense one.

        Args:
            model: as it was initialised; changed.
            batches: (epoch of the run, from 0) -> what ``answer`` takes, on its device.
            optimizer: makes an optimizer for the model, at the start of every stage.
            epochs: of every stage; there are ``stages`` + 1.
            rewind: epochs of stage 0 after which weights are remembered; 0 are those given.
            answer: how the network is asked: `lowdim.train.tickets.pivot.classified` or ``continued``, or one's own.
            validate: (model) -> score on data that is held out for it, higher is better; never test data.
            refresh: batches of training data on which norm statistics are measured, read once per network and trial;
                needed where the model has BatchNorm.
            rate: factor on the learning rate by the share of a stage that is over; None is `rate`.
            include: globs of the weights to mask, see `lowdim.models.structure.selection.select`.
            exclude: globs of weights that stay dense.
            told: told the stage, the epoch in it and its mean loss.

        Raises:
            RecipeError: a setting is impossible for this model.
            PatternError: the inputs of a layer are no whole number of groups.
            LowdimError: the model has BatchNorm and there is nothing to refresh it on; an epoch has no batch.
        """
        run = _cotrain.Run(self, model, batches, optimizer, answer, validate, refresh, rate or self.rate, told)
        made: Subnets = run.train(epochs, rewind, include, exclude)
        return made

    def names(self, stages: Mapping[int, Unified]) -> dict[str, tuple[str, int, str]]:
        """Return the networks of some stages: by name the pattern's role, the stage and the pattern."""
        digits = next(d for d in range(9) if self._apart(stages, d))
        found: dict[str, tuple[str, int, str]] = {}
        for stage, masks in stages.items():
            found[f"element-{100 * self.zeros(stage):.{digits}f}"] = ("element", stage, "unstructured")
            if masks.channel is not None:
                zeros = 1.0 - (1.0 - self.channel) ** stage
                found[f"channel-{100 * zeros:.{digits}f}"] = ("channel", stage, "channel")
            if masks.pattern is not None:
                found.setdefault(str(masks.pattern), ("groups", stage, str(masks.pattern)))
        return found

    def _apart(self, stages: Mapping[int, Unified], digits: int) -> bool:
        rates = (self.element, self.channel) if self.channel else (self.element,)
        return all(len({f"{100 * (1 - r) ** k:.{digits}f}" for k in stages}) == len(stages) for r in rates)
