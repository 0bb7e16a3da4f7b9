"""A checkpoint written again with the linear layers of its blocks rounded, a code for every weight of them.

No mask is stored: a zero is a weight like others, exact in every grid. What is not a linear layer of a block (the
embeddings, the head, norms, routers of experts) stays as it is, and so do experts that one tensor on disk holds
together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import CheckpointError, NumericalError
from lowdim.core.quantize import Grid, Quantized, encode
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import tensor_name
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.packed import Form, Packed, kept, pack_levels
from lowdim.models.disk.packed_header import STEM, lay_out
from lowdim.models.disk.rewrite import new_record, recounted
from lowdim.models.disk.shard import Stored
from lowdim.models.disk.source import Source, resolve
from lowdim.models.disk.writer import Writer
from lowdim.models.structure.layers import find_layers
from lowdim.models.walk.skeleton import Skeleton, empty_model
from lowdim.nn.blocks import find_blocks


def quantize(
    source: str | Path,
    out: str | Path,
    grid: Grid,
    codes: Mapping[str, Quantized] | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write a model with the linear layers of its blocks rounded; `lowdim.load` multiplies with the codes as they are.

    Args:
        source: whatever `lowdim.models.disk.source.resolve` finds, stored dense or packed, but not rounded.
        out: the directory to appear.
        grid: bits and columns per group.
        codes: what layers were rounded to, by the names that their weights have on disk: levels and scales of the
            matrix ``[out, in]``. Of 4 and 3 bits the table follows from the levels. Weights that are not named are
            rounded to the nearest level of their group (`lowdim.core.quantize.encode`), all columns counting alike.
        overwrite: replace an existing result.
        trust_remote_code: run the modelling code that the model brings along.

    Returns:
        The directory. Its ``lowdim.json`` is the source's brought up to date, or a new one that names the source.

    Raises:
        CheckpointError: there is no such model, it was rounded already, has no linear layer in its blocks, or codes do
            not fit its weights. Nothing is written.
        NumericalError: a weight to be rounded holds NaN or Inf.
        OutputError: the output cannot be written.
    """
    found = resolve(str(source), trust_remote_code=trust_remote_code)
    checkpoint = Checkpoint(found.path)
    forms = _forms(checkpoint, grid, trust_remote_code)
    given = {name: _checked(name, made, forms) for name, made in (codes or {}).items()}
    with Writer(out, overwrite=overwrite) as writer:
        try:
            return _write(found, checkpoint, forms, given, writer)
        except BaseException:
            writer.directory.reset()
            raise


def linear_weights(checkpoint: Checkpoint, trust_remote_code: bool = False) -> dict[str, bool]:
    """Return the names on disk of the weights of all linear layers in the blocks.

    Returns:
        By name, whether the layer keeps its weight as ``[in, out]`` (GPT-2's Conv1D).
    """
    model = empty_model(checkpoint.path, checkpoint.dtype, trust_remote_code)
    skeleton = Skeleton(model, checkpoint, None)
    prefix, blocks = find_blocks(model)
    turned = {f"{prefix}.{name}.weight": isinstance(layer, Conv1D) for name, layer in find_layers(blocks)[0]}
    found: dict[str, bool] = {}
    for name in checkpoint.names():
        target = skeleton.parameter_of(name)
        if target in turned and skeleton.is_whole(name):
            found[name] = turned[target]
        elif target.startswith(f"{prefix}.") and skeleton.expert_part(name):
            found[name] = False
    return found


def _forms(checkpoint: Checkpoint, grid: Grid, trust_remote_code: bool) -> dict[str, Form]:
    for name in checkpoint.names():
        form = checkpoint.form(name)
        if form is not None and form.grid is not None:
            raise CheckpointError(
                f"{checkpoint.path} is rounded to {form.grid.name} already; rounding it again would lose more than "
                "need be. Give the model that it was made from."
            )
    layers = {name: (checkpoint.info(name), t) for name, t in linear_weights(checkpoint, trust_remote_code).items()}
    if not layers:
        raise CheckpointError(f"{checkpoint.path} has no weight of a linear layer in its blocks: nothing to round.")
    return {name: Form(info.shape, info.dtype, grid, turned, masked=False) for name, (info, turned) in layers.items()}


def _checked(name: str, codes: Quantized, forms: Mapping[str, Form]) -> Packed:
    if name not in forms:
        raise CheckpointError(f"codes for {name!r}, which is no linear layer of a block. Leave it out.")
    form, levels = forms[name], codes.levels
    if levels.dtype != torch.int8 or tuple(levels.shape) != (form.rows, form.cols):
        raise CheckpointError(
            f"the levels of {name!r} must be int8 {[form.rows, form.cols]}, got {levels.dtype} {list(levels.shape)}"
        )
    try:
        made = pack_levels(levels, codes.scales, form)
        made.check()
    except ValueError as error:
        raise CheckpointError(f"the codes of {name!r} do not fit {form.grid}: {error}") from error
    return made


def _write(
    source: Source, checkpoint: Checkpoint, forms: Mapping[str, Form], given: Mapping[str, Packed], writer: Writer
) -> Path:
    writer.directory.require_space(sum(checkpoint.info(name).nbytes for name in checkpoint.names()) + (64 << 20))
    record = manifest.read(source.path) if manifest.exists(source.path) else None
    layers = {tensor_name(checkpoint, layer): layer for layer in record.layers} if record else {}
    masks: dict[str, Tensor] = {}
    for file in (name for name in checkpoint.files if name.endswith(".safetensors")):
        tensors: dict[str, Tensor | Stored | Packed | Factors] = {}
        for name in (name for name in checkpoint.names() if checkpoint.info(name).file == file):
            made = given.get(name) or _round(checkpoint, name, forms[name]) if name in forms else None
            tensors[name] = made or checkpoint.as_stored(name)
            if name in layers:
                masks[layers[name]] = kept(made.weight() if made else checkpoint.read(name))
        stored, metadata = lay_out(tensors)
        writer.write_shard(re.sub("^model", STEM, file), stored, checkpoint.metadata_of(file) | metadata)
    for name in checkpoint.companions():
        writer.directory.copy(checkpoint.path / name)
    whole = sum(checkpoint.info(name).numel for name in checkpoint.names())
    record = recounted(record, masks, whole) if record else new_record(source, checkpoint)
    every = {name: form for name in checkpoint.names() if (form := forms.get(name) or checkpoint.form(name))}
    record.recipe |= _said(next(iter(forms.values())))
    record.holds(every)
    record.evaluation = {}
    record.hashes.files = writer.hashes()
    writer.directory.write_text(manifest.FILE, manifest.to_text(record))
    return writer.finish()


def _round(checkpoint: Checkpoint, name: str, form: Form) -> Packed:
    assert form.grid is not None
    weight = checkpoint.read(name)
    matrix = weight.t() if form.transposed else weight.reshape(form.rows, form.cols)
    try:
        made = encode(matrix, None, form.grid)
    except NumericalError as error:
        raise NumericalError(f"{name!r} cannot be rounded: {error}") from error
    return pack_levels(made.levels, made.scales, form)


def _said(form: Form) -> dict[str, object]:
    assert form.grid is not None
    return {"quantize": form.grid.name, "quantize_group": form.grid.group, "storage": "packed"}
