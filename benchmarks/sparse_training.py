"""Truly sparse training against dense torch and sparselab, measured in turn in one run.

A step is forward, backward and the update of SGD with momentum (fused, for all alike) of three 4096x4096 layers with
ReLU between them, batch 128. Prints a table of ratios with what each must reach, 0 where it is only reported.

    python benchmarks/sparse_training.py --json benchmarks/results/sparse_training.json
    python benchmarks/sparse_training.py --only steps
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from masked import measure_overhead, measure_update
from peers import Peer, Unavailable
from runtime import Row, finish, options
from torch import nn
from waiting import sleep_while_waiting

from lowdim.data.assets import cache_dir
from lowdim.train import CSRLinear

CORES = os.cpu_count() or 1
WIDTH, BATCH, ROUNDS, STEPS = 4096, 128, 11, 3
OVER_DENSE = {0.9: 4.0, 0.95: 8.0, 0.99: 25.0}
OVER_SPARSELAB = 1.5
OTHERS = (0.5, 0.6, 0.7, 0.8)  # where the crossing with bf16 is looked for
SPARSELAB = ("sparselab", "sparselab==0.2.2", None)

Step = Callable[[], None]


def step_of(make: Callable[[int], nn.Module], bf16: bool = False) -> Step:
    """Return one training step of a three-layer network."""
    torch.manual_seed(0)
    model = nn.Sequential(make(0), nn.ReLU(), make(1), nn.ReLU(), make(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    x, wanted = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(x)
        nn.functional.mse_loss(y.float(), wanted).backward()
        optimizer.step()

    return step


def sparse_step(sparsity: float) -> Step:
    """Return the step of the truly sparse layers."""
    kept = round(WIDTH * WIDTH * (1 - sparsity))
    return step_of(lambda i: CSRLinear.random(WIDTH, WIDTH, kept, name=str(i)))


def seconds_of(step: Step) -> list[float]:
    """Return the seconds of some steps."""
    seconds = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return seconds


def prepare_sparselab() -> None:
    """Make sparselab's environment: its own package, with this one's torch, so that both are timed on the same.

    Raises:
        Unavailable: there is no wheel for this Python and machine.
    """
    home = cache_dir() / "peers" / SPARSELAB[1].replace("==", "-")
    python = home / "bin" / "python"
    if python.exists() and not subprocess.run([python, "-c", "import sparselab"], capture_output=True).returncode:
        return
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", SPARSELAB[1]]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable((done.stderr.strip().splitlines() or ["pip failed"])[-1][:300])


# ---------------------------------------------------------------- time


def time_steps() -> Iterator[Row]:
    """All contestants in turn, some steps each, round after round; medians."""
    torch.set_num_threads(CORES)
    dense = {"dense fp32": step_of(lambda _: nn.Linear(WIDTH, WIDTH))}
    dense["dense bf16"] = step_of(lambda _: nn.Linear(WIDTH, WIDTH), bf16=True)
    ours = {s: sparse_step(s) for s in (*OTHERS, *OVER_DENSE)}
    seconds: dict[object, list[float]] = {name: [] for name in (*dense, *ours)}
    theirs: dict[float, list[float]] = {s: [] for s in OVER_DENSE}
    for step in (*dense.values(), *ours.values()):
        step()
    reason = ""
    try:
        prepare_sparselab()
        with Peer(SPARSELAB, "peer_sparselab.py", [], CORES) as peer:
            _rounds(dense | ours, seconds, theirs, peer)
    except Unavailable as error:
        reason = str(error)
        _rounds(dense | ours, seconds, theirs, None)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    yield from _rows(medians, {s: statistics.median(t) for s, t in theirs.items() if t}, reason)


def _rounds(
    steps: dict[object, Step],
    seconds: dict[object, list[float]],
    theirs: dict[float, list[float]],
    peer: Peer | None,
) -> None:
    for turn in range(ROUNDS):
        for name, step in steps.items():
            if name in OTHERS and turn % 4:
                continue
            seconds[name] += seconds_of(step)
        for sparsity, found in theirs.items() if peer else ():
            asked = {"sparsity": sparsity, "steps": STEPS, "width": WIDTH, "batch": BATCH}
            found += peer.ask(**asked)["seconds"]


def _rows(medians: dict[object, float], theirs: dict[float, float], reason: str) -> Iterator[Row]:
    detail = {str(name): round(1e3 * s, 2) for name, s in medians.items()} | {"unit": "ms per step"}
    detail |= {f"sparselab {s}": round(1e3 * t, 2) for s, t in theirs.items()}
    for sparsity, required in OVER_DENSE.items():
        ratio = medians["dense fp32"] / medians[sparsity]
        yield Row(f"training step, {sparsity:.0%}, over dense fp32", ratio, required, CORES, detail=detail)
    for sparsity in OVER_DENSE:
        over = theirs[sparsity] / medians[sparsity] if sparsity in theirs else None
        measure = f"training step, {sparsity:.0%}, over sparselab 0.2.2"
        yield Row(measure, over, OVER_SPARSELAB, CORES, detail=detail, reason=reason)
    for sparsity in (*OTHERS, *OVER_DENSE):
        ratio = medians["dense bf16"] / medians[sparsity]
        measure = f"training step, {sparsity:.0%}, over dense under bf16 autocast"
        yield Row(measure, ratio, 0.0, CORES, detail=detail)


# ---------------------------------------------------------------- memory


def measure_memory() -> Iterator[Row]:
    """Peak resident memory of training with Adam, beyond that of the imports, each in a process of its own."""
    used = {s: _used(s) for s in (0.0, 0.99)}
    detail = {f"{s:.0%}": round(b / 2**20, 1) for s, b in used.items()} | {"unit": "MiB beyond the imports"}
    measure = "peak memory of training with Adam, 99%, over dense"
    yield Row(measure, used[0.99] / used[0.0], 0.1, CORES, True, detail)


def _used(sparsity: float) -> int:
    script = Path(__file__).with_name("training_memory.py")
    sizes = ["--width", str(WIDTH), "--batch", str(BATCH), "--sparsity", str(sparsity)]
    done = subprocess.run([sys.executable, str(script), *sizes], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.strip().splitlines()[-1])["used"])


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "steps": time_steps,
    "memory": measure_memory,
    "masked": measure_overhead,
    "update": measure_update,
}


def main() -> None:
    """Measure the parts that were asked for, print a table, write JSON."""
    sleep_while_waiting()
    given = options(__doc__, PARTS)
    rows = [row for name in given.only or PARTS for row in PARTS[name]()]
    print(finish(rows, "sparse-training", given))


if __name__ == "__main__":
    main()
