"""Time and memory of recovery on a GPU: both stages of the embedded model, and the block stage of a 7B shape.

The embedded model is pruned to 50% and trained for some minutes a stage. Of the 7B shape, weights are random; models of
two and of four blocks are timed and the rest is extrapolated. The plan's figures stand beside what was measured.

    python benchmarks/gpu/recover.py --json benchmarks/results/gpu_recover.json
    python benchmarks/gpu/recover.py --device cpu --size tiny    # the same code, at a size that any machine can take
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdim.core.machine import machine
from lowdim.data.batch import split
from lowdim.data.calibration import calibration
from lowdim.pipeline.recover.api import plan, recover
from lowdim.pipeline.recover.blocks import split_text
from lowdim.pipeline.recover.fit import LOOKS
from lowdim.pipeline.recover.pair import open_pair
from lowdim.pipeline.recover.plan import memory
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe
from lowdim.runs.clock import peak_memory

sys.path.insert(0, str(Path(__file__).parents[1]))
from scale import BLOCKS, DEPTHS, VOCABULARY, write

SIZES: dict[str, dict[str, Any]] = {
    "full": {"shape": "7b", "samples": 512, "context": 512, "batch_tokens": 2048, "minutes": 5.0},
    "tiny": {"shape": "tiny", "samples": 16, "context": 32, "batch_tokens": 128, "minutes": None},
}
"""The shape that is extrapolated, the text of all recoveries, the minutes of each stage of the embedded model."""


def measure(model: Path | str, recipe: Recovery, tokens: Tensor | None, out: Path) -> dict[str, Any]:
    """Recover by one stage; return seconds and peak bytes, planned and measured."""
    planned = plan(model, recipe, calibration=tokens)
    cuda = recipe.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    made = recover(model, recipe, out=out, calibration=tokens, stages=planned.stages)
    seconds = time.perf_counter() - begun
    own, recovery = planned.stages[recipe.stage], made.manifest["recovery"]
    held = [recovery["distill"]] if recipe.stage == "distill" else [*recovery["blocks"].values()]
    return {
        "stage": recipe.stage,
        "blocks": len(recovery["blocks"]) or None,
        "steps": own.steps,
        "seconds": seconds,
        "planned_seconds": own.seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else peak_memory(),
        "planned_bytes": planned.memory[recipe.stage],
        "held_out": [sum(each[key] for each in held) / len(held) for key in ("before", "after")],
    }


def settings(size: dict[str, Any], device: str, **own: Any) -> Recovery:
    """Return a recovery of this benchmark, by one stage."""
    text = {"samples": size["samples"], "context": size["context"]}
    return Recovery(
        calibration=text, batch_tokens=size["batch_tokens"], evaluation={"text": None}, device=device, **own
    )


def embedded(name: str, device: str, home: Path) -> list[dict[str, Any]]:
    """Measure both stages, one after the other, of the embedded model, or of a tiny one with random weights."""
    size, tokens, dense = SIZES[name], None, "builtin:smollm2-135m"
    if name == "tiny":
        dense, tokens = str(write(home / "dense", "tiny", DEPTHS["tiny"])), text(size)
    text_of = {"samples": min(32, size["samples"]), "context": size["context"]}
    recipe = Recipe(sparsity=0.5, method="refit", calibration=text_of, evaluation={"text": None}, device=device)
    prune(dense, recipe, calibration=tokens, out=home / "pruned")
    rows, student = [], home / "pruned"
    for stage in ("blocks", "distill"):
        recovery = settings(size, device, stage=stage, minutes=size["minutes"])
        rows.append(
            {"model": "embedded" if name == "full" else name, **measure(student, recovery, tokens, home / stage)}
        )
        student = home / stage
    return rows


def text(size: dict[str, Any]) -> Tensor:
    """Return random tokens, ``[samples, context]``."""
    return torch.randint(1, VOCABULARY, (size["samples"], size["context"]), generator=torch.Generator().manual_seed(0))


def extrapolated(name: str, device: str, home: Path) -> list[dict[str, Any]]:
    """Measure the block stage of models of two and four blocks; append what all blocks of that shape would take."""
    size, rows = SIZES[name], list[dict[str, Any]]()
    shape, tokens = size["shape"], text(size)
    for depth in (BLOCKS, 2 * BLOCKS):
        model = write(home / f"{shape}-{depth}", shape, depth)
        never = {"passes": 1.0, "patience": LOOKS}  # a block like its teacher gains nothing, and would end early
        recipe = settings(size, device, stage="blocks", teacher=str(model), blocks=never)
        found = {"model": shape, **measure(model, recipe, tokens, home / f"{shape}-{depth}-out")}
        data = calibration(tokens, samples=size["samples"], context=size["context"])
        batches = split_text(list(split([data.whole], recipe.batch_tokens)), recipe.calibration.held)
        needed = memory(open_pair(model, recipe), batches, len(batches.train))["distill"]
        rows.append(found | {"distill_planned_bytes": needed})
    two, four = rows
    whole = {"model": f"{shape}, extrapolated", "stage": "blocks", "blocks": DEPTHS[shape], "steps": two["steps"]}
    for key in ("seconds", "planned_seconds", "distill_planned_bytes"):
        whole[key] = two[key] + (four[key] - two[key]) / BLOCKS * (DEPTHS[shape] - BLOCKS)
    return [*rows, whole | {key: four[key] for key in ("peak_bytes", "planned_bytes")}]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| model | stage | blocks | steps | s | planned | peak MB | planned | held-out |", f"|{'---|' * 9}"]
    for row in rows:
        held = " to ".join(f"{value:.4g}" for value in row.get("held_out", ()))
        lines.append(
            f"| {row['model']} | {row['stage']} | {row['blocks'] or ''} | {row['steps']} | {row['seconds']:.1f} "
            f"| {row['planned_seconds']:.1f} | {row['peak_bytes'] / 2**20:,.0f} | {row['planned_bytes'] / 2**20:,.0f} "
            f"| {held} |"
        )
    last = rows[-1]
    lines += ["", f"End to end, {last['model']}: {last['distill_planned_bytes'] / 2**30:,.1f} GB, planned."]
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(given)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU. --device cpu --size tiny runs the same code without one.")
    if asked.device == "cpu" and asked.size == "full":
        parser.error(
            "--device cpu is there to try the code: give --size tiny. benchmarks/scale.py measures processors."
        )
    with tempfile.TemporaryDirectory() as place:
        rows = [each for part in (embedded, extrapolated) for each in part(asked.size, asked.device, Path(place))]
    about = torch.cuda.get_device_name() if asked.device == "cuda" else "a processor"
    print(f"{about}, torch {torch.__version__}:\n\n{table(rows)}")
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine(), "device": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
