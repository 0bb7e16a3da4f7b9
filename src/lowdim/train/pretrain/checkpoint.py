"""What a run goes on from: one file, or, of a sharded model, a directory that any number of processes can read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from transformers import PreTrainedModel

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json
from lowdim.models import ranks
from lowdim.runs.directory import Directory
from lowdim.train.compare.store import CHECKPOINT, Store, read, saved
from lowdim.train.loop import Loop

_GOOD = "good.safetensors"
_SHARDS, _LATEST, _GOOD_SHARDS = "shards-", "shards.json", "shards-good.json"


class Checkpoints:
    """Saves and restores a loop, and what the run keeps beside it.

    There are two states: the latest, to go on from, and a good one, saved at certain steps whatever the clock says, to
    go back to.

    Args:
        partial: the directory of the run in the making; every process names it.
        directory: the same, on the process that writes.
        sharded: whether the model is.
    """

    def __init__(self, partial: Path, directory: Directory | None, sharded: bool) -> None:
        self.partial, self._directory, self._sharded = partial, directory, sharded

    def save(self, loop: Loop, beside: Mapping[str, Any], good: bool = False) -> None:
        """Write a state in the place of those before it, a good one in that of both; every process calls it."""
        if self._sharded:
            self._save_shards(loop, beside, good)
        elif self._directory is not None:
            store = Store(self._directory)
            store.put(_GOOD if good else CHECKPOINT, {"loop": loop.state_dict(), "beside": dict(beside)})
            if good:
                store.drop(CHECKPOINT)

    def load(self, loop: Loop, good: bool = False) -> dict[str, Any] | None:
        """Go on from the state that was saved last, or back to the good one; return what was kept beside it, if any."""
        if self._sharded:
            return self._load_shards(loop, good)
        file = saved(self.partial, CHECKPOINT, _GOOD, good)
        if file is None:
            return None
        found = read(file)
        loop.load_state_dict(found["loop"])
        beside: dict[str, Any] = found["beside"]
        return beside

    def drop(self) -> None:
        """Remove the states; on the process that writes."""
        if self._directory is not None:
            Store(self._directory).drop(CHECKPOINT, _GOOD, _LATEST, _GOOD_SHARDS)
            for old in self.partial.glob(f"{_SHARDS}*"):
                if old.is_dir():
                    shutil.rmtree(old)

    def _save_shards(self, loop: Loop, beside: Mapping[str, Any], good: bool) -> None:
        place = self.partial / f"{_SHARDS}{loop.step}"
        model, optimizer = get_state_dict(loop.model, loop.optimizer)
        state = {"model": model, "optimizer": optimizer, "riders": _riding(loop)}
        _told(lambda: state_dict_saver.save(state, checkpoint_id=place), f"the state of step {loop.step} is not saved")
        if self._directory is not None:
            name = _GOOD_SHARDS if good else _LATEST
            self._directory.write_json(name, {"place": place.name, "step": loop.step, "beside": dict(beside)})
            if good:
                Store(self._directory).drop(_LATEST)
            named = [self.partial / each for each in (_LATEST, _GOOD_SHARDS)]
            needed = {read_json(each)["place"] for each in named if each.exists()}
            for old in self.partial.glob(f"{_SHARDS}*"):
                if old.is_dir() and old.name not in needed:
                    shutil.rmtree(old)
        ranks.barrier()

    def _load_shards(self, loop: Loop, good: bool) -> dict[str, Any] | None:
        file = saved(self.partial, _LATEST, _GOOD_SHARDS, good)
        if file is None:
            return None
        found = read_json(file)
        model, optimizer = get_state_dict(loop.model, loop.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer, "riders": _riding(loop)}
        place = self.partial / found["place"]
        _told(lambda: state_dict_loader.load(state, checkpoint_id=place), f"{place} cannot be read")
        set_state_dict(loop.model, loop.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        for index, rider in enumerate(loop.riders):
            rider.load_state_dict(state["riders"][str(index)])
        loop.step = found["step"]
        beside: dict[str, Any] = found["beside"]
        return beside


def _told(work: Callable[[], object], wrong: str) -> None:
    """Turn what one of the processes could not do into an error of all of them."""
    try:
        work()
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(
            f"{wrong}: process {rank} says {' '.join(str(cause).split())[:200]!r}. Free the disk or mend the directory,"
            " then resume from the last state that is whole."
        ) from error


def _riding(loop: Loop) -> dict[str, Any]:
    return {str(index): rider.state_dict() for index, rider in enumerate(loop.riders)}


def whole(model: nn.Module, plain: PreTrainedModel | None) -> PreTrainedModel | None:
    """Return the trained model in one piece, on the process that writes; every process calls it.

    Args:
        model: as it was trained.
        plain: one like it in one piece, to take the weights of shards.
    """
    model = ranks.unwrapped(model)
    if isinstance(model, PreTrainedModel) and not any(hasattr(p, "full_tensor") for p in model.parameters()):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if plain is not None:
        plain.load_state_dict(weights)
    return plain
