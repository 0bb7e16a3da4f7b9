"""What the masked engine costs on top of a dense training loop: every step, and at an update of the masks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from runtime import Row
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from lowdim.train import RigL, SparseTraining, Static

SHAPES = {
    "ResNet-18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "ResNet-50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
}
BATCH, SIDE, ROUNDS, CLASSES = 128, 64, 5, 10


def loop(name: str, method: RigL | Static | None) -> tuple[Callable[[], float], Callable[[], float], int]:
    """Return what times a whole step, what times the optimizer's step of it, and the number of sparse weights."""
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(num_labels=CLASSES, **SHAPES[name]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    training = None
    if method is not None:
        training = SparseTraining(model, optimizer, sparsity=0.9, method=method, total_steps=10**6)
    x, y = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))

    def whole() -> float:
        begun = time.perf_counter()
        compute()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    def update() -> float:
        compute()
        begun = time.perf_counter()
        optimizer.step()
        spent = time.perf_counter() - begun
        optimizer.zero_grad()
        return spent

    def compute() -> None:
        nn.functional.cross_entropy(model(x).logits, y).backward()

    return whole, update, sum(layer.size for layer in training.layers) if training else 0


def measure_overhead() -> Iterator[Row]:
    """A step with masks that stand still against the dense step, in turn."""
    dense, _, _ = loop("ResNet-18", None)
    masked, _, size = loop("ResNet-18", Static())
    spent = _in_turn(dense, masked)
    detail = _detail(spent, size)
    measure = f"masked step over dense step, ResNet-18, batch {BATCH}, 90%"
    yield Row(measure, spent[1] / spent[0], 1.03, torch.get_num_threads(), True, detail)


def measure_update() -> Iterator[Row]:
    """One RigL update of 23.5 million weights against a whole dense step of that model, in turn."""
    dense, _, _ = loop("ResNet-50", None)
    _, update, size = loop("ResNet-50", RigL(every=1))
    spent = _in_turn(dense, update)
    measure = f"RigL update over dense step, ResNet-50, batch {BATCH}"
    yield Row(measure, spent[1] / spent[0], 0.5, torch.get_num_threads(), True, _detail(spent, size))


def _in_turn(*timed: Callable[[], float]) -> list[float]:
    found: list[list[float]] = [[] for _ in timed]
    for turn in range(ROUNDS + 1):
        for one, times in zip(timed, found, strict=True):
            spent = one()
            times += [spent] if turn else []
    return [statistics.median(times) for times in found]


def _detail(spent: list[float], size: int) -> dict[str, object]:
    names = ("dense", "ours")
    seconds = {f"{name} ms": round(1e3 * s, 1) for name, s in zip(names, spent, strict=True)}
    return seconds | {"image": f"{SIDE}x{SIDE}", "sparse weights": size}
