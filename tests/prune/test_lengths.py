"""A sequence longer than the model's positions is refused with one sentence, wherever it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as t
from tests.prune import tiny

from lowdim.data.calibration import calibration, positions
from lowdim.data.errors import DataError
from lowdim.evaluate.inspect import inspect
from lowdim.evaluate.quality.perplexity import perplexity
from lowdim.infer.decode.open import open_backend
from lowdim.prune.api import plan, prune

SMALL: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTH: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=24)),
    "mpt": lambda: t.MptForCausalLM(t.MptConfig(**SMALL, d_model=32, n_heads=4, n_layers=2, max_seq_len=24)),
    "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4, seq_length=24)),
    "codegen": lambda: t.CodeGenForCausalLM(
        t.CodeGenConfig(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=24, rotary_dim=4)
    ),
    "llama": lambda: t.LlamaForCausalLM(
        t.LlamaConfig(**SMALL, **WIDTH, intermediate_size=48, max_position_embeddings=24)
    ),
}
WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]
TEXT = " ".join(WORDS * 40)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<u>", "<s>", "</s>", *WORDS])}, "<u>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return t.PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<u>")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.mark.parametrize("kind", MODELS)
def test_one_sentence_on_every_path(kind: str, text: Path, tmp_path: Path) -> None:
    model, words = MODELS[kind]().eval(), tokenizer()
    assert positions(model.config) == 24
    source = tiny.save_model(model, tmp_path / "in")
    words.save_pretrained(source)
    long, magnitude = {"samples": 2, "context": 32}, {"method": "magnitude"}
    measured = tiny.recipe(**magnitude, evaluation={"text": str(text), "context": 32})
    calibrated = tiny.recipe(method="wanda", calibration=long)
    data = calibration(str(text), words, samples=2, context=32)
    runs: list[tuple[str, Callable[[], object]]] = [
        ("context", lambda: perplexity(model, text, words, context=32)),
        ("context", lambda: prune(model, calibrated, calibration=str(text), tokenizer=words)),
        ("context", lambda: prune(str(source), calibrated, calibration=str(text), out=tmp_path / "out")),
        ("context", lambda: prune(model, tiny.recipe(method="wanda"), calibration=data)),
        ("evaluation.context", lambda: prune(model, measured, tokenizer=words)),
        ("evaluation.context", lambda: prune(str(source), measured, out=tmp_path / "out")),
        ("context", lambda: inspect(model, calibration=str(text), tokenizer=words, samples=2, context=32)),
        ("max_length", lambda: open_backend(model, max_length=32)),
    ]
    before = {name: int((parameter == 0).sum()) for name, parameter in model.named_parameters()}
    for name, run in runs:
        with pytest.raises(DataError) as refusal:
            run()
        assert str(refusal.value) == f"{name}=32 is longer than the model's 24 positions; use {name}=24 or less"
    assert {name: int((parameter == 0).sum()) for name, parameter in model.named_parameters()} == before
    assert not (tmp_path / "out").exists()


def test_contexts_that_nobody_chose_fit(text: Path, tmp_path: Path) -> None:
    model, words = MODELS["mpt"]().eval(), tokenizer()
    recipe = tiny.recipe(method="wanda", calibration={"samples": 2}, evaluation={"text": str(text), "windows": 2})
    result = prune(model, recipe, calibration=str(text), tokenizer=words)
    assert result.manifest["data"]["calibration"]["context"] == 24
    assert result.manifest["evaluation"]["perplexity"]["protocol"]["context"] == 24
    assert plan(model, recipe).memory["activations"] == 2 * 24 * 32 * 4 * 2


@pytest.mark.parametrize("values", [{"max_position_embeddings": None}, {"max_position_embeddings": -1}, {}])
def test_a_config_that_states_no_limit_has_none(values: dict[str, Any]) -> None:
    assert positions(t.PreTrainedConfig(**values)) is None
    assert positions(t.PreTrainedConfig(**values, max_sequence_length=7)) == 7
