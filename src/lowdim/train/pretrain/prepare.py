"""All that a run needs before it trains: model, tokenizer, text and length, checked against each other."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowdim.core.errors import RecipeError
from lowdim.data.corpus import cache, chat
from lowdim.data.corpus.split import Corpus, Split
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import Source, resolve
from lowdim.models.load import need_tokenizer, quiet, read_placed, read_tokenizer
from lowdim.nn.blocks import find_blocks
from lowdim.runs.fingerprint import versions
from lowdim.train.pretrain import configs
from lowdim.train.pretrain.log import check_tensorboard
from lowdim.train.pretrain.network import check_length, check_types, check_vocabulary, make
from lowdim.train.pretrain.recipe import Pretraining
from lowdim.train.pretrain.sequences import Sequences, Streamed
from lowdim.train.pretrain.speed import flops_per_token


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run begins with.

    Attributes:
        recipe: of the run.
        source: the model that is trained on, if one is.
        config: of the model.
        tokenizer: of the model.
        text: `Sequences`, or what answers like them, to train on.
        held: the same to judge by.
        steps: of the run.
        device: where it is computed.
        weights: parameters of the model, and those inside its blocks.
        facts: of the text, see `lowdim.data.corpus.cache.Tokenised`.
        flops: of training on a token, see `lowdim.train.pretrain.speed.flops_per_token`.
    """

    recipe: Pretraining
    source: Source | None
    config: Any
    tokenizer: Any
    text: Any
    held: Any
    steps: int
    device: torch.device
    weights: tuple[int, int]
    facts: dict[str, Any]
    flops: float

    def fingerprint(self) -> dict[str, Any]:
        """Return all that decides the output's bytes."""
        return {
            "recipe": self.recipe.to_dict(),
            "model": None if self.source is None else Checkpoint(self.source.path).fingerprint(),
            "data": self.facts["hash"],
            "versions": versions(),
        }


Texts = Callable[[Any, Any, Callable[[int], None]], tuple[Any, Any, dict[str, Any]]]
"""(recipe, tokenizer, advance) -> what is trained on, what is judged by, and what is said of both."""


def prepare(
    recipe: Pretraining, advance: Callable[[int], None] = lambda _: None, texts: Texts | None = None
) -> Prepared:
    """Find or make the tokens of a recipe's text, and check that model, tokenizer, text and length fit.

    Args:
        recipe: of the run.
        advance: told how many documents were encoded.
        texts: makes what is trained on, of a model that has a tokenizer; None reads the recipe's text.

    Raises:
        LowdimError: they do not; or the model, the tokenizer or the text cannot be read.
    """
    if recipe.tensorboard:
        check_tensorboard()
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device 'cuda' was asked for, and torch finds no GPU. Choose device: auto or cpu.")
    source = None
    if recipe.continues:
        source = resolve(str(recipe.model), trust_remote_code=recipe.trust_remote_code)
        config, _ = read_placed(source.path, recipe.trust_remote_code)
    else:
        config = configs.config(recipe.model, recipe.data.vocabulary, recipe.length)
    check_length(recipe, config)
    (weights, flops), data = _sizes(recipe, config, source), recipe.data
    split = None if texts else Corpus(data.source, data.validation, data.separator).split()
    tokenizer = _tokenizer(recipe, source)
    if tokenizer is None:
        assert split is not None
        tokenizer = cache.learnt(split, data.vocabulary or config.vocab_size)
    check_vocabulary(tokenizer, config)
    if source is None:
        ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
        pad = tokenizer.pad_token_id  # the embedding of which gets no gradient: it may not be that of another token
        config.update({**ends, "pad_token_id": None if pad in ends.values() else pad})
    if data.template != "tokenizer":
        tokenizer.chat_template = chat.TEMPLATES[data.template]
    text, held, facts = (texts or _reading(split))(recipe, tokenizer, advance)
    if source is None and data.tokenizer is None and len(tokenizer) < config.vocab_size:
        warnings.warn(
            f"the training text gives {len(tokenizer):,} tokens, below the embedding's {config.vocab_size:,} rows, "
            f"and the others are never used. Set data.vocabulary={len(tokenizer)}, or give more text",
            stacklevel=3,
        )
    if text.passed_over:
        warnings.warn(
            f"{text.passed_over:,} documents are passed over: within length={recipe.length} nothing of them is to be "
            f"predicted{', or their answers are blank' * (data.kind == 'sft')}",
            stacklevel=3,
        )
    on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    steps = recipe.sized(0 if isinstance(text, Streamed) else len(text))
    return Prepared(recipe, source, config, tokenizer, text, held, steps, device, weights, facts, flops)


def _reading(split: Split | None) -> Texts:
    """Return what makes sequences of a text that was split."""
    assert split is not None

    def read(
        recipe: Pretraining, tokenizer: Any, advance: Callable[[int], None]
    ) -> tuple[Sequences | Streamed, Sequences, dict[str, Any]]:
        data = recipe.data
        tokens = cache.tokenised(split, tokenizer, data.kind, advance, train=not data.streaming)
        packed = data.kind == "text" and data.pack
        text: Sequences | Streamed = (
            Streamed(lambda: cache.encode_all(split.train(), tokenizer), recipe.length)
            if data.streaming
            else Sequences(tokens.train, recipe.length, packed)
        )
        return text, Sequences(tokens.validation, recipe.length, packed, whole=True), tokens.facts

    return read


def _sizes(recipe: Pretraining, config: Any, source: Source | None) -> tuple[tuple[int, int], float]:
    """Return how many parameters a model has, and its blocks; and the FLOPs of training on a token.

    Raises:
        LowdimError: there is no causal language model of this config, or none with the recipe's placement or ranks.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=recipe.trust_remote_code)
    except Exception as error:  # whatever a model trips over that is built from a config that cannot work
        raise RecipeError(f"model: {' '.join(str(error).split())[:300]}. Change its fields.") from error
    looks = recipe.rank is not None or (recipe.placement is not None and not recipe.continues)
    if looks:  # at weights: a model with weights is made
        model = make(recipe, config, source, torch.device("cpu"))[0]
        check_types(recipe, model)
    whole, inside = (sum(p.numel() for p in part.parameters()) for part in (model, find_blocks(model)[1]))
    return (whole, inside), flops_per_token(model, recipe.length)


def _tokenizer(recipe: Pretraining, source: Source | None) -> Any:
    """Return the tokenizer that is there; None where one is to be learnt."""
    if source is not None:
        return need_tokenizer(source.spec, source.path, recipe.trust_remote_code)
    spec = recipe.data.tokenizer
    if spec is None:
        return None
    if spec.startswith("builtin:"):
        return need_tokenizer(spec, resolve(spec).path)
    found = read_tokenizer(Path(spec)) if Path(spec).is_dir() else None
    try:
        with quiet():
            return found or AutoTokenizer.from_pretrained(spec, trust_remote_code=recipe.trust_remote_code)
    except Exception as error:  # whatever a tokenizer's own code raises
        why = " ".join(str(error).split())[:200]
        raise RecipeError(f"data.tokenizer: {spec!r} holds no tokenizer that can be read: {why}") from error
