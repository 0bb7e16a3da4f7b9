"""Dense to packed and back, one shard at a time: every weight keeps its value."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path

from torch import Tensor

from lowdim.core.errors import CheckpointError, LowdimError, suggest
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.manifest import Manifest, SLoRBPart
from lowdim.models.disk.packed import Form, Packed, becomes_smaller, pack
from lowdim.models.disk.packed_header import STEM, is_beside, lay_out
from lowdim.models.disk.shard import Stored
from lowdim.models.disk.writer import Writer

STORAGES = ("dense", "packed")


def convert(
    source: str | Path,
    out: str | Path,
    storage: str,
    overwrite: bool = False,
    rounded: Mapping[str, Packed] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a directory again in the other form of storage; every weight keeps the bits that reading it gives.

    Dense, a rounded weight is ``level * scale`` in the model's dtype; its codes are not found again by packing that.
    Packing takes the layers that ``lowdim.json`` lists, or, in a directory without one, every matrix inside a numbered
    block; in both cases only those that become smaller. Companion files are copied and ``lowdim.json`` is updated.

    Args:
        source: a directory that `Checkpoint` accepts.
        out: the directory to appear.
        storage: ``"packed"`` or ``"dense"``.
        overwrite: replace an existing result.
        rounded: weights that are to be packed with the codes they were rounded to.
        beside: what `lowdim.nn.slorb.detach` took off the model, which packed storage alone can hold.

    Returns:
        The directory.

    Raises:
        CheckpointError: the source is damaged, in that form already, has too few zeros to pack, or holds what dense
            storage cannot.
        OutputError: the output cannot be written.
    """
    if storage not in STORAGES:
        raise LowdimError(f"storage must be dense or packed, got {storage!r}. {suggest(storage, STORAGES)}")
    checkpoint = Checkpoint(source)
    if checkpoint.storage == storage:
        raise CheckpointError(f"{source} is stored {storage} already; copy it if you need another one")
    if storage == "dense" and (lost := next(filter(is_beside, [*checkpoint.names(), *(beside or {})]), None)):
        raise CheckpointError(
            f"{lost} is part of what the model computes, and stock Transformers would pass over it in a dense "
            "directory; keep it packed, or convert the model that was saved without it"
        )
    record = manifest.read(source) if manifest.exists(source) else None
    to_pack = _packable(checkpoint, record) if storage == "packed" else set()
    with Writer(out, overwrite=overwrite) as writer:
        try:
            return _convert(checkpoint, record, to_pack, rounded or {}, beside or {}, storage, writer)
        except BaseException:
            writer.directory.reset()
            raise


def _convert(
    checkpoint: Checkpoint,
    record: Manifest | None,
    to_pack: set[str],
    rounded: Mapping[str, Packed],
    beside: Mapping[str, Tensor],
    storage: str,
    writer: Writer,
) -> Path:
    writer.directory.require_space(sum(checkpoint.info(name).nbytes for name in checkpoint.names()) + (64 << 20))
    forms: dict[str, Form] = {}
    for index, file in enumerate(name for name in checkpoint.files if name.endswith(".safetensors")):
        forms |= _convert_shard(checkpoint, file, to_pack, rounded, {} if index else beside, writer)
    if storage == "packed" and not forms:
        raise CheckpointError(f"{checkpoint.path} has too few zeros: no weight would become smaller packed")
    for name in checkpoint.companions():
        writer.directory.copy(checkpoint.path / name)
    if record is not None:
        record.holds(forms)
        record.slorb = SLoRBPart.of(beside) if beside else None
        record.hashes.files = writer.hashes()
        writer.directory.write_text(manifest.FILE, manifest.to_text(record))
    return writer.finish()


def _convert_shard(
    checkpoint: Checkpoint,
    file: str,
    to_pack: Container[str],
    rounded: Mapping[str, Packed],
    beside: Mapping[str, Tensor],
    writer: Writer,
) -> dict[str, Form]:
    """Write one shard in the other form; return the forms of what is packed in it."""
    names = [name for name in checkpoint.names() if checkpoint.info(name).file == file]
    tensors: dict[str, Tensor | Stored | Packed] = dict(beside)
    for name in names:
        small = (rounded.get(name) or _pack_if_smaller(checkpoint.read(name))) if name in to_pack else None
        tensors[name] = small or _as_stored(checkpoint, name)
    old, new = ("model", STEM) if checkpoint.storage == "dense" else (STEM, "model")
    stored, metadata = lay_out(tensors)
    writer.write_shard(re.sub(f"^{old}", new, file), stored, checkpoint.metadata_of(file) | metadata)
    return {name: tensor.form for name, tensor in tensors.items() if isinstance(tensor, Packed)}


def _as_stored(checkpoint: Checkpoint, name: str) -> Tensor | Stored:
    return checkpoint.read(name) if checkpoint.is_packed(name) else checkpoint.stored(name)


def _pack_if_smaller(weight: Tensor) -> Packed | None:
    return pack(weight) if becomes_smaller(weight) else None


def _packable(checkpoint: Checkpoint, record: Manifest | None) -> set[str]:
    if record is not None and record.layers:
        return {tensor_name(checkpoint, layer) for layer in record.layers}
    infos = {name: checkpoint.info(name) for name in checkpoint.names() if re.search(r"\.\d+\.", name)}
    matrices = {name for name, info in infos.items() if len(info.shape) >= 2 and info.dtype.is_floating_point}
    return {name for name in matrices if not is_beside(name)}


def tensor_name(checkpoint: Checkpoint, layer: str) -> str:
    """Return the name under which the checkpoint has a layer's weight."""
    for name in (f"{layer}.weight", layer):
        if name in checkpoint:
            return name
    raise CheckpointError(f"{manifest.FILE} lists the layer {layer!r}, which {checkpoint.path} does not have")
