"""What the ranks of a pre-training do: started by `torch.multiprocessing`, they write what they saw to files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tests.train.gloo import joined
from tests.train.pretrain import small
from torch.distributed.checkpoint import state_dict_saver

from lowdim.core.errors import LowdimError
from lowdim.train.pretrain import run as running
from lowdim.train.pretrain.api import pretrain
from lowdim.train.pretrain.checkpoint import Checkpoints
from lowdim.train.pretrain.engine import Engine

STEPS = 3
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"precision": "bfloat16", "accumulate": 2, "data": {"pack": False}},
    "fsdp": {"parallel": "fsdp", "accumulate": 2, "placement": {"name": "prores", "steps": 2}},
    "fsdp-muon": {"parallel": "fsdp", "optimizer": {"name": "muon", "lr": 1e-2}},
}
LAYERED: dict[str, dict[str, Any]] = {
    "turns": {
        "sampling": {"name": "lisa", "active": 1, "every": 2},
        "from-scratch": {"name": "s-ste", "mvue": False},
        "rank": "uniform",
        "factors": {"include": ["*.self_attn.*"], "keep": 0.5},
    },
    "step": {"from-scratch": {"name": "step", "least": 0.0, "most": 0.3}},
    "factors": {"parallel": "fsdp", "rank": "uniform", "factors": {"keep": 0.5}},
    "int8": {
        "optimizer": {"name": "q-galore", "rank": 4, "gap": 2, "inner": "adamw"},
        "model": {"hidden_size": 32, "intermediate_size": 64},
    },
    "int8-shards": {
        "parallel": "fsdp",
        "optimizer": {"name": "q-galore", "rank": 4, "gap": 2, "inner": "adamw"},
        "model": {"hidden_size": 32, "intermediate_size": 64},
    },
}


def settings(kind: str) -> dict[str, Any]:
    return {"steps": STEPS, "batch": 7, "save_seconds": 0.0, **(KINDS | LAYERED)[kind]}


def ends(out: Path, kind: str, at: int | None = None) -> dict[str, Any]:
    """Train, or go on; with ``at`` the process that it is called in raises once the state of that step is saved."""
    recipe = small.recipe(out.parent / "text.jsonl", **settings(kind))
    real, seen = running.Run._line, list[float]()

    def line(self: Any, step: int, loss: float, seconds: float) -> dict[str, Any]:
        if recipe.parallel == "ddp":  # every rank must have the same weights after every step
            seen.append(sum(float(p.detach().double().abs().sum()) for p in self.model.parameters()))
        if at is not None and step == at + 1:
            raise InterruptedError
        return real(self, step, loss, seconds)

    running.Run._line = line  # type: ignore[method-assign]
    try:
        made = pretrain(recipe, out=out, resume=True)
        return {"curve": made.facts["curve"], "tokens": made.facts["tokens"], "weights": seen[-1:]}
    except InterruptedError:
        return {}
    finally:
        running.Run._line = real  # type: ignore[method-assign]


@contextmanager
def begun(rank: int, size: int, home: str) -> Iterator[Path]:
    """Join the others once there is a text to train on."""
    os.environ["LOWDIM_CACHE"] = f"{home}/cache"
    if rank == 0:
        small.write(Path(home) / "text.jsonl")
    with joined(rank, size, home):
        dist.barrier()
        yield Path(home)


def main(rank: int, size: int, home: str) -> None:
    found = {}
    with begun(rank, size, home) as place:
        for kind in KINDS:
            found[kind] = ends(place / kind, kind)
        for kind in ("ddp", "fsdp"):
            ends(place / f"{kind}-resumed", kind, at=2)
            dist.barrier()
            found[f"{kind}-resumed"] = ends(place / f"{kind}-resumed", kind)
        ends(place / "resharded", "fsdp", at=2)
    (place / f"{rank}.json").write_text(json.dumps(found))


def layered(rank: int, size: int, home: str, kind: str) -> None:
    found = {}
    with begun(rank, size, home) as place:
        found["whole"] = ends(place / "whole", kind)
        ends(place / "resumed", kind, at=2)
        dist.barrier()
        found["resumed"] = ends(place / "resumed", kind)
    (place / f"{rank}.json").write_text(json.dumps(found))


PLACES: dict[str, tuple[Any, str]] = {
    "loss": (running.Run, "_loss"),
    "look": (running.Run, "judge"),
    "load": (Checkpoints, "load"),
    "save": (Checkpoints, "save"),
    "shards": (state_dict_saver, "_save_state_dict"),
    "write": (Engine, "model"),
}
"""What a process dies in: in the third step, or wherever it is called first."""


def mortal(kind: str) -> dict[str, Any]:
    return settings(kind) | {"precision": "float32"}  # bfloat16 is slow where a processor has none


def dying(rank: int, size: int, home: str, place: str, kind: str) -> None:
    """Let the last rank die; the others say what they are told."""
    where, name = PLACES[place]
    real = getattr(where, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if rank == size - 1 and (place != "loss" or args[0].loop.step == 2):
            os._exit(0)
        return real(*args, **kwargs)

    setattr(where, name, call)
    try:
        with begun(rank, size, home) as there:
            pretrain(small.recipe(there / "text.jsonl", **mortal(kind)), out=there / "out")
    except LowdimError as error:
        (Path(home) / "said").write_text(str(error))
    except BaseException as error:
        (Path(home) / "raised").write_text(repr(error))
    os._exit(0)
