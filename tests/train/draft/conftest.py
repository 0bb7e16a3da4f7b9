from __future__ import annotations

from pathlib import Path

import pytest
from tests.train.draft import small
from tests.train.pretrain.conftest import _cached, cache, text  # noqa: F401


@pytest.fixture(scope="session")
def base(text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A target that was trained for a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWDIM_CACHE", str(cache))
        return small.target(text, tmp_path_factory.mktemp("base") / "out")
