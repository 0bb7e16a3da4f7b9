"""A model in memory written as a stock directory; what cannot be written is known before work is spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.models.disk import manifest
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.manifest import Manifest, ModelPart
from lowdim.models.disk.packed_header import STEM, lay_out
from lowdim.models.disk.writer import Writer, shard_name
from lowdim.models.walk.skeleton import saved_names
from lowdim.nn.int8 import Int8Weight
from lowdim.nn.lowrank import LowRankLinear
from lowdim.nn.residual.config import written

_GENERATION = "generation_config.json"


def save_around(model: PreTrainedModel, tokenizer: Any, place: Path) -> None:
    """Write all but the weights: config, generation config as it was given, tokenizer.

    Transformers refuses to save a generation config that it finds at fault (a temperature without sampling), although
    it loads one, and many models are published with one.

    Raises:
        CheckpointError: a part cannot be written, or two weights are one without the config saying so; it is named.
    """
    _refuse_shared(model)
    for what, part in (("config", model.config), ("tokenizer", tokenizer)):
        try:
            if part is not None:
                with written(model):
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


def save_factors(model: PreTrainedModel, out: str | Path, tokenizer: Any = None, overwrite: bool = False) -> Path:
    """Write a model with factorised layers as a directory that `lowdim.load` opens as one.

    ``lowdim convert --storage dense`` makes a stock one of it, whose weights are the products.

    Args:
        model: in memory, some of its layers `LowRankLinear`.
        out: the directory to appear.
        tokenizer: that goes with it; None writes none.
        overwrite: replace an existing result.

    Returns:
        The directory; its ``lowdim.json`` lists the ranks.

    Raises:
        LowdimError: no layer is factorised.
        OutputError: the output cannot be written.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    if not layers:
        raise LowdimError(
            f"no layer of {type(model).__name__} is factorised. Call lowdim.nn.lowrank.factorise_ first, or save it "
            "with save_pretrained."
        )
    own = {f"{name}.{part}" for name in layers for part in ("a", "b")}
    rest = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if name not in own}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    rest |= {name: held.cpu() for name, held in model.state_dict().items() if name not in parameters}  # buffers
    whole: dict[str, Tensor | Factors] = dict(saved_names(model, rest))
    for name, layer in layers.items():
        a, b = (part.detach().cpu().contiguous() for part in (layer.a, layer.b))
        whole[f"{name}.weight"] = Factors(a, b)
    with Writer(out, overwrite=overwrite) as writer:
        try:
            save_around(model, tokenizer, writer.directory.place)
            tensors, metadata = lay_out(whole)
            writer.write_shard(shard_name(1, 1, STEM), tensors, metadata)
            record = Manifest(
                lowdim=version("lowdim"),
                storage="packed",
                model=ModelPart(
                    source=model.name_or_path or type(model).__name__,
                    architecture=type(model).__name__,
                    dtype=str(model.dtype).removeprefix("torch."),
                ),
                versions=manifest.versions(),
            )
            record.holds({name: each.form for name, each in whole.items() if isinstance(each, Factors)})
            record.hashes.files = writer.hashes()
            writer.directory.write_text(manifest.FILE, manifest.to_text(record))
            return writer.finish()
        except BaseException:
            writer.directory.reset()
            raise


def _refuse_shared(model: PreTrainedModel) -> None:
    """Refuse weights of several names that nothing would make one again, which Transformers does not save."""
    tied, first = model.all_tied_weights_keys, dict[int, str]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name and not {name, other} & (tied.keys() | set(tied.values())):
            raise CheckpointError(
                f"{other} and {name} are one weight, and nothing in {type(model).__name__} says so, so that they "
                "cannot be saved. Give each its own: module.weight = torch.nn.Parameter(module.weight.detach().clone())"
            )


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
