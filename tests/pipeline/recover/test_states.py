"""Two states of the second stage: the latest to go on from, the good one to go back to."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowdim.models.disk.writer import Writer
from lowdim.pipeline.recover.sharded import OwnStates
from lowdim.pipeline.recover.shared import States
from lowdim.runs.lock import OutputError
from lowdim.train.loop import Loop


class Memory:
    """What a `Keeper` remembers."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def remember(self, key: str, value: Any) -> None:
        self.held[key] = value

    def recall(self, key: str) -> Any:
        return self.held.get(key)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_good_state_stays_until_the_next_and_is_gone_on_from_where_it_is_the_latest(
    sharded: bool, tmp_path: Path
) -> None:
    model = nn.Linear(2, 2)
    loop = Loop(model, torch.optim.AdamW(model.parameters()), loss=lambda net, x: net(x).sum())
    with Writer(tmp_path / "out") as writer:
        states: Any = States(writer, writer.directory.partial)
        if sharded:
            states = OwnStates(writer.directory.partial, Memory(), loop)  # type: ignore[arg-type]
        assert states.get() is None and states.get(good=True) is None
        weights = {}
        for step in range(1, 7):
            loop.run([torch.ones(1, 2)])
            states.put(loop.state_dict(), good=step in (2, 4))
            weights[step] = model.weight.detach().clone()
            for good, wanted in ((False, step), (True, {1: None, 2: 2, 3: 2}.get(step, 4))):
                found = states.get(good)
                assert (found and found["step"]) == wanted
                if found is not None:
                    assert torch.equal(found["model"]["weight"], weights[wanted or 0])
        assert len(list(writer.directory.partial.glob(".distill*"))) == 2


@pytest.mark.parametrize("sharded", [False, True])
def test_a_state_that_the_disk_has_no_room_for_leaves_the_one_before(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = nn.Linear(2, 2)
    loop = Loop(model, torch.optim.AdamW(model.parameters()), loss=lambda net, x: net(x).sum())
    with Writer(tmp_path / "out") as writer:
        partial = writer.directory.partial
        states: Any = OwnStates(partial, Memory(), loop) if sharded else States(writer, partial)  # type: ignore[arg-type]
        loop.run([torch.ones(1, 2)])
        states.put(loop.state_dict())
        loop.run([torch.ones(1, 2)])
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"distill-.*safetensors \(.* bytes\): No space left .*resume from there"):
            states.put(loop.state_dict())
        assert states.get()["step"] == 1 and not list(partial.glob("*.tmp"))
