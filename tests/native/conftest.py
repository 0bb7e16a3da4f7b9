"""Every test of the kernels runs once per instruction set that is compiled in and that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowdim.core.native import LEVELS, Library
from lowdim.core.native import library as loaded


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The library with one level forced."""
    found = loaded()
    if found is None:
        pytest.skip("lowdim is installed without its kernels")
    if request.param not in found.levels:
        pytest.skip(f"{request.param} is not compiled in, or this processor lacks it")
    before = found.level
    found.use(request.param)
    yield found
    found.use(before)
