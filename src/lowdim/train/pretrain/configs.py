"""The LLaMA sizes of the pre-training papers, and the configs that a recipe's model stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lowdim.core.errors import RecipeError
from lowdim.core.recipe import messages
from lowdim.core.settings import Range, check

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Size(NamedTuple):
    """Width of the residual stream and of the MLP, blocks, heads of attention."""

    hidden: int
    mlp: int
    blocks: int
    heads: int


SIZES = {
    "9m": Size(128, 352, 4, 4),
    "20m": Size(256, 688, 4, 4),
    "35m": Size(384, 1024, 6, 8),
    "60m": Size(512, 1376, 8, 8),
    "71m": Size(512, 1368, 12, 8),
    "130m": Size(768, 2048, 12, 12),
    "250m": Size(768, 2560, 24, 16),
    "350m": Size(1024, 2736, 24, 16),
    "1b": Size(2048, 5461, 24, 32),
}
"""By name, which says the parameters with a vocabulary of 32,000 and an untied head; arXiv 2307.05695, 2403.03507."""

OWN = ("qk_norm", "embedding_std")
KEYS = (
    "name",
    "model_type",
    *OWN,
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
    "initializer_range",
    "rms_norm_eps",
)
"""What ``--set model.KEY=VALUE`` may set; a recipe may name any field of the config."""


def check_mapping(key: str, model: Mapping[str, Any], whose: str, example: str) -> None:
    """Check that a recipe's mapping says what it is a model of, and what no config of Transformers knows.

    Args:
        key: of the recipe.
        model: the mapping.
        whose: names one of `SIZES`, in words.
        example: one of them.

    Raises:
        RecipeError: not one of ``name`` and ``model_type``; or ``qk_norm`` is no truth value, or ``embedding_std`` no
            deviation.
    """
    if len({"name", "model_type"} & model.keys()) != 1:
        raise RecipeError(
            f"{key} is a mapping with either a name {whose} or a model_type of Transformers; got "
            f"{', '.join(model) or 'neither'}. Write for example {{name: {example}}}."
        )
    if not isinstance(model.get("qk_norm", False), bool):
        raise RecipeError(f"model.qk_norm must be true or false; got {model['qk_norm']!r}.")
    check("model.embedding_std", model.get("embedding_std"), Range(above=0, optional=True))


def config(model: str | Mapping[str, Any], vocabulary: int | None, length: int) -> PreTrainedConfig:
    """Return the config of a model that starts from nothing.

    Ours are LLaMA with a SiLU-gated MLP, RMS norms (eps 1e-6), rotary positions, an untied head and weights drawn with
    deviation 0.02; ``qk_norm`` makes them the Qwen3 of the same sizes, which is that plus norms on queries and keys.

    Args:
        model: a name of `SIZES`, or the recipe's mapping.
        vocabulary: rows of the embedding where the mapping does not say; None is 32,000, or the model type's own.
        length: tokens of a sequence, which ours have positions for, 1,024 at least.

    Raises:
        RecipeError: an unknown model type, a field that its config does not have, or fields that do not fit together.

    Example:
        >>> made = config({"name": "9m", "vocab_size": 512}, None, 256)
        >>> made.model_type, made.hidden_size, made.vocab_size, made.max_position_embeddings
        ('llama', 128, 512, 1024)
    """
    given = {"name": model} if isinstance(model, str) else dict(model)
    rest = {key: value for key, value in given.items() if key not in OWN}
    if "name" in rest:
        return _ours(SIZES[rest.pop("name")], rest, bool(given.get("qk_norm")), vocabulary or 32_000, length)
    if "qk_norm" in given:
        raise RecipeError("model.qk_norm is a setting of a model of ours. Give a name, or a model_type that has it.")
    return _made(str(rest.pop("model_type")), {**({"vocab_size": vocabulary} if vocabulary else {}), **rest})


def _ours(size: Size, given: Mapping[str, Any], qk_norm: bool, vocabulary: int, length: int) -> PreTrainedConfig:
    fields = {
        "vocab_size": vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.blocks,
        "num_attention_heads": size.heads,
        "max_position_embeddings": max(1024, length),
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        **given,
    }
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    _divides(fields["hidden_size"], fields["num_attention_heads"], "hidden_size", "num_attention_heads")
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    return _made("qwen3" if qk_norm else "llama", fields)


def _divides(whole: Any, part: Any, name: str, parts: str) -> None:
    if not all(isinstance(each, int) and each > 0 for each in (whole, part)) or whole % part:
        raise RecipeError(f"model.{name} must be a multiple of model.{parts}; got {whole!r} and {part!r}. Change one.")


def _made(kind: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from lowdim.models.load import quiet

    if kind not in CONFIG_MAPPING:
        raise RecipeError(messages.unknown(f"model_type {kind}", CONFIG_MAPPING.keys()).replace("key ", "", 1))
    with quiet():
        known = AutoConfig.for_model(kind)
    if (inner := known.get_text_config(decoder=True)) is not known:
        raise RecipeError(
            f"model_type {kind} is a model of several parts. Take its language model: {inner.model_type}."
        )
    for key in fields:
        if not hasattr(known, key):
            raise RecipeError(messages.unknown(f"model.{key}", [f"model.{name}" for name in known.to_dict()]))
    try:
        with quiet():  # the ids of special tokens are those of a tokenizer that is not known yet
            made = AutoConfig.for_model(kind, **fields)
    except Exception as error:  # each config has checks of its own
        raise RecipeError(f"model: {' '.join(str(error).split())}. Change these fields.") from error
    heads, keys = "num_attention_heads", "num_key_value_heads"
    if getattr(made, keys, None) is not None:
        _divides(getattr(made, heads), getattr(made, keys), heads, keys)
    return made
