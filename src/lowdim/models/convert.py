"""Dense to packed and back, bit for bit, one shard at a time."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from torch import Tensor

from lowdim.core.errors import CheckpointError, LowdimError, suggest
from lowdim.models import manifest, packed
from lowdim.models.checkpoint import Checkpoint
from lowdim.models.manifest import Manifest, PackedPart
from lowdim.models.shard import Stored
from lowdim.models.writer import Writer

STORAGES = ("dense", "packed")
Shapes = dict[str, list[int]]


def convert(source: str | Path, out: str | Path, storage: str, overwrite: bool = False) -> Path:
    """Write a directory again in the other form of storage; every tensor keeps its bits.

    Packing takes the layers that ``lowdim.json`` lists, or, in a directory without one, every matrix inside a
    numbered block; in both cases only those that become smaller. Companion files are copied and
    ``lowdim.json`` is updated.

    Args:
        source: a directory that `Checkpoint` accepts.
        out: the directory to appear.
        storage: ``"packed"`` or ``"dense"``.
        overwrite: replace an existing result.

    Returns:
        The directory.

    Raises:
        CheckpointError: the source is damaged, in that form already, or has too few zeros to pack.
        OutputError: the output cannot be written.
    """
    if storage not in STORAGES:
        raise LowdimError(f"storage must be dense or packed, got {storage!r}. {suggest(storage, STORAGES)}")
    checkpoint = Checkpoint(source)
    if checkpoint.storage == storage:
        raise CheckpointError(f"{source} is stored {storage} already; copy it if you need another one")
    record = manifest.read(source) if manifest.exists(source) else None
    to_pack = _packable(checkpoint, record) if storage == "packed" else set()
    with Writer(out, overwrite=overwrite) as writer:
        try:
            return _convert(checkpoint, record, to_pack, storage, writer)
        except BaseException:
            writer.reset()
            raise


def _convert(
    checkpoint: Checkpoint, record: Manifest | None, to_pack: set[str], storage: str, writer: Writer
) -> Path:
    writer.require_space(sum(checkpoint.info(name).nbytes for name in checkpoint.names()) + (64 << 20))
    shapes: Shapes = {}
    for file in (name for name in checkpoint.files if name.endswith(".safetensors")):
        shapes |= _convert_shard(checkpoint, file, to_pack, writer)
    if storage == "packed" and not shapes:
        raise CheckpointError(f"{checkpoint.path} has too few zeros: no weight would become smaller packed")
    for name in checkpoint.companions():
        writer.copy(checkpoint.path / name)
    if record is not None:
        record.storage = "packed" if shapes else "dense"
        record.packed = PackedPart(format=packed.FORMAT, weights=shapes) if shapes else None
        record.hashes.files = writer.hashes()
        writer.write_text(manifest.FILE, manifest.to_text(record))
    return writer.finish()


def _convert_shard(checkpoint: Checkpoint, file: str, to_pack: Container[str], writer: Writer) -> Shapes:
    """Write one shard in the other form; return the shapes of what is packed in it."""
    names = [name for name in checkpoint.names() if checkpoint.info(name).file == file]
    tensors: dict[str, Tensor | Stored] = {}
    shapes: Shapes = {}
    for name in names:
        if name in to_pack and (parts := _pack_if_smaller(checkpoint.read(name))):
            tensors |= zip(packed.free_names(name, {*names, *tensors}), parts, strict=True)
            shapes[name] = list(checkpoint.info(name).shape)
        else:
            tensors[name] = checkpoint.read(name) if checkpoint.is_packed(name) else checkpoint.stored(name)
    old, new = ("model", packed.STEM) if checkpoint.storage == "dense" else (packed.STEM, "model")
    metadata = checkpoint.metadata_of(file) | (packed.packed_metadata(shapes) if shapes else {})
    writer.write_shard(re.sub(f"^{old}", new, file), tensors, metadata)
    return shapes


def _pack_if_smaller(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    return packed.pack(weight) if packed.packed_bytes(weight) < weight.nbytes else None


def _packable(checkpoint: Checkpoint, record: Manifest | None) -> set[str]:
    if record is not None and record.layers:
        return {tensor_name(checkpoint, layer) for layer in record.layers}
    infos = {name: checkpoint.info(name) for name in checkpoint.names() if re.search(r"\.\d+\.", name)}
    return {name for name, info in infos.items() if len(info.shape) >= 2 and info.dtype.is_floating_point}


def tensor_name(checkpoint: Checkpoint, layer: str) -> str:
    """Return the name under which the checkpoint has a layer's weight.

    Raises:
        CheckpointError: it has none.
    """
    for name in (f"{layer}.weight", layer):
        if name in checkpoint:
            return name
    raise CheckpointError(f"{manifest.FILE} lists the layer {layer!r}, which {checkpoint.path} does not have")
