"""Two and three ranks train the same masks as one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.train import ranked
from torch import multiprocessing


@pytest.fixture(scope="module", params=[2, 3])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, object]]]:
    home = tmp_path_factory.mktemp(f"ranks{request.param}")
    multiprocessing.spawn(ranked.main, (request.param, str(home)), nprocs=request.param)  # type: ignore[no-untyped-call]
    return [json.loads(Path(home / f"{rank}.json").read_text()) for rank in range(request.param)]


def test_all_ranks_agree(ranks: list[dict[str, dict[str, object]]]) -> None:
    assert len(ranks[0]) == 3 * len(ranked.METHODS)
    assert all(rank == ranks[0] for rank in ranks)


@pytest.mark.parametrize("method", ranked.METHODS, ids=lambda m: type(m).__name__)
def test_and_have_the_masks_of_one_process(method: object, ranks: list[dict[str, dict[str, object]]]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = ranked.run(ranked.model(0), method, slice(None), False)  # type: ignore[arg-type]
    torch.set_num_threads(threads)
    name = type(method).__name__
    assert len(set(alone["hashes"])) > 1
    for key in (f"ddp-{name}-False", f"ddp-{name}-True", f"fsdp-{name}"):
        assert ranks[0][key] == alone, key
