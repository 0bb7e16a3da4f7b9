"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowdim.core.errors import LowdimError
from lowdim.core.lazy import torch
from lowdim.core.settings import count, within
from lowdim.train.optimizers.base import OptimizerRule, groups, trainable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Muon(OptimizerRule):
    """Momentum made orthogonal for the matrices inside the blocks; AdamW for embeddings, head, norms and biases.

    A matrix moves by lr * a * (NS(G + m B) + d W) with B <- m B + G its momentum and NS five Newton-Schulz iterations
    that bring the singular values of B near 1; a is 0.2 sqrt(max(out, in)) with ``scale`` "match_rms_adamw", so that
    rates and decay tuned for AdamW fit, or sqrt(max(1, out / in)) with "original"; a does not scale the decay.

    Papers: "Muon: An optimizer for hidden layers in neural networks" (Jordan et al. 2024), "Muon is Scalable for LLM
    Training", arXiv 2502.16982; `torch.optim.Muon`.

    Args:
        lr: learning rate of the matrices at its peak; a schedule scales it.
        weight_decay: d, of matrices and of the rest alike.
        momentum: m.
        scale: how the shape of a matrix scales its step.
        iterations: of Newton-Schulz.
        adam_lr: learning rate of the rest; None takes ``lr``.
        beta1: how long Adam's mean of the gradient remembers.
        beta2: how long its mean of the square does.
        eps: added to the root of that mean.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4))
        >>> [len(group["params"]) for group in Muon().build(net).param_groups]
        [1, 2]
    """

    alone = False
    weight_decay: float = within(0.1, least=0)
    momentum: float = within(0.95, least=0, below=1)
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    iterations: int = count(5)
    adam_lr: float | None = within(None, above=0)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a model's trainable parameters.

        Raises:
            LowdimError: there is no matrix for Muon.
        """
        from lowdim.train.optimizers.joined import Joined

        outer = _outer(model)
        matrices = [p for p in trainable(model) if p.dim() == 2 and id(p) not in outer]
        if not matrices:
            raise LowdimError("optimizer muon found no matrix inside the blocks. Take optimizer=adamw.")
        chosen = {id(p) for p in matrices}
        rest = [p for p in trainable(model) if id(p) not in chosen]
        muon = torch.optim.Muon(
            matrices,
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            ns_steps=self.iterations,
            adjust_lr_fn=self.scale,
        )
        parts: list[torch.optim.Optimizer] = [muon]
        if rest:
            parts.append(
                torch.optim.AdamW(groups(model, rest), **self._adam(self.adam_lr or self.lr, self.weight_decay))
            )
        return Joined(parts)


def _outer(model: nn.Module) -> set[int]:
    """Return the embeddings and the head, which Muon does not train, of a model that may be wrapped."""
    bare = next((module for module in model.modules() if hasattr(module, "get_output_embeddings")), model)
    heads = [getattr(bare, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    return {id(p) for module in (*heads, *tables) if module is not None for p in module.parameters()}
