"""Checkpoints written shard by shard into a `lowdim.runs.directory.Directory`, with an index of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from torch import Tensor

from lowdim.core.files import file_sha256
from lowdim.models.disk.consolidate import MAX_SHARD_BYTES, group, joined
from lowdim.models.disk.packed_header import STEM, is_beside
from lowdim.models.disk.shard import Header, Stored, nbytes, read_header, write_file
from lowdim.runs.directory import Directory
from lowdim.runs.lock import OutputError


def shard_name(index: int, count: int, stem: str = "model") -> str:
    """Return the standard name of shard ``index`` (from 1) of ``count``.

    Example:
        >>> shard_name(1, 1), shard_name(2, 12), shard_name(1, 3, "packed")
        ('model.safetensors', 'model-00002-of-00012.safetensors', 'packed-00001-of-00003.safetensors')
    """
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{index:05d}-of-{count:05d}.safetensors"


def write_tensors(
    directory: Directory, name: str, tensors: Mapping[str, Tensor | Stored], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; its bytes depend on the arguments alone.

    To its ``__metadata__`` is added ``format: pt``, which Transformers asks for.

    Raises:
        OutputError: the disk is full or the file cannot be written.
    """
    if not name.endswith(".safetensors"):
        raise ValueError(f"name must end with .safetensors, got {name!r}")
    metadata = {"format": "pt", **(metadata or {})}
    needed = sum(nbytes(tensor) for tensor in tensors.values())
    directory.write(name, lambda file: write_file(file, tensors, metadata), needed)


class Writer:
    """Write a checkpoint to an output directory; a context manager, as the directory is.

    Args:
        out: the directory to appear.
        overwrite: replace an existing result, at the end; unfinished work is thrown away.
        resume: go on from ``OUT.partial/`` where it exists.

    Attributes:
        directory: what the files are written to, the ones without tensors as well.

    Raises:
        OutputError: the output exists, is being written, is unfinished, or its parent cannot be written.
    """

    def __init__(self, out: str | Path, overwrite: bool = False, resume: bool = False) -> None:
        self.directory = Directory(out, overwrite, resume)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.directory.close()

    def write_shard(
        self, name: str, tensors: Mapping[str, Tensor | Stored], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write one shard, see `shard_name` and `write_tensors`.

        Raises:
            OutputError: the file is one that stock Transformers reads, and a tensor in it is one that it passes over.
        """
        lost = next((each for each in tensors if is_beside(each)), None)
        if lost is not None and not name.startswith(STEM):
            raise OutputError(
                f"{lost} would be passed over in {name}, without a word. Write packed storage ({STEM}...)"
            )
        write_tensors(self.directory, name, tensors, metadata)

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file, the index included, ``lowdim.json`` and the state not."""
        self.write_index()
        place = self.directory.place
        return {name: file_sha256(place / name) for name in self.directory.files() if name != "lowdim.json"}

    def _headers(self) -> dict[str, Header]:
        return {path.name: read_header(path) for path in sorted(self.directory.place.glob("[!.]*.safetensors"))}

    def write_index(self) -> None:
        """Write the index of several shards; called by `hashes` and `finish`."""
        headers = self._headers()
        if len(headers) < 2:
            return
        total = sum(stored.nbytes for header in headers.values() for stored in header.tensors.values())
        where = {name: file for file, header in headers.items() for name in header.tensors}
        if len(where) != sum(len(header.tensors) for header in headers.values()):
            raise OutputError(f"two shards in {self.directory.partial} hold a tensor of the same name")
        stem = _stem(headers)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        self.directory.write_json(f"{stem}.safetensors.index.json", index)

    def consolidate(self, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """Gather the shards into as few as the limit allows; what is written later joins them.

        The small ones stay until `finish`, so that a run killed meanwhile can be resumed from them. Where the
        disk has no room for both, they stay for good.
        """
        headers, partial = self._headers(), self.directory.partial
        sizes = {name: (partial / name).stat().st_size for name in headers}
        groups = group(sizes, max_shard_bytes)
        if len(groups) == len(headers) or shutil.disk_usage(partial).free < sum(sizes.values()):
            return
        others = [name for name in self.directory.files() if ".safetensors" not in name]
        self.directory.gather(others, sum(sizes.values()))
        stem = _stem(headers)
        for index, names in enumerate(groups, start=1):
            self.write_shard(shard_name(index, len(groups), stem), *joined([headers[name] for name in names]))

    def finish(self) -> Path:
        """Write the index and let the result appear; see `lowdim.runs.directory.Directory.finish`."""
        self.write_index()
        return self.directory.finish()


def _stem(shards: Iterable[str]) -> str:
    return min(shards).partition("-")[0].removesuffix(".safetensors")
