"""What the ranks of a data-parallel run do: started by `torch.multiprocessing`, they write what they saw to files."""

from __future__ import annotations

import datetime
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.prune import tiny

from lowdim.prune import keeper
from lowdim.prune.api import prune


def main(rank: int, size: int, home: str, jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1000 + rank)
    random.seed(rank)
    store = dist.FileStore(f"{home}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(minutes=10))
    opened = keeper.Checkpoint
    keeper.Checkpoint = lambda path: time.sleep(0.2 * rank) or opened(path)  # type: ignore[misc,assignment,func-returns-value]
    try:
        for number, job in enumerate(jobs):
            work(rank, Path(home) / str(number), job)
    finally:
        dist.destroy_process_group()


def work(rank: int, home: Path, job: dict[str, Any]) -> None:
    """Prune in memory and on disk, in batches of so few tokens that there are several."""
    import lowdim.prune.api as api

    api.TOKENS_PER_BATCH = job["batch"]
    home.mkdir(exist_ok=True)
    recipe = tiny.recipe(**job["settings"])
    made = tiny.in_memory(tiny.model(job["kind"]), recipe, tiny.padded())
    torch.save(tiny.weights(made), home / f"{rank}.pt")
    result = prune(job["source"], recipe, calibration=tiny.padded(), out=home / "out")
    (home / f"{rank}.json").write_text(json.dumps(result.manifest["hashes"]["masks"]))
