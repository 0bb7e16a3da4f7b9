"""sparselab's training step: run by `sparse_training.py` in an environment of its own."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

import sparselab
import torch
from torch import nn


def step_of(width: int, batch: int, sparsity: float) -> Callable[[], None]:
    """Return one training step of a three-layer network."""
    torch.manual_seed(0)
    layers = [sparselab.SparseLinear(width, width, sparsity=sparsity) for _ in range(3)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    x, wanted = torch.randn(batch, width), torch.randn(batch, width)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), wanted).backward()
        optimizer.step()

    return step


def main() -> None:
    """Answer each line with the seconds of some steps at one sparsity."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    torch.set_num_threads(parser.parse_args().threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    steps: dict[float, Callable[[], None]] = {}
    for line in sys.stdin:
        question = json.loads(line)
        sparsity = question["sparsity"]
        if sparsity not in steps:
            steps[sparsity] = step_of(question["width"], question["batch"], sparsity)
            steps[sparsity]()
        seconds = []
        for _ in range(question["steps"]):
            begun = time.perf_counter()
            steps[sparsity]()
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
