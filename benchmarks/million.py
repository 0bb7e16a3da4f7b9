"""A truly sparse network of more than a million hidden neurons, trained with SET on this machine.

The net: 54,675 features (as a microarray has), two hidden layers of 505,000 ReLU neurons, 18 classes, connected at
random as Erdos and Renyi do: 10 * (inputs + outputs) connections per weight, over 20 million in all. Data: random,
shaped like the leukaemia microarray set that the method was published with (2,096 samples, of which two thirds train):
one centre per class and noise, so that there is something to learn. SGD with momentum 0.9, batch 2 as published;
learning rate 3e-6, as each output sums a quarter of a million neurons. After every epoch SET drops, of either sign,
the 30 % of the weights nearest to zero and grows as many at random, from zero.

The original's algorithm in SciPy, on the same net, data and machine, is timed over a few batches and scaled to an
epoch.

    python benchmarks/million.py
    python benchmarks/million.py --batch 32 --epochs 3 --json benchmarks/results/million.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from waiting import sleep_while_waiting

import lowdim
from lowdim.core.machine import machine
from lowdim.train import SET, CSRLinear, SparseTraining

FEATURES, HIDDEN, CLASSES, EPSILON = 54_675, 505_000, 18, 10
SAMPLES, RATE, MOMENTUM, DROP = 1_397, 3e-6, 0.9, 0.3
PUBLISHED = (
    "49 min per epoch at 903,317 neurons and 112 min at 1,803,317 (Lung data, one process of a laptop, an older way to "
    "rewire: README of the SET repository; other data and sizes than here)"
)


def resident(what: str = "VmRSS") -> float:
    """Return resident memory, or its peak (VmHWM), in GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError(f"no {what} in /proc/self/status")


def data(samples: int) -> tuple[Tensor, Tensor]:
    """Return standardised features [samples, FEATURES] and labels [samples]."""
    source = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, FEATURES, generator=source)
    labels = torch.randint(CLASSES, (samples,), generator=source)
    features = torch.empty(samples, FEATURES)
    for i, label in enumerate(labels.tolist()):
        features[i] = (0.3 * centres[label] + torch.randn(FEATURES, generator=source)) / 1.09**0.5
    return features, labels


def network() -> nn.Sequential:
    """Return the net; nothing of a dense weight's size is made."""
    sizes = [(FEATURES, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CLASSES)]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(sizes):
        kept = min(EPSILON * (inputs + outputs), inputs * outputs)
        layers += [CSRLinear.random(inputs, outputs, kept, name=str(i)), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Split shuffled samples."""
    yield from torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size)


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the share of samples classified rightly."""
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(8), labels.split(8), strict=True))
    return right / len(x)


def train(batch: int, epochs: int, samples: int) -> dict[str, object]:
    """Train and print one line per epoch; return what was measured."""
    x, labels = data(samples + 200)
    held_x, held_labels, x, labels = x[samples:], labels[samples:], x[:samples], labels[:samples]
    model = network()
    kept = sum(layer.kept for layer in model if isinstance(layer, CSRLinear))
    print(f"{2 * HIDDEN:,} hidden neurons, {kept:,} connections, {samples} samples, batch {batch}", flush=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
    every = -(-samples // batch)
    training = SparseTraining(model, optimizer, method=SET(every=every, drop=DROP, regrow="zero"))
    times, evolving = [], []
    for epoch in range(epochs):
        begun = time.perf_counter()
        for chosen in batches(samples, batch, epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), labels[chosen])
            loss.backward()
            stepped = time.perf_counter()
            optimizer.step()  # the last of an epoch moves the masks
        evolving.append(time.perf_counter() - stepped)
        times.append(stepped - begun)
        line = f"epoch {epoch + 1}: {times[-1]:.1f} s and {evolving[-1]:.1f} s of evolution, loss {loss.item():.3f}"
        line += f", held-out accuracy {accuracy(model, held_x, held_labels):.3f}"
        print(f"{line}, peak {resident('VmHWM'):.2f} GB resident", flush=True)
    assert sum(layer.kept for layer in training.layers) == kept
    return {
        "neurons": 2 * HIDDEN,
        "connections": kept,
        "batch": batch,
        "samples": samples,
        "seconds_per_epoch": times,
        "seconds_of_evolution": evolving,
        "peak_gb": resident("VmHWM"),
    }


# ---------------------------------------------------------------- the original's algorithm


class Original:
    """A sparse layer of the original's kind: SciPy CSR, gathered rows for the gradient, fp32."""

    def __init__(self, layer: CSRLinear) -> None:
        shape = layer.out_features, layer.in_features
        parts = layer.values.detach().numpy().copy(), layer.col.numpy(), layer.row_ptr.numpy()
        weight = sparse.csr_matrix(parts, shape=shape).T.tocsr()  # the original multiplies X @ W, W [inputs, outputs]
        self.weight, self.bias = weight, np.zeros(shape[0], np.float32)
        self.rows = np.repeat(np.arange(shape[1], dtype=np.int32), np.diff(weight.indptr))
        self.velocity = np.zeros_like(weight.data)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, g: np.ndarray, needed: bool) -> np.ndarray | None:
        d_x = g @ self.weight.T if needed else None
        gradient = np.zeros_like(self.weight.data)
        for x, row in zip(self.x, g, strict=True):
            gradient += x[self.rows] * row[self.weight.indices]
        self.velocity = MOMENTUM * self.velocity - RATE * gradient
        self.weight.data += self.velocity
        self.bias -= RATE * g.sum(0)
        return d_x


def original(batch: int, steps: int, samples: int) -> float:
    """Return the seconds of an epoch, from ``steps`` batches, without evolution."""
    x, labels = data(batch * (steps + 1))
    layers = [Original(layer) for layer in network() if isinstance(layer, CSRLinear)]
    seconds = []
    for chosen in batches(len(x), batch, 0):
        begun = time.perf_counter()
        values, active = x[chosen].numpy(), []
        for i, layer in enumerate(layers):
            values = layer.forward(values)
            if i < len(layers) - 1:
                active.append(values > 0)
                values = values * active[-1]
        shares = np.exp(values - values.max(1, keepdims=True))
        g = shares / shares.sum(1, keepdims=True)
        g[np.arange(len(chosen)), labels[chosen].numpy()] -= 1
        g /= len(chosen)
        for i in reversed(range(len(layers))):
            g = layers[i].backward(g, i > 0)
            if i:
                g = g * active[i - 1]
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds[1:])) * -(-samples // batch)


def main() -> None:
    """Train, time the original's algorithm, print both."""
    sleep_while_waiting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="training samples of an epoch")
    parser.add_argument("--original-steps", type=int, default=3, help="batches of the SciPy version; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = train(given.batch, given.epochs, given.samples)
    best = float(np.median(found["seconds_per_epoch"]))
    print(f"published: {PUBLISHED}")
    if given.original_steps:
        seconds = original(given.batch, given.original_steps, given.samples)
        found["original_seconds_per_epoch"] = seconds
        print(
            f"the original's algorithm in SciPy: {seconds:.0f} s per epoch without evolution (scaled from "
            f"{given.original_steps} batches), {seconds / best:.1f} times as long"
        )
    if given.json:
        found["machine"] = machine() | {"level": lowdim.runtime_info().level, "torch": torch.__version__}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
