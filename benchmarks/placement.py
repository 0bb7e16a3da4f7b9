"""What a placement, and a measurement of AlphaDecay, cost a training step beside the stock model's.

Every model takes one step in turn, so that all see the same machine; times are of the processor, one thread, fp32.

    python benchmarks/placement.py
    python benchmarks/placement.py --rounds 20 --width 512 --blocks 8
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowdim.core.recipe.families import build
from lowdim.nn.placement import ProRes, set_step
from lowdim.train.riders.spectral import SpectralDecay

ROWS = ("pre-ln", "pre-ln", "lns", "prores", "gpas", "mix-ln", "sandwich")
"""The stock model twice: how far a model is from itself."""


def seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 12, "width": 384, "blocks": 6, "heads": 8, "batch": 4, "length": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"hidden_size": args.width, "intermediate_size": args.width * 8 // 3, "num_hidden_layers": args.blocks}
    ids = torch.randint(4000, (args.batch, args.length))
    runs: list[tuple[str, Any, Any, list[float]]] = []
    for name in ROWS:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=4000, num_attention_heads=args.heads, **sizes))
        placement = build("placement", name)
        placement.apply_(model)
        if isinstance(placement, ProRes):
            set_step(model, 10**9)
        runs.append((name, model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1), []))
    for turn in range(args.rounds + 2):
        for _, model, optimizer, taken in runs:
            cost = seconds(lambda m=model, o=optimizer: step(m, o, ids))
            taken.extend([cost] if turn > 1 else [])
    stock = statistics.median(runs[0][3])
    for name, *_, taken in runs:
        print(f"{name:10} {statistics.median(taken):.3f} s a step, {statistics.median(taken) / stock:.3f} of stock")
    _, model, optimizer, _ = runs[0]
    decay = SpectralDecay(model, optimizer)
    once = seconds(decay._measured)
    print(
        f"alphadecay {once:.3f} s for {len(decay.ratios)} matrices, {once / (decay.method.every * stock):.2%} of a run"
    )


def step(model: Any, optimizer: Any, ids: torch.Tensor) -> None:
    model(ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
