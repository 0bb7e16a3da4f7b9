"""Rows of `finetune.py`: what choosing entries costs, and what their optimizer holds."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from finetune import Found, Place, Row

from lowdim.core.random import generator
from lowdim.models.disk.source import resolve
from lowdim.models.load import load
from lowdim.train.optimizers.lift import LIFT

SHAPE, RANK, BUDGET = (4096, 11008), 64, 128
"""Of the MLP of LLaMA-2 7B, with the settings that the paper has for it."""


def rows() -> list[Row]:
    """Return the rows."""
    return [Row("refresh", 8, refresh, seeds=False), Row("state", 6, state, seeds=False)]


def _like_weights(shape: tuple[int, int]) -> torch.Tensor:
    """Return a matrix whose singular values fall slowly, as those of trained weights do, on top of noise."""
    draw = generator(0, "weight")
    left = torch.randn(shape[0], 256, generator=draw) * torch.linspace(1, 0.1, 256)
    return 0.02 * (torch.randn(shape, generator=draw) + left @ torch.randn(256, shape[1], generator=draw) / 8)


def refresh(place: Place) -> dict[str, Any]:
    """Choose the entries of a 4096 x 11008 weight by the sketch, and by the full decomposition."""
    shape = (512, 1024) if place.quick else SHAPE
    weight, found = _like_weights(shape), {}
    chosen = {}
    for kind, rounds in (("randomised", 3), ("svd", 1)):
        rule = LIFT(rank=RANK, budget=BUDGET, decomposition=kind)  # type: ignore[arg-type]
        wall, used = [], []
        for _ in range(rounds):
            begun, before = time.perf_counter(), time.process_time()
            chosen[kind] = rule.chosen(weight, generator(0, "draw"))
            wall.append(time.perf_counter() - begun)
            used.append(time.process_time() - before)
        found |= {f"{kind}_seconds": min(wall), f"{kind}_cpu_seconds": min(used)}
    same = torch.isin(chosen["randomised"], chosen["svd"]).double().mean()
    ratios = {what: found[f"svd_{what}"] / found[f"randomised_{what}"] for what in ("seconds", "cpu_seconds")}
    more = {"ratio": ratios["seconds"], "cpu_ratio": ratios["cpu_seconds"], "same_entries": float(same)}
    return {"shape": list(shape), "rank": RANK, **found, **more}


def _now() -> tuple[float, float]:
    """Return the time, and that of all cores that this process has had, which other work does not stretch."""
    return time.perf_counter(), time.process_time()


def state(place: Place) -> dict[str, Any]:
    """Take steps of the embedded model with LIFT and with AdamW of all weights, in turn; choosing is apart."""
    path, found = resolve("builtin:smollm2-135m").path, {}
    ids = torch.randint(1000, (2, 64 if place.quick else 256), generator=generator(0, "ids"))
    for dtype in (torch.float32, torch.bfloat16):
        held: dict[str, Any] = {}
        for name in ("full", "lift"):
            model = load(path, dtype).train()
            optimizer: Any = (
                LIFT(rank=32, budget=16, every=10_000).build(model)
                if name == "lift"
                else torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
            )
            seconds: dict[str, list[float]] = {"step": [], "pass": [], "step_cpu": [], "pass_cpu": []}
            steps = 3 if place.quick else 6
            for index in range(steps + 1):
                begun = _now()
                model(input_ids=ids, labels=ids).loss.backward()
                middle = _now()
                optimizer.step()
                end = _now()
                if index:  # the first one chooses
                    for at, unit in enumerate(("", "_cpu")):
                        seconds[f"step{unit}"].append(end[at] - middle[at])
                        seconds[f"pass{unit}"].append(middle[at] - begun[at])
                else:
                    held[f"{name}_first_step"], held[f"{name}_first_step_cpu"] = end[0] - middle[0], end[1] - middle[1]
                optimizer.zero_grad()
            kept = [v for each in optimizer.state.values() for v in each.values() if isinstance(v, torch.Tensor)]
            held[f"{name}_bytes"] = sum(tensor.nbytes for tensor in kept)
            held |= {f"{name}_{what}_seconds": statistics.median(each) for what, each in seconds.items()}
            if name == "lift":
                held["numbers"] = sum(len(each["index"]) for each in optimizer.state.values())
                held["weights"] = sum(p.numel() for p in model.parameters())
            del model, optimizer
        found[str(dtype).removeprefix("torch.")] = held
    return found


def table(found: Found) -> str:
    """Return what was found, in words."""
    lines = []
    for each in found.get("refresh", []):
        lines.append(
            f"- Choosing entries of {each['shape'][0]} x {each['shape'][1]}, rank {each['rank']}: "
            f"{each['randomised_seconds']:.1f} s by random directions, {each['svd_seconds']:.1f} s by the full "
            f"decomposition, {each['ratio']:.1f} times; of all cores' time {each['cpu_ratio']:.1f} times; "
            f"{each['same_entries']:.1%} of the entries are the same."
        )
    for each in found.get("state", []):
        for dtype in ("float32", "bfloat16"):
            held = each[dtype]
            whole, few = (held[f"{n}_pass_cpu_seconds"] + held[f"{n}_step_cpu_seconds"] for n in ("full", "lift"))
            own, theirs = (f"{held[f'{name}_bytes'] / 2**20:.1f} MB" for name in ("lift", "full"))
            step, rival = (f"{1000 * held[f'{name}_step_cpu_seconds']:.0f} ms" for name in ("lift", "full"))
            lines.append(
                f"- {dtype}, {held['numbers']:,} of {held['weights']:,} weights: state {own} against {theirs} of "
                f"AdamW; in the time of all cores, the optimizer's part of a step is {step} against {rival}, a whole "
                f"step {few:.2f} s against {whole:.2f} s ({few / whole:.2f} times), the first choice "
                f"{held['lift_first_step_cpu']:.1f} s."
            )
    return "\n".join(lines)
