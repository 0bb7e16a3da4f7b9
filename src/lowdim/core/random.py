"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *context: str | int) -> int:
    """Return a 63-bit seed made from the user's seed and the purpose, the same on every platform.

    Example:
        >>> derive_seed(0, "layer", 3) == derive_seed(0, "layer", 3)
        True
        >>> derive_seed(0, "layer", 3) == derive_seed(0, "layer", "3")
        False
    """
    text = json.dumps([int(seed), *context])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *context: str | int, device: str = "cpu") -> torch.Generator:
    """Return a new generator for one purpose; the global generators are neither read nor moved.

    Args:
        seed: the user's seed.
        context: what the numbers are for, such as a step and a parameter name.
        device: where the numbers will be drawn.

    Example:
        >>> import torch
        >>> a = torch.rand(2, generator=generator(0, "noise", "layer.1"))
        >>> b = torch.rand(2, generator=generator(0, "noise", "layer.1"))
        >>> bool((a == b).all())
        True
    """
    # torch's CPU generator uses the low 32 bits of a seed alone; sha256 spreads the purpose over all of them
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *context))


@contextmanager
def seeded(device: torch.device, seed: int, *context: str | int) -> Iterator[None]:
    """Seed the global generators for one purpose, for modules such as dropout that draw from them; then restore them.

    Args:
        device: where the modules are.
        seed: the user's seed.
        context: what the numbers are for.

    Example:
        >>> import torch
        >>> before, found = torch.random.get_rng_state(), []
        >>> for _ in range(2):
        ...     with seeded(torch.device("cpu"), 0, "dropout"):
        ...         found.append(torch.rand(2))
        >>> bool((found[0] == found[1]).all()), torch.equal(before, torch.random.get_rng_state())
        (True, True)
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, *context))
        yield
