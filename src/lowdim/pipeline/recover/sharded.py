"""The end-to-end stage of models that no rank holds whole: blocks cut over the ranks, states kept by each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lowdim.models import ranks
from lowdim.models.disk.shard import nbytes, write_file
from lowdim.prune.keeper import Keeper
from lowdim.runs import tree
from lowdim.runs.directory import write_whole
from lowdim.train.compare.store import KEY, read
from lowdim.train.loop import Loop
from lowdim.train.sparse.distributed import full, local

_LATEST, _GOOD, _END = "sharded", "sharded_good", "sharded_end"


def shard(block: nn.Module, compute: torch.dtype, masters: Mapping[str, Tensor] | None = None) -> None:
    """Cut a block over the ranks, in place; it computes in ``compute``.

    Args:
        block: of the student or the teacher.
        compute: of the forward and backward passes.
        masters: by name in the block, the fp32 values of what is trained, which become its weights; without any they
            are left as they are.
    """
    if masters is not None:
        block.float()
        with torch.no_grad():
            for name, master in masters.items():
                block.get_parameter(name).copy_(master)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    fully_shard(block, mp_policy=policy, reshard_after_forward=True)  # no module around it would say so


def whole(parameter: nn.Parameter, held: Tensor) -> Tensor:
    """Return in one piece what a rank holds in the place of a weight; every rank must call it."""
    return full(held if isinstance(held, DTensor) else _placed(held, parameter))


def _placed(held: Tensor, like: Tensor) -> Tensor:
    """Return a rank's part of a tensor as one that is cut as ``like`` is, where that is cut."""
    if not isinstance(like, DTensor):
        return held
    place: dict[str, Any] = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(held.to(local(like).device), like.device_mesh, like.placements, **place)


class OwnStates:
    """The states of a loop whose weights are sharded: each rank's part in a file of its own.

    Args:
        partial: the directory of the run.
        keeper: of the run, which says which step all ranks have written.
        loop: whose states they are.
    """

    def __init__(self, partial: Path, keeper: Keeper, loop: Loop) -> None:
        self._partial, self._keeper, self._loop = partial, keeper, loop

    def _file(self, name: object) -> Path:
        return self._partial / f".distill-{name}-{ranks.rank()}.safetensors"

    def put(self, content: Any, good: bool = False) -> None:
        """Write a state as `States.put` does; it counts once every rank has written its own."""
        file = self._write(self._loop.step, content)
        for name in (_GOOD, _LATEST) if good else (_LATEST,):  # killed in between, a run goes on from the one before
            self._keeper.remember(name, self._loop.step)
        needed = {self._file(self._keeper.recall(name)) for name in (_LATEST, _GOOD)} | {file}
        for old in self._partial.glob(self._file("*").name):
            if old not in needed:
                old.unlink()

    def end(self, content: Any) -> None:
        """Write how the training ended; it counts once every rank has written its own."""
        self._write(_END, content)
        self._keeper.remember(_END, True)

    def _write(self, name: object, content: Any) -> Path:
        text, tensors = tree.pack(_locals(content))
        file, size = self._file(name), sum(map(nbytes, tensors.values()))
        write_whole(file, lambda target: write_file(target, tensors, {KEY: text}), size, self._partial)
        ranks.barrier()
        return file

    def get(self, good: bool = False) -> Any:
        """Return the last state, or the last good one; None if there is none."""
        return self._read(self._keeper.recall(_GOOD if good else _LATEST))

    def ended(self) -> Any:
        """Return what `end` wrote, or None."""
        return self._read(_END if self._keeper.recall(_END) else None)

    def _read(self, name: object) -> Any:
        if name is None:
            return None
        state, model = read(self._file(name)), self._loop.model.state_dict()
        state["model"] = {name: _placed(held, model[name]) for name, held in state["model"].items()}
        own = [parameter for group in self._loop.optimizer.param_groups for parameter in group["params"]]
        for index, moments in state["optimizer"]["state"].items():
            for name, held in moments.items():
                if isinstance(held, Tensor) and held.dim():
                    moments[name] = _placed(held, own[index])
        return state


def _locals(content: Any) -> Any:
    """Return a nested state with this rank's part in the place of each sharded tensor."""
    if isinstance(content, Mapping):
        return {key: _locals(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_locals(value) for value in content)
    return local(content) if isinstance(content, Tensor) else content
