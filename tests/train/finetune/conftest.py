from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.train.finetune.small import prune, rows
from tests.train.pretrain import small


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, the same pruned (dense and packed), and rows to train on."""
    home = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWDIM_CACHE", str(home / "cache"))
        small.run(small.write(home / "text.jsonl"), home / "dense")
        prune(home / "dense", home / "pruned")
        prune(home / "dense", home / "packed", "packed")
    rows(home)
    return home


@pytest.fixture(autouse=True)
def _cached(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOWDIM_CACHE", str(home / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
