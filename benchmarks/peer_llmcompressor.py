"""Prune with llm-compressor: run by `prune.py` in a virtual environment of its own, one process per measurement."""

import argparse
import json
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODIFIERS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}


def main() -> None:
    """Load, prune, save; print the seconds of each as JSON on the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--method", choices=MODIFIERS, required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    for parameter in model.parameters():  # out of the mapped file, whose pages may be reclaimed
        parameter.data = parameter.data.clone()
    ids = load_file(given.tokens)["input_ids"]
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    loaded = time.perf_counter()
    modifier = MODIFIERS[given.method](
        sparsity=given.sparsity, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"]
    )
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=[modifier],
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
        shuffle_calibration_samples=False,
    )
    pruned = time.perf_counter()
    model.save_pretrained(given.out)
    saved = time.perf_counter()
    seconds = {"load": loaded - begun, "prune": pruned - loaded, "save": saved - pruned}
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
