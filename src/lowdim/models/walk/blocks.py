"""Finding the decoder blocks of a model by structure, without a table of architectures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lowdim.core.errors import LowdimError


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the dotted name and the list of a model's decoder blocks.

    The blocks are the longest ``ModuleList`` whose members share a class and that is not itself inside another
    ``ModuleList`` (a mixture of experts may have more experts than blocks).

    Example:
        >>> blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        >>> find_blocks(nn.ModuleDict({"layers": blocks, "heads": nn.ModuleList([nn.Linear(2, 2)])}))[0]
        'layers'
    """
    inside: set[nn.Module] = set()
    candidates: list[tuple[int, str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or module in inside:
            continue
        inside.update(m for m in module.modules() if isinstance(m, nn.ModuleList) and m is not module)
        if len(module) and len({type(m) for m in module}) == 1:
            candidates.append((len(module), name, module))
    if not candidates:
        raise LowdimError(
            f"no decoder blocks found in {type(model).__name__}: it has no ModuleList of like modules. "
            "lowdim prunes decoder-only models built from a list of identical blocks."
        )
    _, name, blocks = max(candidates, key=lambda found: found[0])
    return name, blocks


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and give every module its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
