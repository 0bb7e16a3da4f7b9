"""A made-up pre-training, as `lowdim pretrain` leaves it on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowdim.train.pretrain.recipe import Pretraining


def facts(steps: int = 300, **changed: Any) -> dict[str, Any]:
    recipe = Pretraining(
        model={"name": "9m", "num_hidden_layers": 12},
        placement="lns",
        optimizer={"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        steps=steps,
    )
    return {
        "schema": 1,
        "recipe": recipe.to_dict(),
        "model": None,
        "versions": {"lowdim": "0.1.0", "torch": "2.13.0"},
        "data": {"hash": "ab" * 16, "train": {"documents": 9, "tokens": 5000}, "dtype": "uint16"},
        "steps": steps,
        "tokens": steps * 100,
        "curve": [
            {"step": s, "tokens": s * 100, "loss": 4.0 + 1 / s} for s in range(steps // 3, steps + 1, steps // 3)
        ],
        "parameters": {"all": 74_016, "blocks": 41_216},
        "validation": {"loss": 4.0 + 1 / steps, "perplexity": 54.8, "sequences": 196},
        "diverged": None,
        **changed,
    }


RUN = {
    "stages": [{"name": "Pre-train", "seconds": 65.0}],
    "tokens_per_s": 2147.2,
    "peak_flops_per_s": 2.75e10,
    "mfu": 0.031,
    "peak_bytes": [551e6, 600e6],
    "processes": 2,
    "device": "cpu",
    "machine": {"cpu": "x", "cores": 2},
    "command": "lowdim pretrain --recipe r.yaml --out smol",
}


def log(steps: int = 300) -> list[dict[str, Any]]:
    lines = list[dict[str, Any]]()
    for step in range(1, steps + 1):
        rate = 3e-3 * min(1.0, (step - 1) / 30)
        lines.append({"step": step, "loss": 4 + 2 / step, "lr": rate, "norm": 0.5, "tokens_per_s": 2000.0 + step})
        if step % (steps // 3) == 0:
            lines.append({"step": step, "validation_loss": 4 + 1 / step})
    return lines


def write(out: Path, found: dict[str, Any] | None = None, lines: list[dict[str, Any]] | None = None) -> Path:
    out.mkdir()
    (out / "pretraining.json").write_text(json.dumps(facts() if found is None else found))
    out.with_name(f"{out.name}.run.json").write_text(json.dumps(RUN))
    text = "".join(json.dumps(line) + "\n" for line in (log() if lines is None else lines))
    out.with_name(f"{out.name}.log.jsonl").write_text(text)
    return out
