"""Time and peak memory of pruning and of block recovery over the size of the model, of the shapes of real ones.

Weights are random, written shard by shard; models of two and of four blocks are timed and the rest is extrapolated.
Each measurement is a process of its own; peak memory is the kernel's figure, beyond that of the imports.

    python benchmarks/scale.py --sizes 135m 1b --json benchmarks/results/scale.json

The plan is the one that is printed before the work. Results are written after every row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lowdim.core.machine import machine
from lowdim.data.batch import split
from lowdim.data.calibration import calibration
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.blocks import Text
from lowdim.pipeline.recover.fit import LOOKS
from lowdim.pipeline.recover.pair import open_pair
from lowdim.pipeline.recover.plan import memory
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import plan, prune
from lowdim.prune.recipe import Recipe
from lowdim.runs.clock import peak_memory

SHAPES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
}
DEPTHS = {"tiny": 6, "135m": 30, "1b": 16, "3b": 28, "7b": 32}
VOCABULARY, CONTEXT, BLOCKS = 32_000, 512, 2
METHODS = ("wanda", "sparsegpt", "refit", "recover")


def write(path: Path, size: str, depth: int) -> Path:
    """Write a model of a shape with random weights, one block a shard, and return its directory."""
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=depth, dtype="bfloat16", **SHAPES[size])
    path.mkdir()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        part = name.split(".")[2] if ".layers." in name else "outer"
        parts.setdefault(part, {})[name] = shape
    where = {}
    for index, names in enumerate(parts.values(), start=1):
        file = f"model-{index:05d}-of-{len(parts):05d}.safetensors"
        made = {
            name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * shape[-1] ** -0.5
            for name, shape in names.items()
        }
        save_file({name: tensor.bfloat16() for name, tensor in made.items()}, path / file, {"format": "pt"})
        where |= dict.fromkeys(made, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


def work(model: Path, out: Path, method: str, samples: int) -> dict[str, Any]:
    """Run one method on a model and return its seconds and peak memory; run in a process of its own."""
    begun, tokens = peak_memory(), torch.randint(1, VOCABULARY, (samples, CONTEXT))
    if method != "recover":
        sizes = {"samples": samples, "context": CONTEXT}
        recipe = Recipe(sparsity=0.5, method=method, calibration=sizes, evaluation={"text": None})
        planned = sum(plan(str(model), recipe).memory.values())
        start = time.perf_counter()
        prune(str(model), recipe, calibration=tokens, out=out, overwrite=True)
        return {"seconds": time.perf_counter() - start, "peak": peak_memory() - begun, "planned": planned}
    settings = Recovery(
        stage="blocks",
        teacher=str(model),
        calibration={"samples": samples, "context": CONTEXT, "held": 0.25},
        blocks={"passes": 1.0, "patience": LOOKS},  # a block like its teacher gains nothing, and would end early
        evaluation={"text": None},
    )
    batches = list(split([calibration(tokens, samples=samples, context=CONTEXT).whole], settings.batch_tokens))
    planned = memory(open_pair(model, settings), Text(batches[1:], batches[:1]), len(batches) - 1)["blocks"]
    start = time.perf_counter()
    recover(model, settings, calibration=tokens, out=out)
    return {"seconds": time.perf_counter() - start, "peak": peak_memory() - begun, "planned": planned}


def measure(size: str, method: str, depth: int, samples: int) -> dict[str, Any]:
    """Return what one method takes on a model of so many blocks."""
    with tempfile.TemporaryDirectory() as name:
        model = write(Path(name) / "model", size, depth)
        command = [sys.executable, __file__, "--work", str(model), str(Path(name) / "out"), method, str(samples)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {
            "size": size,
            "method": method,
            "blocks": depth,
            "tokens": samples * CONTEXT,
            **json.loads(done.stdout.splitlines()[-1]),
        }


def main() -> None:
    """Measure every method at two depths of every size; print what a whole model would take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["135m", "1b"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--samples", type=int, default=16, help=f"of {CONTEXT} tokens")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        torch.set_num_threads(os.cpu_count() or 1)
        model, out, method, samples = given.work
        print(json.dumps(work(Path(model), Path(out), method, int(samples))))
        return
    rows = []
    print("| shape | method | MB beyond imports, 2 and 4 blocks | planned | s a block | s, all blocks, extrapolated |")
    print("|---|---|---|---|---|---|")
    for size in given.sizes:
        for method in given.methods:
            two, four = (measure(size, method, depth, given.samples) for depth in (BLOCKS, 2 * BLOCKS))
            rows += [two, four]
            each = max(0.0, four["seconds"] - two["seconds"]) / BLOCKS
            peaks = ", ".join(f"{row['peak'] / 2**20:,.0f}" for row in (two, four))
            whole = two["seconds"] + each * (DEPTHS[size] - BLOCKS)
            print(
                f"| {size} | {method} | {peaks} | {two['planned'] / 2**20:,.0f} | {each:.1f} | {whole:,.0f} |",
                flush=True,
            )
            if given.json:
                given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
