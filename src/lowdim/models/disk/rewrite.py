"""A checkpoint written again with some of its tensors replaced; all else keeps its bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import mask_hash
from lowdim.models.disk.convert import tensor_name
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.manifest import HashesPart, Manifest, ModelPart
from lowdim.models.disk.packed import Packed, becomes_smaller, kept, pack
from lowdim.models.disk.packed_header import STEM, lay_out
from lowdim.models.disk.shard import Stored
from lowdim.models.disk.source import Source, read_config
from lowdim.models.disk.writer import Writer

Value = Tensor | Packed | Factors


def rewrite(source: Source, out: Path, changed: Mapping[str, Value], overwrite: bool = False) -> Path:
    """Write a model again with other values in some tensors.

    A file in which nothing changed is copied. A tensor is stored as it was: dense, or as a mask and the nonzeros where
    that is smaller. One that was rounded is stored as it is given: `Packed` with codes, or a plain tensor; `Factors`
    are stored as two tensors.

    Args:
        source: where the model is.
        out: the directory to appear.
        changed: by the name on disk, a tensor of the same shape, which is given the dtype that it had, or its codes, or
            its factors.
        overwrite: replace an existing result, and what an attempt that was killed has left.

    Returns:
        The directory. Its ``lowdim.json`` is the source's brought up to date, or a new one that names the source.

    Raises:
        CheckpointError: a name is no tensor of the model, or has another shape. Nothing is written.
        OutputError: the output cannot be written.
    """
    checkpoint = Checkpoint(source.path)
    for name, tensor in changed.items():
        shape = tensor.form.shape if isinstance(tensor, Packed | Factors) else tuple(tensor.shape)
        if shape != tuple(checkpoint.info(name).shape):
            raise CheckpointError(
                f"{name!r} is {list(checkpoint.info(name).shape)} in {source.path}, not {list(shape)}"
            )
    with Writer(out, overwrite=overwrite) as writer:
        try:
            return _write(source, checkpoint, changed, writer)
        except BaseException:
            writer.directory.reset()
            raise


def _write(source: Source, checkpoint: Checkpoint, changed: Mapping[str, Value], writer: Writer) -> Path:
    writer.directory.require_space(checkpoint.size_bytes + (64 << 20))
    forms = {name: form for name in checkpoint.names() if (form := checkpoint.form(name))}
    packs = any(isinstance(tensor, Packed | Factors) for tensor in changed.values())
    for file in checkpoint.files:
        if changed and not file.endswith(".safetensors"):
            continue  # the index is written anew
        names = [name for name in checkpoint.names() if checkpoint.info(name).file == file]
        target = re.sub("^model", STEM, file) if packs else file
        if not changed.keys() & set(names):
            writer.directory.copy(checkpoint.path / file, target)
            continue
        tensors: dict[str, Value | Stored] = {name: _stored(checkpoint, name, changed) for name in names}
        for name in names:
            made = tensors[name]
            forms.pop(name, None)
            forms |= {name: made.form} if isinstance(made, Packed | Factors) else {}
        stored, metadata = lay_out(tensors)
        writer.write_shard(target, stored, checkpoint.metadata_of(file) | metadata)
    for name in checkpoint.companions():
        writer.directory.copy(checkpoint.path / name)
    record = _record(source, checkpoint, changed)
    record.holds(forms)
    record.storage = "packed" if packs or checkpoint.storage == "packed" else "dense"
    record.evaluation = {} if changed else record.evaluation
    record.hashes.files = writer.hashes()
    writer.directory.write_text(manifest.FILE, manifest.to_text(record))
    return writer.finish()


def _stored(checkpoint: Checkpoint, name: str, changed: Mapping[str, Value]) -> Value | Stored:
    if name not in changed:
        return checkpoint.as_stored(name)
    tensor = changed[name]
    if isinstance(tensor, Packed | Factors):
        return tensor
    weight = tensor.detach().to("cpu", checkpoint.info(name).dtype).contiguous()
    return pack(weight) if checkpoint.is_packed(name) and becomes_smaller(weight) else weight


def _record(source: Source, checkpoint: Checkpoint, changed: Mapping[str, Value]) -> Manifest:
    if not manifest.exists(source.path):
        return new_record(source, checkpoint)
    record = manifest.read(source.path)
    layers = {layer: tensor_name(checkpoint, layer) for layer in record.layers}
    masks = {layer: _kept(checkpoint, name, changed) for layer, name in layers.items() if name in changed}
    whole = sum(checkpoint.info(name).numel for name in checkpoint.names())
    before = record.hashes.masks
    record = recounted(record, masks, whole) if masks else record
    record.hashes.masks = before | record.hashes.masks
    return record


def _kept(checkpoint: Checkpoint, name: str, changed: Mapping[str, Value]) -> Tensor:
    tensor = changed[name]
    weight = (
        tensor.weight() if isinstance(tensor, Packed | Factors) else tensor.detach().to(checkpoint.info(name).dtype)
    )
    return kept(weight)


def recounted(record: Manifest, masks: Mapping[str, Tensor], whole: int) -> Manifest:
    """Count again what has changed in layers that ``lowdim.json`` lists: nonzeros, and the hashes of their masks."""
    for layer, mask in masks.items():
        part, nonzeros = record.layers[layer], int(mask.sum())
        part.nonzeros, part.sparsity = nonzeros, 1 - nonzeros / max(part.numel, 1)
        part.error = part.rounding = None
    if record.sparsity is not None and record.layers:
        total = sum(part.numel for part in record.layers.values())
        zeros = total - sum(part.nonzeros for part in record.layers.values())
        record.sparsity.prunable, record.sparsity.model = zeros / total, zeros / whole
    record.hashes.masks = {layer: mask_hash(mask) for layer, mask in masks.items()}
    return record


def new_record(source: Source, checkpoint: Checkpoint) -> Manifest:
    """Return the ``lowdim.json`` of a model that had none: where it came from, and nothing of layers."""
    config = read_config(source.path)
    return Manifest(
        lowdim=version("lowdim"),
        storage="packed" if checkpoint.storage == "packed" else "dense",
        model=ModelPart(
            source=source.spec,
            revision=source.revision,
            architecture=(config.get("architectures") or [config.get("model_type", "")])[0],
            dtype=source.dtype,
            files=checkpoint.fingerprint(),
        ),
        versions=manifest.versions(),
        hashes=HashesPart(),
    )
