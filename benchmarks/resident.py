"""Memory that `lowdim.load` of a packed model takes: run by `runtime.py`, one process per measurement."""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lowdim


def resident() -> int:
    """Return this process's resident bytes, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


@torch.inference_mode()
def use(model: torch.nn.Module) -> None:
    """Make a model touch all of its weights: a prompt, then a token."""
    for tokens in (32, 1):
        model(torch.ones(1, tokens, dtype=torch.int64))


def main() -> None:
    """Print the file's bytes and the resident bytes after loading, and after use, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    given = parser.parse_args()
    tiny = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4
    )
    warm = LlamaForCausalLM(tiny).bfloat16().eval()
    lowdim.accelerate(warm, dtype="bf16")
    use(warm)  # what the libraries themselves take
    gc.collect()
    before = resident()
    model = lowdim.load(given.model)
    loaded = resident() - before
    use(model)
    gc.collect()
    used = resident() - before
    size = sum(path.stat().st_size for path in given.model.glob("*.safetensors"))
    print(json.dumps({"file": size, "loaded": loaded, "used": used}))


if __name__ == "__main__":
    main()
