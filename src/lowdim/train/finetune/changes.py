"""What fine-tuning wrote: every tensor in its own type again, and compared with the source, as both are on disk."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.core.files import file_sha256
from lowdim.models.disk import manifest, packed
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import tensor_name
from lowdim.models.disk.manifest import Manifest
from lowdim.models.disk.rewrite import recounted
from lowdim.models.disk.shard import write_file


def in_own_types(place: Path, source: Checkpoint) -> None:
    """Write the tensors of a directory again, each in the type that it has in the source.

    Entries that were computed with in a narrower type and have not changed get back all bits that they had.
    """
    written = Checkpoint(place)
    for file in [name for name in written.files if name.endswith(".safetensors")]:
        names = [name for name in written.names() if written.info(name).file == file]
        if all(name not in source or written.info(name).dtype == source.info(name).dtype for name in names):
            continue
        tensors = {n: _widened(written.read(n), source.read(n)) if n in source else written.read(n) for n in names}
        temporary, metadata = place / f".{file}.tmp", written.metadata_of(file)
        with temporary.open("wb") as out:
            write_file(out, tensors, {"format": "pt", **metadata})
        temporary.replace(place / file)


def _widened(now: Tensor, was: Tensor) -> Tensor:
    if now.shape != was.shape:
        return now
    return torch.where(now == was.to(now.dtype), was, now.to(was.dtype))


def pruned_in(source: Checkpoint, masked: Iterable[str]) -> set[str]:
    """Return which tensors of a source were pruned.

    Args:
        source: with a ``lowdim.json`` or not.
        masked: weights of the model that have zeros to be kept, by their names in it; experts that are stacked there
            may be apart on disk.
    """
    if manifest.exists(source.path):
        return {tensor_name(source, layer) for layer in manifest.read(source.path).layers}
    found = set()
    for name in masked:
        inside = name.rpartition(".")[0] + "."
        found |= {name} if name in source else {each for each in source.names() if each.startswith(inside)}
    return found


def compared(source: Checkpoint, written: Checkpoint, pruned: Container[str]) -> dict[str, Any]:
    """Return which entries differ from those of the source in their bits, and what became of its zeros.

    Args:
        source: what was trained on.
        written: what came of it.
        pruned: names of the tensors whose zeros are to stay, see `pruned_in`.

    Returns:
        ``tensors``, compared; ``weights`` in them; ``changed``, entries by tensor, unchanged ones left out;
        ``missing``, tensors that one side alone has; and of the pruned tensors: ``pruned``, how many there are,
        ``zeros`` in them, ``filled``, those that are not zero any more, and ``emptied``, kept weights that are.
    """
    names = [name for name in source.names() if name in written]
    found: dict[str, Any] = {"tensors": len(names), "weights": 0, "changed": {}}
    found["missing"] = sorted({*source.names()} ^ {*written.names()})
    zeros = {"pruned": 0, "zeros": 0, "filled": 0, "emptied": 0}
    for name in names:
        was, now = source.read(name), written.read(name)
        found["weights"] += was.numel()
        if differing := _differing(was, now):
            found["changed"][name] = differing
        if name in pruned:
            kept = was != 0
            more = {"pruned": 1, "zeros": int((~kept).sum())}
            more |= {"filled": int((~kept & (now != 0)).sum()), "emptied": int((kept & (now == 0)).sum())}
            zeros = {key: zeros[key] + more[key] for key in zeros}
    return {**found, **zeros}


def _differing(was: Tensor, now: Tensor) -> int:
    if was.shape != now.shape or was.dtype != now.dtype:
        return was.numel()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[was.element_size()]
    return int((was.contiguous().view(bits) != now.contiguous().view(bits)).sum())


def check(found: Mapping[str, Any], allowed: Mapping[str, int] | None, known: Container[str]) -> None:
    """Refuse a result in which more has changed than was trained, or a zero is none any more.

    Args:
        found: what `compared` returned.
        allowed: how many entries of a weight may differ, by its name in the model; none of others. None allows all.
        known: names on disk. Where the model has others (experts that are stacked), the sum alone is looked at.

    Raises:
        CheckpointError: names the tensor.
    """
    if found["filled"]:
        raise CheckpointError(f"{found['filled']:,} zeros of the pruned model were filled; nothing is written")
    if allowed is None:
        return
    for name, count in found["changed"].items():
        if count > allowed.get(name, 0) and all(each in known for each in allowed):
            raise CheckpointError(
                f"{count:,} entries of {name} differ from the source, and {allowed.get(name, 0):,} were trained; "
                "nothing is written"
            )
    if sum(found["changed"].values()) > sum(allowed.values()):
        raise CheckpointError("more entries differ from the source than were trained; nothing is written")


def record_of(source: Checkpoint, place: Path, finetuning: Mapping[str, Any]) -> Manifest | None:
    """Return what ``lowdim.json`` says of a fine-tuned sparse model; None where the source has no such file.

    What was measured of the source is left out; layers, masks and files are as they are found in the directory.
    """
    if not manifest.exists(source.path):
        return None
    record, written = manifest.read(source.path), Checkpoint(place)
    masks = {layer: packed.kept(written.read(tensor_name(written, layer))) for layer in record.layers}
    record = recounted(record, masks, sum(written.info(name).numel for name in written.names()))
    record.storage, record.packed, record.evaluation = "dense", None, {}
    record.finetuning, record.versions = dict(finetuning), manifest.versions()
    record.hashes.files = {path.name: file_sha256(path) for path in _files(place)}
    return record


def _files(place: Path) -> Iterator[Path]:
    return (path for path in sorted(place.iterdir()) if path.is_file() and path.name != manifest.FILE)
