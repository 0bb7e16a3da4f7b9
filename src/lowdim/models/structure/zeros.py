"""The zeros of a pruned model, read from its weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.models.structure.selection import Weight, inventory

PRUNED = 0.01
"""Share of zeros below which a model, or a weight, counts as dense: some numbers are zero by chance in any."""


def masks_of(model: nn.Module) -> Masks:
    """Return the masks that a model's zeros are; see `lowdim.core.masks.Masks.of`."""
    refuse_packed(model)
    return zeros_in((w.name, w.parameter) for w in inventory(model) if not w.dense)


def zeros_in(weights: Iterable[tuple[str, Tensor]]) -> Masks:
    """Return the masks of those of some weights, by name, that hold zeros.

    Raises:
        LowdimError: less than 1% of all of them is zero.

    Example:
        >>> import torch
        >>> zeros_in([("a", torch.ones(2, 2)), ("b", torch.eye(2))])
        Masks(1 layers, 2 of 4 weights kept)
    """
    masks, zeros, size = Masks(), 0, 0
    for name, weight in weights:
        whole = weight.detach()
        mask = (whole.full_tensor() if hasattr(whole, "full_tensor") else whole) != 0
        off = int((~mask).sum())
        zeros, size = zeros + off, size + mask.numel()
        if off:
            masks.add(name, mask.cpu())
    if zeros < PRUNED * size or not size:
        raise LowdimError(
            f"{zeros} of the {size} weights that pruning might have zeroed are zero, so the model was not pruned, or "
            "has lost its zeros since. Give the pruned model, as it was written, or the masks"
        )
    return masks


def is_pruned(weight: Weight) -> bool:
    """Tell whether one weight has more zeros than come by chance."""
    return not weight.dense and mask_of(weight.parameter) is not None


def mask_of(weight: Tensor, known: bool = False) -> Tensor | None:
    """Return the kept entries of a pruned weight, bool of its shape; ``None`` for one whose zeros came by chance.

    Args:
        weight: any tensor.
        known: it is known to have been pruned, so that every zero counts; of others 1% must be zero.

    Example:
        >>> import torch
        >>> mask_of(torch.tensor([[1.0, 0.0]])), mask_of(torch.ones(1, 2))
        (tensor([[ True, False]]), None)
    """
    mask = weight != 0
    return mask if known or mask.numel() - int(mask.sum()) >= PRUNED * mask.numel() else None


def refuse_packed(model: nn.Module) -> None:
    """Refuse a model with the packed layers of the runtime, which hold no parameter that could be trained.

    Raises:
        LowdimError: it has some.
    """
    packed = next((name for name, module in model.named_modules() if type(module).__name__ == "SparseLinear"), None)
    if packed is not None:
        raise LowdimError(
            f"{packed or 'the model'} is a SparseLinear, packed for inference, and cannot be trained. Write the "
            "checkpoint dense, lowdim convert PACKED DENSE --storage dense, and train what "
            "AutoModelForCausalLM.from_pretrained reads from that directory"
        )
