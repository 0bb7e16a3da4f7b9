from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.prune import tiny

from lowdim.prune.api import prune


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the directory of a tiny dense model of a kind, saved once."""
    home = tmp_path_factory.mktemp("models")

    def path(kind: str) -> Path:
        return home / kind if (home / kind).exists() else tiny.save(home / kind, kind)

    return path


@pytest.fixture(scope="session")
def pruned(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the directory of a tiny model of a kind, pruned by magnitude and written once."""
    home = tmp_path_factory.mktemp("pruned")

    def path(kind: str, **settings: str) -> Path:
        place = home / "-".join([kind, *settings.values()])
        if not place.exists():
            recipe = tiny.recipe(method="magnitude", sparsity=0.5, **settings)
            prune(str(saved(kind)), recipe, calibration=tiny.tokens(), out=place)
        return place

    return path


@pytest.fixture(scope="session")
def two_four(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the directory of a tiny model of a kind with a 2:4 mask, written once."""
    home = tmp_path_factory.mktemp("two-four")

    def path(kind: str) -> Path:
        if not (home / kind).exists():
            recipe = tiny.recipe(method="magnitude", pattern="2:4")
            prune(str(saved(kind)), recipe, calibration=tiny.tokens(), out=home / kind)
        return home / kind

    return path
