"""CTRE: grow connections between neurons that fire together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy, torch
from lowdim.core.settings import Moot, share
from lowdim.core.transition import member, union, whole
from lowdim.train.sparse.exchange import Regrow, initial_values, kept
from lowdim.train.sparse.method import Periodic, refuse_groups, written
from lowdim.train.sparse.moment import Moment

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lowdim.train.dynamic import correlation
    from lowdim.train.sparse.layer import SparseLayer
else:
    correlation = Lazy("lowdim.train.dynamic.correlation")


@dataclass(frozen=True)
class CTRE(Periodic):
    """The smallest |w| go, and weights grow where the cosine of the activations they join is largest.

    C_qp = |cos(a_p, a_q)|, a_p the input p of a layer and a_q its output q behind the activation (the softmax for the
    last layer): no gradient is needed. "pass" runs the batches that were trained on since the last update once more,
    in evaluation mode (without dropout) and with the weights of the moment, as the paper does at the end of an epoch:
    the inputs are held until then. "training" sums the activations of the training passes themselves, which costs
    nothing beyond them. Layers must be chained in the order in which the model defines them, dense ones included;
    ranks add up what they saw.

    "similarity" (CTRE_sim): the best by C are taken; those of them that were just dropped are refused and replaced by
    random positions. "sequential" (CTRE_seq): growth by C, just dropped or not, until ``switch``, and at random
    from then on. The paper switches when the validation loss stops falling; `SparseTraining` sees no
    validation, so the share of the run is a setting here.

    Paper: "A Brain-inspired Algorithm for Training Highly Sparse Neural Networks", Machine Learning 2022, arXiv
    1903.07138. It updates once per epoch, on multi-layer perceptrons.

    Args:
        every: optimizer steps between updates: those of an epoch.
        until: share of the run after which masks stand still.
        drop: zeta, share of a layer's weights that goes.
        mode: "similarity" or "sequential".
        switch: share of the run from which "sequential" grows at random.
        noise: standard deviation of what breaks ties between |w|.
        regrow: value of new weights: "uniform" in +-sqrt(6 / inputs), as in the published run; "normal", N(0, 0.1^2);
            or "zero". In the sequential mode one that was just dropped goes on as it was.
        activations: of which the cosines are: those of a "pass" at the update, or those of "training".

    Example:
        >>> CTRE(every=10).due(20, None)
        True
    """

    moot: ClassVar[Moot] = {"switch": ("mode", ("similarity",))}
    drop: float = share(0.2)
    mode: Literal["similarity", "sequential"] = "similarity"
    switch: float = share(0.5)
    noise: float = 1e-5
    regrow: Regrow = "uniform"
    activations: Literal["pass", "training"] = "pass"

    def __repr__(self) -> str:
        return written(self, {"regrow": "zero", "activations": "training"})

    @property
    def needs_total(self) -> bool:  # type: ignore[override]
        """Only the sequential mode knows how long a run is."""
        return self.mode == "sequential" or self.until < 1.0

    def check(self, layers: Sequence[SparseLayer]) -> None:
        """Refuse layers other than linear ones, whose neurons are not single numbers."""
        for layer in layers:
            if not isinstance(layer.module, torch.nn.Linear):
                raise RecipeError(
                    f"CTRE trains linear layers whose weights are held dense; {layer.name} is not one. "
                    "Exclude it, or use SET or RigL"
                )
            if layer.size != layer.parameter.numel():
                raise RecipeError(f"CTRE grows single weights; {layer.name} has a pattern of blocks")
        if self.mode == "similarity":
            refuse_groups(layers, "CTRE's mode 'similarity'", "'sequential'")

    def observers(
        self, model: nn.Module, optimizer: Optimizer, layers: Sequence[SparseLayer], total: int | None
    ) -> dict[str, Any]:
        """Watch what enters and leaves every layer.

        Raises:
            RecipeError: a layer has a different number of outputs than the next linear layer has inputs.
        """
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        following = dict(zip(linear, [*linear[1:], None], strict=True))
        passes = correlation.Passes(model, optimizer, self.every) if self.activations == "pass" else None
        seen = {}
        for layer in layers:
            module: Any = layer.module  # linear, as `check` has found
            after = following[module]
            if after is not None and after.in_features != module.out_features:
                raise RecipeError(
                    f"CTRE sees what leaves {layer.name} where it enters the next linear layer, but that takes "
                    f"{after.in_features} inputs where this one has {module.out_features} outputs. Exclude it"
                )
            seen[layer.name] = correlation.Correlation(layer.name, module, after, model, passes)
        return seen

    def update(self, moment: Moment) -> None:
        """Drop by magnitude, grow by cosine, layer by layer."""
        self.shake(moment, self.drop)

    def shake(self, moment: Moment, fraction: float) -> None:
        """Do one update that drops ``fraction``."""
        for layer in moment.layers:
            self._replace(moment, layer, fraction)

    def _replace(self, moment: Moment, layer: SparseLayer, share: float) -> None:
        observer = moment.observers[layer.name]
        count = whole(share * layer.kept)
        if self.mode == "similarity":
            count = min(count, layer.size - layer.kept)
        keep = kept(moment, layer, count, "magnitude", self.noise)
        before = layer.positions()
        grown = self._grown(moment, layer, observer.cosine().flatten(), before[keep], before[~keep])
        goes_on = member(grown, before[~keep]) & (not moment.restart)
        stays, new = keep | member(before, grown[goes_on]), grown[~goes_on]
        layer.move(stays, new, initial_values(moment, layer, len(new), self.regrow))
        observer.clear()

    def _grown(self, moment: Moment, layer: SparseLayer, cosine: Tensor, staying: Tensor, dropped: Tensor) -> Tensor:
        source, count = moment.generator(layer, "grow"), len(dropped)
        if self.mode == "sequential":
            if moment.total is not None and moment.step >= self.switch * moment.total:
                return layer.draw(count, staying, source)
            return layer.top(cosine, count, staying)
        best = layer.top(cosine, count, staying)
        best = best[~member(best, dropped)]
        barred = union(union(staying, dropped), best)
        return union(best, layer.draw(count - len(best), barred, source))
