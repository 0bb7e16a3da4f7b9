"""What every optimizer of a recipe answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, within


@dataclass(frozen=True)
class OptimizerRule(Settings, ABC):
    """Settings that make an optimizer for a model.

    Args:
        lr: learning rate at its peak; a schedule scales it.
        weight_decay: pulls every trained weight to zero, norms and embeddings too, but not the gates of a placement.
        beta1: how long Adam's mean of the gradient remembers.
        beta2: how long its mean of the square does.
        eps: added to the root of that mean.
    """

    alone: ClassVar[bool] = True
    """Whether one optimizer of torch trains all weights."""
    chooses: ClassVar[bool] = False
    """Whether it trains some entries of matrices alone, none that is zero, and keeps what is wider of them itself."""

    lr: float = within(1e-3, above=0)
    weight_decay: float = within(0.0, least=0)
    beta1: float = within(0.9, least=0, below=1)
    beta2: float = within(0.95, least=0, below=1)
    eps: float = within(1e-8, above=0)

    @classmethod
    def fine_tuning(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to fine-tune with that is not as by default, beside settings that are given; most have none."""
        return {}

    @classmethod
    def for_fine_tuning(cls, **changes: Any) -> Self:
        """Return settings to fine-tune with: those of training from scratch may break a trained model, or not move it.

        Args:
            changes: settings that differ from them.
        """
        return cls(**{**cls.fine_tuning(changes), **changes})

    def check_model(self, model: torch.nn.Module) -> None:
        """Refuse a model, which may be on the meta device, with weights that cannot be trained so; most take any."""

    def prepare_(self, model: torch.nn.Module) -> None:
        """Give a model the weights that it has while it trains, before it is wrapped or sharded; most change none."""

    @abstractmethod
    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a model's trainable parameters."""

    def check_loop(self, accumulate: int, clip: float | None, copies: bool) -> None:
        """Refuse a loop that does something to whole gradients, or has fp32 copies, where weights move on the way back.

        Raises:
            RecipeError: see above.
        """
        if getattr(self, "layerwise", False) and (accumulate > 1 or clip is not None or copies):
            raise RecipeError(
                "optimizer.layerwise updates weights in the backward pass, where gradients are not summed up, bounded "
                "or widened: take accumulate=1, no clip (null) and no fp32 copies of weights, which precision=bfloat16 "
                "and from-scratch have, or leave layerwise out."
            )

    def check_shards(self) -> None:
        """Refuse weights that are cut over processes, where the optimizer takes whole ones; most take any.

        Raises:
            RecipeError: see above.
        """

    def bytes_of(self, weight: torch.Tensor, matrix: bool) -> tuple[int, int]:
        """Return the bytes of a weight and of its state, counts of steps left out: Adam has two numbers of its type.

        Args:
            weight: its shape and type count; it may be on the meta device.
            matrix: whether it is one of `matrices`.
        """
        return weight.nbytes, 2 * weight.nbytes

    def _adam(self, lr: float, weight_decay: float) -> dict[str, Any]:
        """Return the arguments of torch's Adam; its fused step reads and writes every tensor once."""
        betas = (self.beta1, self.beta2)
        return {"lr": lr, "betas": betas, "eps": self.eps, "weight_decay": weight_decay, "fused": True}


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Return what the closure of a step returns, run with gradients; None without one.

    Example:
        >>> loss_of(None), loss_of(lambda: 2.0)
        (None, 2.0)
    """
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that have gradients, tied ones once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def groups(model: torch.nn.Module, chosen: Sequence[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Return some parameters as groups of an optimizer: gates of a placement are in one without decay."""
    from lowdim.nn.residual.added import Gates

    gates = {id(p) for module in model.modules() if isinstance(module, Gates) for p in module.parameters()}
    free = [p for p in chosen if id(p) in gates]
    pulled = [p for p in chosen if id(p) not in gates]
    return [{"params": pulled}, *([{"params": free, "weight_decay": 0.0}] if free else [])]


def matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the trainable matrices that are no embedding and no head, of a model that may be wrapped."""
    from lowdim.models.structure.selection import inner

    return [w.parameter for w in inner(model) if w.parameter.requires_grad and w.parameter.dim() == 2]
