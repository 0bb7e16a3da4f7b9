"""GaLore of others: run by `lowmemory.py` in an environment of its own; a step of some matrices."""

import argparse
import json
import os
import sys
import time
from typing import Any

import torch


def optimizers(peer: str, weights: list[torch.nn.Parameter], rank: int, gap: int) -> tuple[Any, Any]:
    """Return the peer's optimizer of some matrices, and torch's."""
    group = {"params": weights, "rank": rank, "update_proj_gap": gap, "scale": 0.25}
    if peer == "galore_torch":
        from galore_torch import GaLoreAdamW

        theirs: Any = GaLoreAdamW([{**group, "proj_type": "std"}], lr=1e-6)
    else:
        from pytorch_optimizer import GaLore

        theirs = GaLore([{**group, "projection_type": "std"}], lr=1e-6)
    return theirs, torch.optim.AdamW(weights, lr=1e-6, fused=True)


def main() -> None:
    """Answer a line with the seconds, of all cores, of a step, of one that chooses directions, and of torch's AdamW."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--peer", required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        weights = [torch.nn.Parameter(torch.randn(shape)) for shape in asked["shapes"]]
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        theirs, adamw = optimizers(given.peer, weights, asked["rank"], asked["gap"])
        took: dict[str, list[float]] = {"theirs": [], "adamw": []}
        for _ in range(asked["rounds"] + 1):
            for name, each in (("theirs", theirs), ("adamw", adamw)):
                begun = time.process_time()
                each.step()
                took[name].append(time.process_time() - begun)
        middle = {name: sorted(each[1:])[len(each[1:]) // 2] for name, each in took.items()}
        answer = {"step": middle["theirs"], "refresh": took["theirs"][0] - middle["theirs"], "adamw": middle["adamw"]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
