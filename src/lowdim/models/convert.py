"""Dense to packed and back, bit for bit, one shard at a time."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from lowdim.core.errors import CheckpointError, LowdimError, suggest
from lowdim.models import manifest, packed
from lowdim.models.checkpoint import Checkpoint
from lowdim.models.manifest import PackedPart
from lowdim.models.shard import Stored
from lowdim.models.writer import Writer

STORAGES = ("dense", "packed")


def convert(source: str | Path, out: str | Path, storage: str, overwrite: bool = False) -> Path:
    """Write a directory again in the other form of storage; every tensor keeps its bits.

    Packing takes the layers that ``lowdim.json`` lists, or, in a directory without one, every matrix inside a numbered
    block; in both cases only those that become smaller. Companion files are copied, ``lowdim.json`` is updated.

    Args:
        source: a directory that `Checkpoint` accepts.
        out: the directory to appear.
        storage: ``"packed"`` or ``"dense"``.
        overwrite: replace an existing result.

    Returns:
        The directory.

    Raises:
        CheckpointError: the source is damaged, or in that form already.
        OutputError: the output cannot be written.
    """
    if storage not in STORAGES:
        raise LowdimError(f"storage must be dense or packed, got {storage!r}. {suggest(storage, STORAGES)}")
    checkpoint = Checkpoint(source)
    if checkpoint.storage == storage:
        raise CheckpointError(f"{source} is stored {storage} already; copy it if you need another one")
    record = manifest.read(source) if manifest.exists(source) else None
    layers = _layers(checkpoint, record)
    shapes: dict[str, list[int]] = {}
    with Writer(out, overwrite=overwrite) as writer:
        writer.require_space(_bytes_needed(checkpoint))
        for file in (name for name in checkpoint.files if name.endswith(".safetensors")):
            names = [name for name in checkpoint.names() if checkpoint.info(name).file == file]
            shapes |= _convert_shard(
                checkpoint, file, names, layers if storage == "packed" else set(), writer
            )
        for name in checkpoint.companions():
            writer.copy(checkpoint.path / name)
        if record is not None:
            record.storage = "packed" if storage == "packed" else "dense"
            record.packed = PackedPart(format=packed.FORMAT, weights=shapes) if storage == "packed" else None
            record.hashes.files = writer.hashes()
            writer.write_text(manifest.FILE, manifest.to_text(record))
        return writer.finish()


def _convert_shard(
    checkpoint: Checkpoint, file: str, names: list[str], to_pack: set[str], writer: Writer
) -> dict[str, list[int]]:
    """Write one shard in the other form; return the shapes of what is packed in it."""
    tensors: dict[str, Tensor | Stored] = {}
    shapes: dict[str, list[int]] = {}
    for name in names:
        if name in to_pack and (parts := _pack_if_smaller(checkpoint.read(name))):
            tensors |= zip(packed.stored_names(name), parts, strict=True)
            shapes[name] = list(checkpoint.info(name).shape)
        else:
            tensors[name] = checkpoint.read(name) if checkpoint.is_packed(name) else checkpoint.stored(name)
    old, new = ("model", packed.STEM) if checkpoint.storage == "dense" else (packed.STEM, "model")
    metadata = checkpoint.metadata_of(file) | (packed.packed_metadata(shapes) if shapes else {})
    writer.write_shard(re.sub(f"^{old}", new, file), tensors, metadata)
    return shapes


def _pack_if_smaller(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    return packed.pack(weight) if packed.packed_bytes(weight) < weight.nbytes else None


def _layers(checkpoint: Checkpoint, record: manifest.Manifest | None) -> set[str]:
    """Return the names of the weights that may be packed."""
    if record is not None and record.layers:
        return {tensor_name(checkpoint, layer) for layer in record.layers}
    infos = {name: checkpoint.info(name) for name in checkpoint.names()}
    return {
        name
        for name, info in infos.items()
        if re.search(r"\.\d+\.", name) and len(info.shape) >= 2 and info.dtype.is_floating_point
    }


def tensor_name(checkpoint: Checkpoint, layer: str) -> str:
    """Return the name under which the checkpoint has a layer's weight.

    Raises:
        CheckpointError: it has none.
    """
    names = checkpoint.names()
    for name in (f"{layer}.weight", layer):
        if name in names:
            return name
    raise CheckpointError(f"{manifest.FILE} lists the layer {layer!r}, which {checkpoint.path} does not have")


def _bytes_needed(checkpoint: Checkpoint) -> int:
    """Return an upper bound on the bytes of the result."""
    return sum(checkpoint.info(name).nbytes for name in checkpoint.names()) + (64 << 20)
