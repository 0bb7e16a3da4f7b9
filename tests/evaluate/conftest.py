"""Tiny models and tokenizers whose likelihoods can be worked out or checked against a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .?:\nAQT"


class Bigram(nn.Module):
    """Logits of the next token depend on the present one alone."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids]


@pytest.fixture(scope="session")
def bigram() -> type[Bigram]:
    """The class of models that are a table of logits."""
    return Bigram


def build_tokenizer(template: str = "$A") -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(".|\\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [("<s>", 0), ("</s>", 1), ("<unk>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token a character."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> Any:
    """One token a character, ``<s>`` before every text."""
    return build_tokenizer("<s> $A")


def random_model(name: str) -> Any:
    import transformers as t

    common = {"vocab_size": len(CHARACTERS) + 3, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    if name == "gpt2":
        model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common))
    else:
        config = t.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            **common,
        )
        model = t.LlamaForCausalLM(config)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng) + (parameter.dim() == 1))
    return model


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    """A random causal LM: rotary positions in one, absolute positions in the other."""
    return random_model(request.param)


@pytest.fixture(scope="session")
def llama() -> Any:
    """A random Llama."""
    return random_model("llama")
