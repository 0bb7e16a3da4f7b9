"""Perplexity and layer-wise error of every method on the embedded model, from one set of tokens.

Calibration on even-numbered articles, reported text from odd-numbered ones, 512 tokens a window. OWL's settings were
fixed beforehand (see docs/benchmarks.md). Each row is one run from disk to disk.

    python benchmarks/quality.py --rows core --json benchmarks/results/quality.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import lowdim
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.quality import tasks
from lowdim.infer.sparse.matrix import multiplies_bf16
from lowdim.models.disk.source import resolve
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

OWL = {"name": "owl", "m": 5, "lam": 0.08, "pooling": "layer"}
COMPUTED = torch.bfloat16 if multiplies_bf16() else torch.float32
"""What models stored in bf16 compute in while they are measured."""
SAID = f"models stored dense compute in {str(COMPUTED).removeprefix('torch.')}"
if not multiplies_bf16():
    SAID += ", for this processor has no products of bf16 and emulates them several times as slowly"
OWL_BLOCK = {"name": "owl", "m": 5, "lam": 0.08, "pooling": "block"}


def row(label: str, sparsity: float, **recipe: Any) -> tuple[str, dict[str, Any]]:
    """Name a recipe."""
    return f"{label}, {sparsity:.0%}", {"sparsity": sparsity, **recipe}


METHODS = ("magnitude", "wanda", "sparsegpt", "refit")
ROWS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "core": [
        *[row(method, s, method=method) for s in (0.5, 0.6) for method in METHODS],
        row("wanda + OWL (layer)", 0.6, method="wanda", allocation=OWL),
        row("wanda + OWL (block, official)", 0.6, method="wanda", allocation=OWL_BLOCK),
        row("sparsegpt + OWL (layer)", 0.6, method="sparsegpt", allocation=OWL),
        row("refit + OWL (layer)", 0.6, method="refit", allocation=OWL),
    ],
    "more": [
        row("refit + OWL (layer), true-sequential", 0.6, method="refit", allocation=OWL, sequential="true"),
        row("wanda + refit + OWL (layer)", 0.6, method="wanda", repair="refit", allocation=OWL),
        row("wanda + DSnoT", 0.6, method="wanda", refine="dsnot"),
        row("wanda + AlphaPruning", 0.6, method="wanda", allocation="alpha"),
        row("wanda + ER", 0.6, method="wanda", allocation="er"),
        row("wanda 2:4", 0.5, method="wanda", pattern="2:4"),
        row("sparsegpt 2:4", 0.5, method="sparsegpt", pattern="2:4"),
        row("refit 2:4", 0.5, method="refit", pattern="2:4"),
    ],
    "high": [
        row("wanda", 0.7, method="wanda"),
        row("wanda + OWL (layer)", 0.7, method="wanda", allocation=OWL),
        row("refit + OWL (layer)", 0.7, method="refit", allocation=OWL),
    ],
}


def measure(
    model: Path, recipe: dict[str, Any], texts: dict[str, Windows], samples: int, seed: int
) -> dict[str, float]:
    """Prune, load, measure; return perplexity per text, mean layer error, sparsity and seconds."""
    full = Recipe(
        **recipe,
        seed=seed,
        calibration={"samples": samples, "context": 512},
        evaluation={"text": None},
        exact_errors=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        result = prune(str(model), full, out=Path(scratch, "out"))
        seconds = time.perf_counter() - begun
        values = perplexity(Path(scratch, "out"), texts)
    errors = [layer["error"] for layer in result.manifest["layers"].values() if layer["error"] is not None]
    return {
        **values,
        "layer_error": statistics.fmean(errors),
        "sparsity": result.sparsity,
        "seconds": seconds,
    }


def perplexity(path: Path, texts: dict[str, Windows]) -> dict[str, float]:
    """Measure a model on disk on every text."""
    model = lowdim.load(path, dtype=COMPUTED)
    return {name: lowdim.perplexity(model, text, tokens_per_batch=1024).value for name, text in texts.items()}


def passages() -> list[str]:
    """Return the distinct passages of BoolQ: text that no setting was ever chosen on."""
    found = (question.contexts[0].partition("\nQuestion:")[0] for question in tasks.load("boolq"))
    return list(dict.fromkeys(found))


def main() -> None:
    """Parse the command line, measure every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["core"])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    model = resolve("builtin:smollm2-135m").path
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = {
        "wiki": windows("builtin", tokenizer, 512, limit=given.windows),
        "boolq": windows(passages(), tokenizer, 512, limit=given.windows),
    }
    print(SAID)
    dense = perplexity(model, texts)
    print(f"| method | wiki | spread | BoolQ passages | mean layer error | zeros | seconds |\n|{'---|' * 7}")
    print(f"| dense | {dense['wiki']:.2f} | | {dense['boolq']:.2f} | | | |", flush=True)
    table: dict[str, list[dict[str, float]]] = {}
    for group in given.rows:
        for label, recipe in ROWS[group]:
            runs = [measure(model, recipe, texts, given.samples, seed) for seed in given.seeds]
            table[label] = runs
            values = [run["wiki"] for run in runs]
            spread = f"{min(values):.1f} to {max(values):.1f}" if len(values) > 1 else ""
            print(
                f"| {label} | {statistics.fmean(values):.2f} | {spread} "
                f"| {statistics.fmean(run['boolq'] for run in runs):.2f} | {runs[0]['layer_error']:.4f} "
                f"| {runs[0]['sparsity']:.4f} | {statistics.median(run['seconds'] for run in runs):.0f} |",
                flush=True,
            )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"computed": str(COMPUTED), "dense": dense, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
