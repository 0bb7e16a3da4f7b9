from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.prune import tiny


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the directory of a tiny model of a kind, saved once."""
    home = tmp_path_factory.mktemp("models")

    def path(kind: str) -> Path:
        return home / kind if (home / kind).exists() else tiny.save(home / kind, kind)

    return path
