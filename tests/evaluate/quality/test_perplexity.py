"""Perplexity against hand-made models and plain loops, and the protocol around it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lowdim.core.errors import NumericalError
from lowdim.data.errors import DataError
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality.forward import of_model
from lowdim.evaluate.quality.perplexity import Perplexity, paired, perplexity

TEXT = ["the cat sat on the mat and the dog ran to the cat. " * 3]


def test_a_uniform_model_is_as_surprised_as_its_vocabulary(tokenizer: Any, bigram: Any) -> None:
    model = bigram(torch.zeros(38, 38))
    assert perplexity(model, TEXT, tokenizer, context=16).value == pytest.approx(38)


def test_by_hand(bigram: Any) -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    model = bigram(probabilities.log())
    made = Windows(torch.tensor([[0, 1, 1], [1, 0, 0]]), {})
    # targets only after the first token: 0.5 * 0.8 and 0.2 * 0.5, two tokens each
    expected = [-(math.log(0.5) + math.log(0.8)) / 2, -(math.log(0.2) + math.log(0.5)) / 2]
    found = perplexity(model, made)
    assert found.nll.tolist() == pytest.approx(expected)
    assert found.value == pytest.approx((0.5 * 0.8 * 0.2 * 0.5) ** -0.25)


def test_it_equals_a_plain_loop(model: Any, tokenizer: Any) -> None:
    made = windows(TEXT, tokenizer, 20)
    model.eval()
    losses = [model(row[None], labels=row[None]).loss.item() for row in made.input_ids]
    found = perplexity(model, made)
    assert found.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found.nll.dtype == torch.float64


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_the_batch_size_does_not_matter(llama: Any, tokenizer: Any, size: int) -> None:
    made = windows(TEXT, tokenizer, 20)
    found = perplexity(llama, made, tokens_per_batch=size)
    torch.testing.assert_close(found.nll, perplexity(llama, made, tokens_per_batch=20).nll, rtol=1e-5, atol=1e-6)


def test_a_forward_gives_the_same(llama: Any, tokenizer: Any) -> None:
    direct = perplexity(llama, TEXT, tokenizer, context=20)
    assert perplexity(of_model(llama), TEXT, tokenizer, context=20).value == direct.value


def test_the_protocol_names_text_windows_and_dtype(llama: Any, tokenizer: Any) -> None:
    protocol = perplexity(llama, TEXT, tokenizer, context=20, limit=3).protocol
    assert protocol["windows"] == 3
    assert protocol["dtype"] == "float32"
    assert len(protocol["text"]) == 64


def test_different_protocols_are_not_compared(llama: Any, tokenizer: Any) -> None:
    short, long = (perplexity(llama, TEXT, tokenizer, context=c, limit=2) for c in (10, 20))
    with pytest.raises(EvaluationError, match=r"context: 10 and 20"):
        paired(short, long)
    half = Perplexity(short.value, short.nll, short.protocol | {"dtype": "bfloat16"})
    with pytest.raises(EvaluationError, match="dtype: 'float32' and 'bfloat16'"):
        paired(short, half)


def test_the_paired_mean_is_the_log_of_the_ratio(llama: Any, tokenizer: Any, bigram: Any) -> None:
    dense = perplexity(llama, TEXT, tokenizer, context=20)
    sparse = perplexity(bigram(torch.zeros(38, 38)), TEXT, tokenizer, context=20)
    delta = paired(dense, sparse)
    assert math.exp(delta.mean) == pytest.approx(sparse.value / dense.value)
    assert delta.stderr > 0
    assert paired(dense, dense).mean == 0


def test_an_impossible_text_is_infinitely_surprising(bigram: Any) -> None:
    found = perplexity(bigram(torch.tensor([[0.0, -3000.0], [0.0, 0.0]])), Windows(torch.tensor([[0, 1]]), {}))
    assert found.value == math.inf


def test_nan_is_an_error(bigram: Any) -> None:
    with pytest.raises(NumericalError, match="logits hold NaN"):
        perplexity(bigram(torch.full((2, 2), math.nan)), Windows(torch.tensor([[0, 1]]), {}))


def test_a_text_needs_a_tokenizer(bigram: Any) -> None:
    with pytest.raises(DataError, match="needs the model's tokenizer"):
        perplexity(bigram(torch.zeros(2, 2)), ["text"])


@pytest.mark.nightly
def test_the_built_in_model_on_the_built_in_text() -> None:
    from transformers import AutoTokenizer

    from lowdim.models.disk.source import resolve
    from lowdim.models.load import load

    source = resolve("builtin:smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    found = perplexity(load(source.path), tokenizer=tokenizer, context=512, limit=40)
    assert found.value == pytest.approx(20.63, abs=0.2)
