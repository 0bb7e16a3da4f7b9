"""Rows of `lowmemory.py`: layers of two factors: how fast they are, and which ranks lose least of a trained model."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from lowmemory_state import Ratio, turns
from torch import Tensor, nn

import lowdim
from lowdim.core.random import generator
from lowdim.data.windows import windows
from lowdim.infer.sparse.accelerate import accelerate
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.rewrite import rewrite
from lowdim.models.disk.source import resolve
from lowdim.models.load import read_tokenizer
from lowdim.models.quantize import linear_weights
from lowdim.nn.lowrank import LowRankLinear, factors_of
from lowdim.train.lowrank.base import RankRule
from lowdim.train.lowrank.uniform import UniformRank
from lowdim.train.lowrank.welore import WeLore

SHAPES = ((576, 576), (1536, 576), (576, 1536), (4096, 11008))
FEWER = (0.2, 0.3, 0.5)


def speed(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Time dense layers and layers of two factors, in bf16, one token and 256, in torch and in the runtime."""
    found: dict[str, Any] = {}
    ratios: list[Ratio] = []
    draw = generator(seed, "layers")
    for out, width in SHAPES:
        dense = nn.Linear(width, out, bias=False).bfloat16()
        models: dict[str, nn.Module] = {"dense": dense}
        for fewer in FEWER:
            rank = int((1 - fewer) * out * width / (out + width))
            models[f"{fewer:.0%} fewer"] = LowRankLinear(width, out, rank, bias=False, dtype=torch.bfloat16)
        for runtime in (False, True):
            if runtime:
                for name, model in models.items():
                    models[name] = nn.Sequential(model).eval()
                    accelerate(models[name], "bf16")
            for tokens in (1, 256):
                x = torch.randn(tokens, width, generator=draw).bfloat16()
                times = max(1, 2**28 // (out * width * tokens))
                where = f"{out} x {width}, {tokens} tokens, {'runtime' if runtime else 'torch'}"
                with torch.inference_mode():
                    programs = {name: _repeated(model, x, times) for name, model in models.items()}
                    found[where] = turns(programs, 2 * given.rounds + 1)
                cores = {name: each["cores"] for name, each in found[where].items()}
                ratios += [
                    (f"{where}: dense over {name}", cores["dense"] / cores[name], "", 0)
                    for name in models
                    if name != "dense"
                ]
    return {"seconds": found, "ratios": ratios}


def _repeated(model: nn.Module, x: Tensor, times: int) -> Any:
    def run() -> None:
        for _ in range(times):
            model(x)

    run()
    return run


def welore(given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Factorise the embedded model for the same number of weights by two rules; perplexity, and what is stored."""
    source = resolve("builtin:smollm2-135m")
    checkpoint = Checkpoint(source.path)
    weights = {name: checkpoint.read(name) for name in linear_weights(checkpoint)}
    text = windows("builtin", read_tokenizer(source.path), 512, limit=given.windows)
    found: dict[str, Any] = {"dense": lowdim.perplexity(lowdim.load(source.path, "bf16"), text).value}
    rules: dict[str, RankRule] = {
        "uniform": UniformRank(of_what="weights"),
        "welore": WeLore(of_what="weights"),
    }
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for name, weight in weights.items():
        parts[name] = factors_of(weight, min(weight.shape))
    total = sum(weight.numel() for weight in weights.values())
    ratios: list[Ratio] = []
    for fewer in FEWER:
        for kind, rule in rules.items():
            ranks = rule.ranks(weights, 1 - fewer)
            made = {
                name: Factors(*(f.to(weights[name].dtype).contiguous() for f in (a[:, :rank], b[:rank])))
                for name, rank in ranks.items()
                if rank * sum(weights[name].shape) < weights[name].numel()
                for a, b in (parts[name],)
            }
            with tempfile.TemporaryDirectory() as home:
                out = rewrite(source, Path(home, "model"), made)
                held = Checkpoint(out)
                stored = total - sum(weights[n].numel() - r * sum(weights[n].shape) for n, r in held.ranks.items())
                value = lowdim.perplexity(lowdim.load(out, "bf16"), text).value
            found[f"{fewer:.0%}, {kind}"] = {
                "perplexity": value,
                "weights": stored,
                "factorised": len(made),
                "ranks": sorted(ranks.values()),
            }
        one, other = (found[f"{fewer:.0%}, {kind}"]["perplexity"] for kind in ("welore", "uniform"))
        ratios.append(
            (f"{fewer:.0%} fewer weights: perplexity of WeLore over that of uniform ranks", one / other, "<=", 1)
        )
    return {"perplexities": found, "layers": len(weights), "weights": total, "ratios": ratios}


ROWS = (("factors.speed", 3, speed), ("factors.welore", 12, welore))
