"""What fine-tuning does to the zeros of the embedded model, with and without care: zeros, perplexity, seconds a step.

The model is pruned with Wanda on even-numbered articles and trained on them, by LoRA and in full; perplexity is of
odd-numbered ones, 512 tokens a window. Needs the extra ``lora``.

    python benchmarks/keep_zeros.py --json benchmarks/results/keep_zeros.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowdim
from lowdim.data.calibration import calibration
from lowdim.data.windows import Windows, windows
from lowdim.models.disk.source import resolve
from lowdim.runs.clock import peak_memory
from lowdim.train import KeepZeros
from lowdim.train.adapters.peft import mask_lora

Row = dict[str, float]


def sparsity(model: nn.Module, masks: lowdim.Masks) -> float:
    """Return the share of zeros in the pruned layers."""
    weights = [model.get_parameter(name) for name in masks]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def train(model: Any, optimizer: torch.optim.Optimizer, rows: Tensor, batch: int) -> float:
    """Pass once over rows of tokens, in bf16 over fp32 weights; return the median seconds of a step."""
    seconds = []
    model.train()
    for ids in rows.split(batch):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    model.eval()
    return statistics.median(seconds)


def measured(model: Any, masks: lowdim.Masks, text: Windows, **more: float) -> Row:
    """Return zeros and perplexity of a model without adapters."""
    value = lowdim.perplexity(model, text, tokens_per_batch=1024).value
    return {"zeros": sparsity(model, masks), "perplexity": value, **more}


def lora(base: nn.Module, masks: lowdim.Masks, aware: bool, given: argparse.Namespace, data: Any) -> dict[str, Row]:
    """Train an adapter; return what it is before and after the merges that there are."""
    rows, text = data
    torch.manual_seed(0)
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(copy.deepcopy(base), config)
    if aware:
        mask_lora(model, masks)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=given.lora_rate)
    step = train(model, optimizer, rows, given.batch)
    name = "LoRA, mask_lora" if aware else "LoRA"
    before = lowdim.perplexity(model, text, tokens_per_batch=1024).value
    found: dict[str, Row] = {f"{name}, not merged": {"perplexity": before, "seconds": step}}
    if not aware:
        late: Any = copy.deepcopy(model)
        mask_lora(late, masks)
        found["LoRA, mask_lora before the merge alone"] = measured(late.merge_and_unload(), masks, text)
    found[f"{name}, merged"] = measured(model.merge_and_unload(), masks, text)
    return found


def full(base: nn.Module, masks: lowdim.Masks, keep: bool, given: argparse.Namespace, data: Any) -> dict[str, Row]:
    """Train all weights."""
    rows, text = data
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.rate)
    if keep:
        KeepZeros(model, optimizer, masks)
    step = train(model, optimizer, rows, given.batch)
    return {f"full{', KeepZeros' * keep}": measured(model, masks, text, seconds=step)}


def main() -> None:
    """Prune, train four ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4, help="rows of 256 tokens")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--lora-rate", type=float, default=5e-4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source = resolve("builtin:smollm2-135m").path
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = windows("builtin", tokenizer, 512, limit=given.windows)
    rows = calibration("builtin", tokenizer, samples=given.steps * given.batch, context=256, seed=1).whole.input_ids
    few = {"samples": 16, "context": 512}
    recipe = lowdim.Recipe(sparsity=given.sparsity, method="wanda", calibration=few, evaluation={"text": None})
    with tempfile.TemporaryDirectory() as scratch:
        lowdim.prune(str(source), recipe, out=Path(scratch, "out"))
        masks = lowdim.Masks.load(Path(scratch, "out"))
        base = AutoModelForCausalLM.from_pretrained(Path(scratch, "out"), dtype=torch.float32)
    table = {"pruned": measured(base, masks, text)}
    for way in (False, True):
        table |= lora(base, masks, way, given, (rows, text))
    for way in (False, True):
        table |= full(base, masks, way, given, (rows, text))
    print(f"| | zeros | perplexity | seconds a step |\n|{'---|' * 4}")
    for name, row in table.items():
        zeros = f"{row['zeros']:.2%}" if "zeros" in row else ""
        print(f"| {name} | {zeros} | {row['perplexity']:.2f} | {row.get('seconds', float('nan')):.2f} |")
    print(f"peak resident {peak_memory() / 2**30:.2f} GiB")
    if given.json:
        given.json.write_text(json.dumps({"settings": vars(given) | {"json": ""}, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
