"""Data that a tiny network learns in a second."""

from __future__ import annotations

import pytest
import torch

from lowdim.data.classification import Dataset, Known, cut
from lowdim.data.raw import Raw

PATTERNS = Known("digits", "image", "none", "for tests")  # the name is a known one, for recipes


def made(examples: int = 240, side: int = 6, classes: int = 4, seed: int = 0) -> Dataset:
    """Noisy copies of one random image per class."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, side, side, generator=draw)
    y = torch.arange(examples) % classes
    x = centres[y] + 0.7 * torch.randn(examples, 1, side, side, generator=draw)
    raw = Raw(x, y, tuple(f"class {i}" for i in range(classes)))
    return cut(PATTERNS, raw, validation=0.1, limit=None, seed=0)


@pytest.fixture(scope="session")
def data() -> Dataset:
    return made()
