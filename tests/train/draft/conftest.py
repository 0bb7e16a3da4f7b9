from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.train.draft import small
from tests.train.pretrain import small as pretraining


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep tokens in a cache of the tests', and torch on one thread."""
    monkeypatch.setenv("LOWDIM_CACHE", str(cache))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretraining.write(tmp_path_factory.mktemp("texts") / "text.jsonl")


@pytest.fixture(scope="session")
def base(text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that was trained for a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWDIM_CACHE", str(cache))
        return small.target(text, tmp_path_factory.mktemp("base") / "out")
