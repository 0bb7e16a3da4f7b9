from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowdim.core import native

LEVELS = ("torch", *native.runtime_info().levels)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make lowdim believe that it was installed without a compiler; the warning has been given."""
    monkeypatch.setattr(native, "_find", lambda: (None, "it was not compiled"))
    monkeypatch.setattr(native, "_warned", True)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run with every instruction set of this machine, and without the compiled kernels."""
    if request.param == "torch":
        without_kernels(monkeypatch)
        yield "torch"
        return
    found = native.library()
    assert found is not None
    before = found.level
    yield found.use(request.param)
    found.use(before)
