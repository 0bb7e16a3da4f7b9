"""Masks move on two and three ranks, copies and shards, as they do in one process."""

from __future__ import annotations

import json

import pytest
import torch
from tests.ranks import finished
from tests.train.nm import moved

from lowdim.core.pattern import Pattern


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[moved.Found]:
    size, home = request.param, tmp_path_factory.mktemp(f"moved{request.param}")
    done = finished(size, home, moved.main)
    return [json.loads((done / f"{rank}.json").read_text()) for rank in range(size)]


def test_all_ranks_agree(ranks: list[moved.Found]) -> None:
    assert len(ranks[0]) == 2 * len(moved.PATTERNS) + 1
    assert all(rank == ranks[0] for rank in ranks)


@pytest.mark.parametrize("pattern", moved.PATTERNS, ids=repr)
def test_and_have_the_masks_and_losses_of_one_process(pattern: Pattern, ranks: list[moved.Found]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = moved.run(pattern, slice(None))
    torch.set_num_threads(threads)
    assert len(set(alone["hashes"])) > 2
    for key in (f"ddp-{pattern!r}", f"fsdp-{pattern!r}"):
        assert ranks[0][key]["hashes"] == alone["hashes"], key
        assert ranks[0][key]["history"] == alone["history"], key
        assert ranks[0][key]["losses"] == pytest.approx(alone["losses"], rel=1e-4), key


def test_a_sharded_run_goes_on_where_it_stopped(ranks: list[moved.Found]) -> None:
    assert ranks[0]["resumed"] == ranks[0][f"fsdp-{moved.PATTERNS[0]!r}"]
