"""A model in memory written as a stock directory; what cannot be written is known before work is spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from lowdim.core.errors import CheckpointError
from lowdim.nn.int8 import Int8Weight

_GENERATION = "generation_config.json"


def save_around(model: PreTrainedModel, tokenizer: Any, place: Path) -> None:
    """Write all but the weights: config, generation config as it was given, tokenizer.

    Transformers refuses to save a generation config that it finds at fault (a temperature without sampling), although
    it loads one, and many models are published with one.

    Raises:
        CheckpointError: a part cannot be written; it is named.
    """
    for what, part in (("config", model.config), ("tokenizer", tokenizer)):
        try:
            if part is not None:
                part.save_pretrained(place)
        except Exception as error:  # each has checks of its own
            why = " ".join(str(error).split()).rstrip(".")
            raise CheckpointError(f"the model's {what} cannot be saved: {why}. Mend it first.") from error
    given = getattr(model, "generation_config", None)
    if given is not None and model.can_generate():
        given.to_json_file(place / _GENERATION, keys_to_pop=["compile_config"])


def save_model(model: PreTrainedModel, tokenizer: Any, place: Path) -> None:
    """Write everything; see `save_around`. INT8 weights are written as the floats that they stand for."""
    tensors = model.state_dict()
    floats = {name: tensor.floats() for name, tensor in tensors.items() if isinstance(tensor, Int8Weight)}
    with _plain_generation(model):
        model.save_pretrained(place, state_dict=tensors | floats if floats else None)
    save_around(model, tokenizer, place)


@contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    given = getattr(model, "generation_config", None)
    try:
        if given is not None:
            model.generation_config = GenerationConfig()
        yield
    finally:
        if given is not None:
            model.generation_config = given
