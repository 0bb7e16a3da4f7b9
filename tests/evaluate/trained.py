"""A tiny language model that has learnt something: an alphabet, and a table of arbitrary facts."""

from __future__ import annotations

import functools
import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.evaluate.conftest import CHARACTERS, build_tokenizer
from torch import Tensor

from lowdim.core.random import generator

LETTERS = string.ascii_lowercase
Fact = tuple[str, str]


def alphabet() -> list[Fact]:
    """Easy: the next letter, which one token decides."""
    return [(f"A{x}", LETTERS[(i + 1) % 26]) for i, x in enumerate(LETTERS)]


def table(size: int = 10) -> list[Fact]:
    """Difficult: a letter drawn for every pair of letters, which must be learnt by heart."""
    rng = random.Random(0)
    return [(f"Q{x}{y}", rng.choice(LETTERS)) for x in LETTERS[:size] for y in LETTERS[:size]]


def write_questions(path: Path, facts: Sequence[Fact]) -> str:
    """Write a four-choice task; return its name, which is the path."""
    rng = random.Random(1)
    lines = []
    for context, answer in facts:
        wrong = rng.sample([letter for letter in LETTERS if letter != answer], 3)
        label = rng.randrange(4)
        lines.append({"context": context, "choices": [*wrong[:label], answer, *wrong[label:]], "label": label})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def encoded(facts: Sequence[Fact]) -> Tensor:
    tokenizer = build_tokenizer()
    return torch.tensor([tokenizer.encode(f"{context} {answer}") for context, answer in facts])


@functools.cache
def _weights() -> dict[str, Tensor]:
    model = _empty()
    rng = generator(0, "trained")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    sets = [encoded(alphabet()), encoded(table())]
    model.train()
    for _ in range(STEPS):
        loss = torch.zeros(())
        for ids in sets:
            logits = model(input_ids=ids[:, :-1]).logits[:, -1]
            loss = loss + torch.nn.functional.cross_entropy(logits, ids[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


STEPS = 250


def _empty() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=len(CHARACTERS) + 3,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.LlamaForCausalLM(config)


def trained() -> Any:
    """Return the model, trained once per process."""
    weights = _weights()
    model = _empty()
    model.load_state_dict(weights)
    return model.eval()
