"""Made-up sweeps of pre-trainings, as `lowdim sweep` leaves them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

AXIS = "optimizer.lr"


def loss_of(rate: float, placement: str, seed: int) -> float:
    """A bowl over the logarithm of the rate, whose bottom is at 0.01 for lns and at 0.1 for pre-ln."""
    steps = {0.001: 0, 0.01: 1, 0.1: 2}[rate]
    bottom, least = {"lns": (1, 4.0), "pre-ln": (2, 3.9)}[placement]
    return least + 0.1 * (steps - bottom) ** 2 + 0.01 * seed


def write(
    out: Path,
    *,
    rates: tuple[float, ...] = (0.001, 0.01, 0.1),
    placements: tuple[str, ...] = ("pre-ln", "lns"),
    seeds: tuple[int, ...] = (0, 1),
    states: dict[tuple[float, str, int], str] | None = None,
    logs: bool = True,
    report: tuple[str, ...] = (),
) -> Path:
    """Write ``sweep.json`` and what the runs left; every run is finished unless ``states`` says otherwise."""
    runs, values = list[dict[str, Any]](), dict[tuple[float, str], list[tuple[str, float]]]()
    for rate in rates:
        for placement in placements:
            for seed in seeds:
                state = (states or {}).get((rate, placement, seed), "finished")
                axes = {AXIS: rate, "placement": placement, "seed": seed}
                name = ",".join(f"{key}={value}" for key, value in axes.items())
                error = {"error": f"training {state} at step 7"} if state in ("failed", "diverged") else {}
                runs.append({"index": len(runs), "name": name, "axes": axes, "state": state, "seconds": 60.0, **error})
                values.setdefault((rate, placement), []).append((state, loss_of(rate, placement, seed)))
                (out / name).mkdir(parents=True)
                if logs and state != "new":
                    (out / name / "out.log.jsonl").write_text(_log(loss_of(rate, placement, seed)))
    table = [_row(rate, placement, found) for (rate, placement), found in values.items()]
    grid = {AXIS: list(rates), "placement": list(placements), "seed": list(seeds)}
    recipe = {"command": "pretrain", "arguments": [], "grid": [grid], "over": None, "report": list(report)}
    (out / "sweep.json").write_text(json.dumps({"schema": 1, "recipe": recipe, "runs": runs, "table": table}))
    return out


def _log(end: float) -> str:
    lines = list[dict[str, Any]]()
    for step in range(1, 301):
        lines.append({"step": step, "loss": end + 3 / step**0.5, "lr": 0.01, "norm": 1.0, "tokens_per_s": 100.0})
        if step % 50 == 0:
            lines.append({"step": step, "validation_loss": end + 1.5 / step})
    return "".join(json.dumps(line) + "\n" for line in lines)


def _row(rate: float, placement: str, found: list[tuple[str, float]]) -> dict[str, Any]:
    known = [value for state, value in found if state == "finished"]
    states = [state for state, _ in found]
    others = [f"{states.count(s)} {s}" for s in dict.fromkeys(states) if s != "finished"]
    return {
        "axes": {AXIS: rate, "placement": placement},
        "runs": ", ".join([f"{len(known)} of {len(found)}", *others]) if others else str(len(known)),
        "errors": list(dict.fromkeys(f"training {s} at step 7" for s in states if s in ("failed", "diverged"))),
        "mean": {"validation.loss": fmean(known) if known else None, "peak": 1.0 if known else None},
        "spread": {"validation.loss": stdev(known) if len(known) > 1 else None, "peak": None},
    }
