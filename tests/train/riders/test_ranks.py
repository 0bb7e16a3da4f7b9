"""Two ranks train as one process does, replicated and sharded: placed models, and decay by the spectrum."""

from __future__ import annotations

import json

import pytest
import torch
from tests.ranks import finished
from tests.train.riders import ranked


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    home = tmp_path_factory.mktemp("ranks")
    done = finished(2, home, ranked.main)
    return [json.loads((done / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", ranked.PLACEMENTS)
def test_losses_are_those_of_one_process(kind: str, ranks: list[dict[str, list[float]]]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = ranked.run(kind, "", slice(None))
    torch.set_num_threads(threads)
    assert len({round(loss, 4) for loss in alone}) >= ranked.STEPS
    for rank in ranks:
        for wrap in ("ddp", "fsdp"):
            assert rank[f"{kind}-{wrap}"] == pytest.approx(alone, rel=1e-4), wrap
