from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lowdim.core.errors import RecipeError
from lowdim.train.pretrain import configs
from lowdim.train.pretrain.network import check_length, check_vocabulary
from lowdim.train.pretrain.recipe import Pretraining, Schedule

EXAMPLES = Path(__file__).parents[3] / "examples"

COUNTS = {  # parameters, millions, of the blocks and of all, as the papers have them
    "9m": (0.80, 9.0),
    "20m": (3.16, 19.5),
    "35m": (10.6, 35.2),
    "60m": (25.3, 58.1),
    "71m": (37.8, 70.6),
    "130m": (85.0, 134.1),
    "250m": (198.2, 247.4),
    "350m": (302.4, 368.0),
    "1b": (1208, 1339),
}


@pytest.mark.parametrize("name", configs.SIZES)
def test_the_sizes_are_those_of_the_papers(name: str) -> None:
    made = configs.config(name, None, 256)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    assert (blocks / 1e6, sum(p.numel() for p in model.parameters()) / 1e6) == pytest.approx(COUNTS[name], rel=6e-3)
    assert made.rms_norm_eps == 1e-6 and made.hidden_act == "silu" and not made.tie_word_embeddings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "30m"}, r"unknown model '30m'\. Did you mean '350m'|unknown model '30m'"),
        ({"model": {"hidden_size": 8}}, "either a name of ours or a model_type"),
        ({"model": {"name": "9m", "model_type": "gpt2"}}, "either a name of ours or a model_type"),
        ({"steps": 10, "tokens": 10}, "Leave one of them out"),
        ({"placement": "mix-lm"}, "unknown placement 'mix-lm'. Did you mean 'mix-ln'"),
        ({"decay": "alpha"}, "unknown decay 'alpha'"),
        ({"decay": "alphadecay"}, "a weight_decay above 0"),
        ({"decay": "alphadecay", "optimizer": "muon"}, "goes with optimizer=adamw"),
        ({"decay": "alphadecay", "optimizer": {"name": "galore", "weight_decay": 0.1}}, "goes with optimizer=adamw"),
        ({"optimizer": {"name": "galore", "layerwise": True}}, "take accumulate=1, no clip"),
        (
            {"optimizer": {"name": "apollo", "layerwise": True}, "clip": None, "accumulate": 2},
            "take accumulate=1, no clip",
        ),
        ({"optimizer": {"name": "galore", "layerwise": True}, "clip": None, "precision": "bfloat16"}, "no fp32 copies"),
        ({"optimizer": {"name": "galore", "layerwise": True}, "clip": None, "from-scratch": "s-ste"}, "no fp32 copies"),
        ({"from-scratch": "fst", "steps": 40}, "every 40 steps never move in a run of 40: lower every"),
        ({"from-scratch": {"name": "step", "every": 50}, "tokens": 256}, "never move in a run of 1"),
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'. Did you mean 'adam"),
        ({"optimizer": {"name": "adamw", "momentum": 0.9}}, "is a setting of muon"),
        ({"optimizer": {"name": "adamw", "lr": 0}}, "lr must be above 0"),
        ({"batch": 2, "accumulate": 3}, "batch=2 sequences cannot be cut into accumulate=3"),
        (
            {"schedule": {"cooldown": 0.2}},
            "schedule.cooldown=0.2 does not go with name='cosine': it changes nothing there",
        ),
        ({"schedule": {"warmup": 100}, "steps": 50}, "never gets to its peak"),
        ({"steps": 1}, "schedule.warmup is 0.1 of the run.s 1 steps, .* never gets to its peak"),  # its rate would be 0
        ({"schedule": {"name": "wsd", "warmup": 95}, "steps": 100}, "never gets to its peak"),
        ({"data": {"tokenizer": "x", "vocabulary": 300}}, "Leave one of them out"),
        ({"data": {"kind": "sft"}}, "learns no tokenizer"),
        ({"data": {"template": "plain"}}, "data.template='plain' does not go with kind='text'"),
        ({"data": {"streaming": True}}, "does not know how long a pass is"),
        ({"data": {"streaming": True, "pack": False}}, "a stream of joined documents"),
        ({"data": {"source": []}}, "data.source is empty"),
        ({"model": "org/name", "data": {"vocabulary": 300}}, "has learnt its own"),
        ({"model": "org/name", "data": {"tokenizer": "x"}}, "has a tokenizer of its own"),
        ({"lenght": 5}, "unknown key 'lenght'. Did you mean 'length'"),
        ({"data": {"vocab": 300}}, "unknown key 'data.vocab'. Did you mean 'data.vocabulary'"),
        ({"precision": "float16"}, "precision must be"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_a_remedy(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Pretraining(**settings)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "9m", "hiden_size": 8}, "unknown key 'model.hiden_size'. Did you mean 'model.hidden_size'"),
        ({"name": "9m", "hidden_size": 30}, "model.hidden_size must be a multiple of model.num_attention_heads"),
        ({"model_type": "lama"}, "unknown 'model_type lama'"),
        ({"model_type": "gpt2", "qk_norm": True}, "a setting of a model of ours"),
    ],
    ids=str,
)
def test_configs_that_cannot_be(model: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        configs.config(model, None, 64)


def test_the_command_line_sets_any_key() -> None:
    given = ["model=9m", "model.vocab_size=512", "optimizer=muon", "optimizer.momentum=0.9", "placement=mix-ln"]
    made = Pretraining.assemble(None, {}, [*given, "placement.alpha=0.5", "schedule.name=wsd", "data.source=[a, b]"])
    assert made.model == {"name": "9m", "vocab_size": 512}
    assert made.optimizer.momentum == 0.9 and made.placement.alpha == 0.5  # type: ignore[attr-defined]
    assert made.data.source == ("a", "b") and made.schedule.name == "wsd"
    assert Pretraining.from_yaml(made.to_yaml()) == made


def test_schedules_have_the_values_of_the_papers() -> None:
    cosine, wsd = Schedule(warmup=1000), Schedule(name="wsd", warmup=2000)
    assert [round(cosine.factor(t, 10_000), 4) for t in (0, 500, 1000, 5500, 9999)] == [0, 0.5, 1, 0.55, 0.1]
    assert [wsd.factor(t, 100_000) for t in (0, 1000, 2000, 89_999, 95_000)] == [0, 0.5, 1, 1, 0.5]
    assert wsd.factor(99_999, 100_000) == pytest.approx(1e-4)
    assert Schedule(warmup=0.1).factor(50, 1000) == 0.5
    assert Schedule(name="wsd", warmup=0, floor=0.5).factor(99, 100) == pytest.approx(0.55)


def test_both_protocols_of_the_papers_are_recipes() -> None:
    c4, modern = (Pretraining.from_yaml(EXAMPLES / f"pretrain-{name}.yaml") for name in ("c4", "modern"))
    assert (c4.batch * c4.length, c4.data.pack, c4.clip, c4.precision) == (512 * 256, False, None, "pure-bfloat16")
    assert (modern.batch * modern.length, modern.schedule.name, modern.clip) == (512 * 1024, "wsd", 1.0)
    assert modern.schedule.warm(100_000) == 2000 and modern.optimizer.weight_decay == 0.1


TOKENIZERS = {"google-t5/t5-base": (32_000, 100)}
"""Words and sentinels of the tokenizers that examples name: both are tokens of theirs."""


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("pretrain-*.yaml")), ids=lambda path: path.stem)
def test_the_models_of_examples_hold_their_tokenizers(path: Path) -> None:
    recipe = Pretraining.from_yaml(path)
    assert recipe.data.tokenizer is not None
    words, sentinels = TOKENIZERS[recipe.data.tokenizer]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({str(i): i for i in range(words)}, unk_token="0")),
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(sentinels)],
    )
    assert len(tokenizer) == words + sentinels
    config = configs.config(recipe.model, recipe.data.vocabulary, recipe.length)
    check_vocabulary(tokenizer, config)
    check_length(recipe, config)
    with pytest.raises(RecipeError, match=r"32,100 tokens, and the model's embedding 32,000 rows"):
        check_vocabulary(tokenizer, configs.config("130m", None, recipe.length))
