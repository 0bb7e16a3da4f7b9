"""Peak memory of training a network, over what the process held before it was made; prints one line of JSON.

python benchmarks/training_memory.py --width 4096 --batch 128 --sparsity 0.99     (0: dense)
"""

import argparse
import json
import resource

import torch
from torch import nn

from lowdim.train import CSRLinear


def main() -> None:
    """Make the network, train it for a few steps with Adam, tell the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    given = parser.parse_args()
    tiny = nn.Linear(2, 2)  # what torch loads on first use is not the network's
    _train(nn.Sequential(tiny, CSRLinear.random(2, 2, 2)), torch.randn(2, 2))
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = _resident("VmRSS")
    width, kept = given.width, round(given.width**2 * (1 - given.sparsity))

    def layer(name: str) -> nn.Module:
        return CSRLinear.random(width, width, kept, name=name) if given.sparsity else nn.Linear(width, width)

    model = nn.Sequential(layer("0"), nn.ReLU(), layer("1"), nn.ReLU(), layer("2"))
    _train(model, torch.randn(given.batch, width))
    peak_bytes = max(_resident("VmHWM"), 0)
    print(json.dumps({"before": before, "peak": peak_bytes, "used": peak_bytes - before}))


def _train(model: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def _resident(what: str) -> int:
    with open("/proc/self/status") as status:
        found = next((line for line in status if line.startswith(what)), None)
    if found is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(found.split()[1]) * 1024


if __name__ == "__main__":
    main()
