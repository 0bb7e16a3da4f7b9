"""The plan of a fine-tuning: what is trained, in how much memory, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lowdim.models import ranks
from lowdim.train.optimizers.base import OptimizerRule, matrices, trainable
from lowdim.train.pretrain.plan import PretrainingPlan


@dataclass(frozen=True)
class Trained:
    """What is trained of a model.

    Attributes:
        weights: of the model.
        numbers: that are trained.
        matrices: that they are in.
        state: bytes that the optimizer will hold.
        full: bytes that AdamW of all weights would.
        zeros: of a pruned model, which stay.
    """

    weights: int
    numbers: int
    matrices: int
    state: int
    full: int
    zeros: int


def trained(model: nn.Module, rule: OptimizerRule, optimizer: Optimizer, weights: int, zeros: int) -> Trained:
    """Count what is trained; ``weights`` are those of the model without an adapter."""
    inner = ranks.unwrapped(model)
    own, blocks = trainable(inner), {id(p) for p in matrices(inner)}
    state = sum(rule.bytes_of(p, id(p) in blocks or rule.chooses)[1] for p in own)
    numbers = sum(p.numel() for p in own)
    if rule.chooses:
        choice: Any = rule
        numbers = sum((p.numel() // (p.shape[-1] * p.shape[-2])) * choice.entries(tuple(p.shape[-2:])) for p in own)
    elif zeros:
        numbers -= zeros if numbers >= weights else 0
    return Trained(weights, numbers, sum(p.dim() > 1 for p in own), state, 8 * weights, zeros)


@dataclass(frozen=True, kw_only=True)
class FinetuningPlan(PretrainingPlan):
    """What a fine-tuning will do.

    Attributes:
        trained: see `Trained`.
        unit: what the rows are.
    """

    trained: Trained
    unit: str

    def render(self) -> str:
        """Return the plan as text."""
        found = self.trained
        share, size = found.numbers / max(1, found.weights), 2**20
        lines = [
            f"{found.numbers:,} numbers in {found.matrices:,} matrices are trained, as many as {share:.1%} of the "
            f"model's {found.weights:,} weights",
            f"The optimizer holds {found.state / size:,.1f} MB for them; AdamW of all weights would hold "
            f"{found.full / size:,.1f} MB",
        ]
        if found.zeros:
            lines.append(f"{found.zeros:,} zeros of the pruned model stay")
        lines += self.notes
        lines.append(
            f"{self.steps:,} steps of {self.batch} {self.unit} of at most {self.length} tokens: "
            f"{self.passes or 0:.2f} passes over {self.sequences or 0:,}; judged on {self.held:,} others"
        )
        if self.seconds is not None and self.memory is not None:
            lines.append(
                f"About {self.said_time()} on this machine without the evaluations, {self.memory / size:,.0f} MB"
            )
        return "\n".join(lines)
