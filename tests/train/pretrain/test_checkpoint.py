"""Two states of a run: the latest to go on from, the good one to go back to."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lowdim.runs.directory import Directory
from lowdim.train.loop import Loop
from lowdim.train.pretrain.checkpoint import Checkpoints


def loop() -> Loop:
    model = nn.Linear(2, 2)
    return Loop(model, torch.optim.AdamW(model.parameters()), loss=lambda net, x: net(x).sum())


@pytest.mark.parametrize("sharded", [False, True])
def test_the_good_state_stays_until_the_next_and_is_gone_on_from_where_it_is_the_latest(
    sharded: bool, tmp_path: Path
) -> None:
    made, batch = loop(), [torch.ones(1, 2)]
    with warnings.catch_warnings(), Directory(tmp_path / "out") as directory:
        warnings.simplefilter("ignore")  # of torch, which says that there is one process
        states = Checkpoints(directory.partial, directory, sharded)
        assert states.load(loop()) is None and states.load(loop(), good=True) is None
        seen = {}
        for step in range(1, 7):
            made.run(batch)
            states.save(made, {"seen": step}, good=step in (2, 4))
            seen[step] = made.model.weight.detach().clone()
            for good in (False, True):
                other = loop()
                back = states.load(other, good)
                wanted = step if not good else {1: None, 2: 2, 3: 2}.get(step, 4)
                assert back == (None if wanted is None else {"seen": wanted})
                if wanted is not None:
                    assert other.step == wanted and torch.equal(other.model.weight, seen[wanted])
        kept = [path.name for path in directory.partial.iterdir() if "shards-" in path.name and path.is_dir()]
        assert sorted(kept) == (["shards-4", "shards-6"] if sharded else [])
        states.drop()
        assert {path.name for path in directory.partial.iterdir()} <= {".lock"}
