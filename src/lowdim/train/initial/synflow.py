"""SynFlow: masks without data, by a conserved flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdim.core.lazy import torch
from lowdim.core.settings import count
from lowdim.core.topk import keep_top_across
from lowdim.train.initial.base import Initialisation, Start, budget

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SynFlow(Initialisation):
    """Score |w * dR/dw|, R being the sum of the outputs for an input of ones, with absolute weights and no biases.

    Pruned in rounds: after round k of K the kept share is D^(k/K), D being the target density, and the score is
    taken again. Where activations leave positive values alone, the scores of each layer that all paths cross add up to
    R, so no such layer is emptied early. The authors' code keeps biases and the means of batch norms, made absolute;
    these feed the layers behind them and let those before be emptied. The paper's R has none. Computed in float64, in
    evaluation mode, on a copy. Layer, group and RMS norms pass their input on, times their gain, since
    what they divide by would undo the flow.

    Args:
        rounds: K; the paper uses 100. 1 is one-shot and may empty layers.

    Paper: "Pruning neural networks without any data by iteratively conserving synaptic flow", arXiv 2006.05467.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> masks = SynFlow().masks(net, (1, 4), sparsity=0.75, include=["*"])
        >>> sum(int(mask.sum()) for mask in masks.values())
        12
    """

    needs: ClassVar[str] = "example"

    rounds: int = count(100)

    def scores(self, start: Start, masks: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the scores under masks, fp64; all weights count if there are none."""
        return _Scorer(start).scores(masks)

    def choose(self, start: Start, sparsity: float) -> dict[str, Tensor]:
        """Return the masks."""
        scorer = _Scorer(start)
        total = sum(w.numel() for w in start.weights.values())
        last = budget(start.weights, sparsity)
        masks: dict[str, Tensor] | None = None
        for k in range(1, self.rounds + 1):
            scores = scorer.scores(masks)
            if masks is not None:  # a pruned weight must not tie with a kept one of score 0
                scores = {name: torch.where(masks[name], s, -1.0) for name, s in scores.items()}
            kept = round(total * (1.0 - sparsity) ** (k / self.rounds))
            masks = keep_top_across(scores, last if k == self.rounds else max(kept, last))
        assert masks is not None
        return masks


class _Scorer:
    """Scores one network again and again."""

    def __init__(self, start: Start) -> None:
        from lowdim.train.initial.flow import Flow, linear_norms

        self.flow = Flow(start.model, start.weights, start.data, torch.abs)
        linear_norms(self.flow.net, affine=True)
        self.whole = {name: weight.detach().clone() for name, weight in self.flow.weights.items()}

    def scores(self, masks: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if masks is not None:
            self.flow.set({name: value * masks[name] for name, value in self.whole.items()})
        _, gradients = self.flow.gradients()
        return {name: (weight.detach() * gradients[name]).abs() for name, weight in self.flow.weights.items()}
