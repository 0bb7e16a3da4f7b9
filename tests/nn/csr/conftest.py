"""Every test of the executor runs once per instruction set of this machine, and once in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowdim.core.native import LEVELS
from lowdim.core.native import library as loaded
from lowdim.nn.csr import fallback, index, ops


@pytest.fixture(params=(*LEVELS, "torch"), autouse=True)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels with one level forced, or none."""
    name: str = request.param
    found = loaded()
    if name == "torch":
        for module in (index, ops):
            monkeypatch.setattr(module, "kernels", lambda: None)
        monkeypatch.setattr(fallback, "_TOGETHER", 1000)  # so that small tests take several pieces
        yield name
        return
    if found is None:
        pytest.skip("lowdim is installed without its kernels")
    if name not in found.levels:
        pytest.skip(f"{name} is not compiled in, or this processor lacks it")
    before = found.level
    found.use(name)
    yield name
    found.use(before)
