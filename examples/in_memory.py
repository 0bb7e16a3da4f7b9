"""Prune a Transformers model in memory, on tokens of your own, and keep its zeros through further changes."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lowdim


def main() -> None:
    """Prune a small random model to 50% zeros and apply its masks again after an update."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(0, 256, (16, 64))  # [samples, context]: any iterable of token tensors will do

    recipe = lowdim.Recipe(sparsity=0.5, method="sparsegpt", calibration={"samples": 16}, evaluation={"text": None})
    result = lowdim.prune(model, recipe, calibration=tokens)
    print(f"{result.sparsity:.1%} of the pruned layers' weights are zero")

    with torch.no_grad():  # any update, by an optimizer or a merge, fills zeros in
        for parameter in model.parameters():
            parameter.add_(1e-3)
    result.masks.apply_(model)
    print(f"{result.masks.sparsity():.1%} again")


if __name__ == "__main__":
    main()
