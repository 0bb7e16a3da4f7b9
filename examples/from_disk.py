"""Prune from directory to directory, block by block; look at the plan first, load the packed result after."""

import tempfile
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

import lowdim


def main() -> None:
    """Prune a small random model on disk with OWL's budget and store it packed."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with tempfile.TemporaryDirectory() as name:
        dense, sparse = Path(name, "dense"), Path(name, "sparse")
        MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(dense)
        recipe = lowdim.Recipe(
            sparsity=0.7,
            method="refit",
            allocation={"name": "owl", "pooling": "layer"},
            calibration={"samples": 16},
            evaluation={"text": None},
            storage="packed",
        )
        print(lowdim.plan(dense, recipe).render().splitlines()[0])
        lowdim.prune(dense, recipe, calibration=torch.randint(0, 256, (16, 64)), out=sparse)
        before, after = (sum(f.stat().st_size for f in d.glob("*.safetensors")) for d in (dense, sparse))
        print(f"{before:,} bytes before, {after:,} after")
        model = lowdim.load(sparse)
        print(next(module for module in model.modules() if isinstance(module, lowdim.SparseLinear)))


if __name__ == "__main__":
    main()
