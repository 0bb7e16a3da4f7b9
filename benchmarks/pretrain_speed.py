"""Tokens per second of a step of ``lowdim pretrain`` over the plainest torch loop; in turn, in one run.

Both have the same model, weights, batches, dtype, threads, clipping and AdamW with torch's own choice of kernels: the
plain loop is forward with the model's own loss, backward, clip, step, zero. Beside it the same loop against itself says
how far this machine repeats itself.

    python benchmarks/pretrain_speed.py --model 35m --json benchmarks/results/pretrain_speed.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from waiting import sleep_while_waiting

from lowdim.core.machine import machine
from lowdim.train.pretrain import speed
from lowdim.train.pretrain.engine import Engine
from lowdim.train.pretrain.network import make
from lowdim.train.pretrain.prepare import Prepared, prepare
from lowdim.train.pretrain.recipe import Pretraining


def ours(prepared: Prepared) -> Callable[[int], None]:
    """Return what takes a step of lowdim's, with its log line."""
    run = Engine().begin(prepared)
    return lambda step: void(run.loop.run(run.batches.step(step), lambda s, loss: void(run._line(s, loss, 1.0))))


def plain(prepared: Prepared) -> Callable[[int], None]:
    """Return what takes a step of the plain loop's."""
    recipe = prepared.recipe
    model, _ = make(recipe, prepared.config, None, prepared.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    rows = Engine().begin(prepared).batches

    def step(index: int) -> None:
        (micro,) = rows.step(index)
        ids: Tensor = micro.ids.to(prepared.device)
        whole = recipe.precision == "float32"
        with contextlib.nullcontext() if whole else torch.autocast(prepared.device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def void(_: object) -> None:
    """Return nothing."""


def main() -> None:
    """Time both in turn; print tokens per second and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="35m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sleep_while_waiting()
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "text.jsonl")
        rows = ({"text": " ".join(str(i * j % 977) for j in range(600))} for i in range(60))
        source.write_text("\n".join(map(json.dumps, rows)))
        recipe = Pretraining(
            model={"name": given.model, "vocab_size": 32_000},
            data={"source": str(source), "vocabulary": 1000},
            steps=100,
            batch=given.batch,
            length=given.length,
            precision=given.precision,
        )
        prepared = prepare(recipe)
    programs = {"lowdim": ours(prepared), "plain loop": plain(prepared), "plain loop again": plain(prepared)}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for step in range(given.rounds + 1):
        order = list(programs) if step % 2 else list(programs)[::-1]
        for name in order:
            begun = time.perf_counter()
            programs[name](step)
            if prepared.device.type == "cuda":
                torch.cuda.synchronize()
            if step:
                times[name].append(time.perf_counter() - begun)
    tokens = given.batch * given.length
    rates = {name: tokens / statistics.median(seconds) for name, seconds in times.items()}
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds, times["plain loop"], strict=True))
        for name, seconds in times.items()
    }
    peak = speed.matmul_peak(torch.float32 if given.precision == "float32" else torch.bfloat16, prepared.device)
    mfu = rates["lowdim"] * prepared.flops / peak
    for name, rate in rates.items():
        print(f"{name:<18} {rate:8.0f} tokens/s {ratios[name]:6.3f}x (median of the ratios, step by step)")
    print(f"lowdim: {mfu:.0%} of {peak / 1e9:.0f} GFLOP/s, the matmul peak measured here")
    if given.json:
        settings = vars(given) | {"json": None}
        found = {"machine": machine(), "settings": settings, "tokens_per_s": rates, "ratio": ratios, "seconds": times}
        given.json.write_text(json.dumps(found | {"mfu": mfu, "peak_flops_per_s": peak}, indent=1) + "\n")


if __name__ == "__main__":
    main()
