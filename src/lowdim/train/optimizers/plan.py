"""What training holds in memory with an optimizer: counted from shapes, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lowdim.evaluate.cost.memory import Memory, saved_bytes
from lowdim.train.optimizers.base import OptimizerRule, matrices, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plan_training(model: nn.Module, rule: OptimizerRule, activations: int = 0) -> Memory:
    """Return the bytes of weights, gradients, state and activations.

    What a step needs for a moment (products, the decomposition of one gradient) and fp32 copies that a loop may keep
    are not in it.

    Args:
        model: its shapes and types count; it may be on the meta device.
        rule: settings of the optimizer.
        activations: bytes, such as those of `activation_bytes`.

    Raises:
        LowdimError: a matrix is too small for the rule, or of a layer that it cannot train.

    Example:
        >>> from lowdim.train.optimizers.galore import GaLore
        >>> net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 6, bias=False))
        >>> found = plan_training(net, GaLore(rank=2))
        >>> found.weights, found.gradients, found.state
        (512, 512, 816)
    """
    rule.check_model(model)
    inner, chosen = {id(p) for p in matrices(model)}, trainable(model)
    found = [rule.bytes_of(p, id(p) in inner) for p in chosen]
    still = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    weights, state = (sum(column) for column in zip(*found, strict=True))
    return Memory(weights + still, rule.gradients([p.nbytes for p in chosen]), state, 0, activations)


def activation_bytes(model: PreTrainedModel, batch: int, length: int) -> int:
    """Return what the forward pass of a causal language model keeps for its backward pass, without checkpointing.

    Attention is counted as a kernel that keeps its probabilities; one that computes them again keeps less.

    Args:
        model: on the meta device, where nothing is computed.
        batch: sequences that are computed at once.
        length: tokens of a sequence.
    """
    ids = torch.zeros(batch, length, dtype=torch.long, device="meta")
    mask = torch.zeros(batch, 1, length, length, dtype=model.dtype, device="meta")
    return saved_bytes(model.train(), input_ids=ids, attention_mask=mask, labels=ids, use_cache=False)
