from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.models.zoo import ZOO
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lowdim.infer.decode.backend import BackendFull
from lowdim.infer.decode.generate import generate
from lowdim.infer.decode.hf_backend import HFBackend
from lowdim.infer.decode.sampling import Sampling

PROMPT = [5, 9, 2, 33]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Token n is the word ``n`` and a space."""
    plain = Tokenizer(models.WordLevel({f"{i} ": i for i in range(96)}, unk_token="0 "))
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=plain)


@pytest.fixture(scope="module")
def model() -> Any:
    return ZOO["gpt2"]()


def tokens(*arguments: Any) -> list[int]:
    return [piece.token for piece in generate(*arguments)]


def greedy(model: Any, count: int) -> list[int]:
    found = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ids: list[int] = found[0, len(PROMPT) :].tolist()
    return ids


def test_greedy_text_is_that_of_transformers(model: Any, tokenizer: Any) -> None:
    pieces = list(generate(model, tokenizer, PROMPT, Sampling(max_tokens=20)))
    expected = greedy(model, 20)
    assert [piece.token for piece in pieces] == expected
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(expected)
    assert [piece.finish_reason for piece in pieces] == [None] * 19 + ["length"]


def test_an_end_token_ends_the_text_without_being_part_of_it(model: Any, tokenizer: Any) -> None:
    expected = greedy(model, 20)
    backend = HFBackend(model)
    backend.eos_ids = frozenset([expected[5]])
    end = expected.index(expected[5])
    pieces = list(generate(backend, tokenizer, PROMPT, Sampling(max_tokens=20)))
    assert [piece.token for piece in pieces] == expected[: end + 1]
    assert pieces[-1].finish_reason == "stop"
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(expected[:end])


def test_a_stop_string_ends_the_text(model: Any, tokenizer: Any) -> None:
    expected = tokenizer.decode(greedy(model, 20))
    stop = expected[7:12]
    pieces = list(generate(model, tokenizer, PROMPT, Sampling(max_tokens=20, stop=(stop,))))
    assert "".join(piece.text for piece in pieces) == expected[: expected.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert len(pieces) < 20


def test_a_full_sequence_ends_the_text(model: Any, tokenizer: Any) -> None:
    pieces = list(generate(HFBackend(model, max_length=8), tokenizer, PROMPT, Sampling(max_tokens=20)))
    assert [piece.token for piece in pieces] == greedy(model, 5)
    assert pieces[-1].finish_reason == "length"


def test_a_seed_makes_the_text(model: Any, tokenizer: Any) -> None:
    options = Sampling(max_tokens=20, temperature=1.0, top_p=0.9, seed=3)
    assert tokens(model, tokenizer, PROMPT, options) == tokens(model, tokenizer, PROMPT, options)
    assert tokens(model, tokenizer, PROMPT, options) != greedy(model, 20)


def test_leaving_early_gives_the_slot_back(model: Any, tokenizer: Any) -> None:
    backend = HFBackend(model)
    running = generate(backend, tokenizer, PROMPT, Sampling())
    next(running)
    with pytest.raises(BackendFull):
        next(generate(backend, tokenizer, PROMPT, Sampling()))
    running.close()  # type: ignore[attr-defined]
    assert backend.open() == 0


def test_logits_are_not_kept_beyond_a_step(model: Any) -> None:
    backend = HFBackend(model)
    slot = backend.open()
    first = backend.prefill(slot, PROMPT)
    kept = first.copy()
    backend.step([slot], [1])
    assert np.array_equal(first, kept)
