"""Output directories that are either complete or not there: ``OUT.partial/``, then one rename to ``OUT/``.

Every file is written under a temporary name, synced and renamed, so that what has its name in
``OUT.partial/`` is whole and a killed run can go on from it. A result that is to be replaced stays as it is
until the new one is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.consolidate import MAX_SHARD_BYTES, group, joined
from lowdim.models.disk.files import file_sha256, plain_name, read_json
from lowdim.models.disk.shard import Header, Stored, nbytes, read_header, write_file
from lowdim.runs.lock import LOCK, DirectoryLock, OutputError

STATE = "state.json"
FINAL = ".final"
_RESULTS = ("lowdim.json", "config.json", "*.safetensors", "*.safetensors.index.json")


def shard_name(index: int, count: int, stem: str = "model") -> str:
    """Return the standard name of shard ``index`` (from 1) of ``count``.

    Example:
        >>> shard_name(1, 1), shard_name(2, 12), shard_name(1, 3, "packed")
        ('model.safetensors', 'model-00002-of-00012.safetensors', 'packed-00001-of-00003.safetensors')
    """
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{index:05d}-of-{count:05d}.safetensors"


class Writer:
    """Write an output directory; a context manager.

    Leaving it by an exception, Ctrl-C included, keeps ``OUT.partial/`` for a later resume and releases the
    lock.

    Args:
        out: the directory to appear.
        overwrite: replace an existing result, at the end; unfinished work is thrown away.
        resume: go on from ``OUT.partial/`` where it exists.

    Attributes:
        out: the directory to appear.
        partial: where files are written meanwhile.
        state: a JSON object of the caller's, kept by `save_state` and found again on resume.

    Raises:
        OutputError: the output exists, is being written, is unfinished, or its parent cannot be written.
    """

    def __init__(self, out: str | Path, overwrite: bool = False, resume: bool = False) -> None:
        self.out = Path(out).resolve()
        self.partial = self.out.with_name(self.out.name + ".partial")
        self._place = self.partial
        self._old = self.out.with_name(self.out.name + ".replaced")
        self.state: dict[str, Any] = {}
        with self._reporting(self.partial, 0):
            self._lock = DirectoryLock(self.partial)
        try:
            self._prepare(overwrite, resume)
        except BaseException:
            self.close()
            raise

    def _prepare(self, overwrite: bool, resume: bool) -> None:
        # An earlier finish() was killed between its two renames, or after them.
        if self._old.exists() and not self.out.exists():
            os.rename(self._old, self.out)
        self._overwrite = overwrite
        self._check_out()
        if overwrite:
            shutil.rmtree(self._old, ignore_errors=True)
        with self._reporting(self.partial, 0):
            for stale in self.partial.glob(".*.tmp"):
                stale.unlink()
            shutil.rmtree(self.partial / FINAL, ignore_errors=True)
        begun = sorted(path.name for path in self.partial.iterdir() if path.name != LOCK)
        if begun and resume:
            self.state = self._read_state()
        elif begun and overwrite:
            self.reset()
        elif begun:
            raise OutputError(
                f"{self.partial} holds an unfinished run. Resume it, overwrite it, or remove that directory."
            )

    def _check_out(self) -> None:
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise OutputError(f"{self.out} is a file; the output must be a directory that does not exist yet")
        if not any(self.out.iterdir()):
            return
        if not self._overwrite:
            raise OutputError(
                f"{self.out} exists and is not empty. Choose another output, or allow overwriting it."
            )
        if not any(found for pattern in _RESULTS for found in self.out.glob(pattern)):
            raise OutputError(
                f"{self.out} does not hold a model; it is not overwritten. Remove it yourself if you can."
            )

    def _read_state(self) -> dict[str, Any]:
        try:
            return read_json(self.partial / STATE) if self.has(STATE) else {}
        except CheckpointError as error:
            raise OutputError(f"cannot resume from {self.partial}: {error}. Overwrite it instead.") from error

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; what was written stays in ``OUT.partial/``, unless that is nothing."""
        self._lock.release(self.partial)
        with contextlib.suppress(OSError):
            self.partial.rmdir()

    def reset(self) -> None:
        """Throw away what ``OUT.partial/`` holds."""
        self.state, self._place = {}, self.partial
        with self._reporting(self.partial, 0):
            for path in self.partial.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def require_space(self, needed: int) -> None:
        """Check that the file system has room for ``needed`` more bytes.

        Raises:
            OutputError: it has not; both numbers are given.
        """
        free = shutil.disk_usage(self.partial).free
        if free < needed:
            raise OutputError(
                f"{self.partial.parent} has {free:,} bytes free, and {needed:,} are needed. Free some "
                "space or choose another output."
            )

    def has(self, name: str) -> bool:
        """Tell whether a file is already there, whole."""
        return (self.partial / name).is_file() or (self._place / name).is_file()

    def write_shard(
        self, name: str, tensors: Mapping[str, Tensor | Stored], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write a safetensors file; its bytes depend on the arguments alone.

        Args:
            name: the file, see `shard_name`.
            tensors: what it holds; a `Stored` is copied from its file.
            metadata: its ``__metadata__``; ``format: pt``, which Transformers asks for, is added.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """
        if not name.endswith(".safetensors"):
            raise ValueError(f"name must end with .safetensors, got {name!r}")
        metadata = {"format": "pt", **(metadata or {})}
        needed = sum(nbytes(tensor) for tensor in tensors.values())
        self._write(name, lambda file: write_file(file, tensors, metadata), needed)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file: UTF-8, two spaces, keys in the order given."""
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file."""
        data = text.encode()
        self._write(name, lambda file: file.write(data), len(data))

    def copy(self, source: Path, name: str | None = None) -> None:
        """Copy a file's bytes, under its own name or another."""
        with self._reporting(source, 0):
            needed = source.stat().st_size

        def transfer(file: IO[bytes]) -> None:
            with source.open("rb") as origin:
                shutil.copyfileobj(origin, file, 1 << 20)

        self._write(name or source.name, transfer, needed)

    def save_state(self) -> None:
        """Make `state` durable."""
        data = json.dumps(self.state, indent=2).encode()
        self._write(STATE, lambda file: file.write(data), len(data), self.partial)

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file, the index included, ``lowdim.json`` and the state not."""
        self.write_index()
        return {name: file_sha256(self._place / name) for name in self._finished() if name != "lowdim.json"}

    def _finished(self) -> list[str]:
        names = sorted(path.name for path in self._place.iterdir() if path.is_file())
        return [name for name in names if name not in {LOCK, STATE}]

    def _headers(self) -> dict[str, Header]:
        return {path.name: read_header(path) for path in sorted(self._place.glob("*.safetensors"))}

    def write_index(self) -> None:
        """Write the index of several shards; called by `hashes` and `finish`."""
        headers = self._headers()
        if len(headers) < 2:
            return
        total = sum(stored.nbytes for header in headers.values() for stored in header.tensors.values())
        where = {name: file for file, header in headers.items() for name in header.tensors}
        if len(where) != sum(len(header.tensors) for header in headers.values()):
            raise OutputError(f"two shards in {self.partial} hold a tensor of the same name")
        stem = _stem(headers)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        self.write_json(f"{stem}.safetensors.index.json", index)

    def consolidate(self, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """Gather the shards into as few as the limit allows; what is written later joins them.

        The small ones stay until `finish`, so that a run killed meanwhile can be resumed from them. Where the
        disk has no room for both, they stay for good.
        """
        headers = self._headers()
        sizes = {name: (self.partial / name).stat().st_size for name in headers}
        groups = group(sizes, max_shard_bytes)
        if len(groups) == len(headers) or shutil.disk_usage(self.partial).free < sum(sizes.values()):
            return
        stem, others = _stem(headers), [n for n in self._finished() if ".safetensors" not in n]
        self._place = self.partial / FINAL
        with self._reporting(self._place, sum(sizes.values())):
            self._place.mkdir()
        for name in others:
            self.copy(self.partial / name)
        for index, names in enumerate(groups, start=1):
            self.write_shard(shard_name(index, len(groups), stem), *joined([headers[name] for name in names]))

    def finish(self) -> Path:
        """Write the index, drop the state, and let the result appear under its name.

        Returns:
            The directory.

        Raises:
            OutputError: the disk is full or the directory cannot be renamed; the old result is still in place.
        """
        self._check_out()
        self.write_index()
        with self._reporting(self.out, 0):
            (self._place / STATE).unlink(missing_ok=True)
            _sync(self._place)
            self._swap()
            _sync(self.out.parent)
        if self._place == self.partial:
            self._lock.release(self.out)
        else:  # before the lock goes, since another writer may begin at once
            shutil.rmtree(self.partial, ignore_errors=True)
            self._lock.release(None)
        shutil.rmtree(self._old, ignore_errors=True)
        return self.out

    def _swap(self) -> None:
        if not self.out.exists():
            os.rename(self._place, self.out)
            return
        shutil.rmtree(self._old, ignore_errors=True)
        os.rename(self.out, self._old)
        try:
            os.rename(self._place, self.out)
        except OSError:
            os.rename(self._old, self.out)
            raise

    def _write(
        self, name: str, fill: Callable[[IO[bytes]], object], needed: int, place: Path | None = None
    ) -> None:
        if not plain_name(name):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        place = place or self._place
        temporary, target = place / f".{name}.tmp", place / name
        with self._reporting(target, needed):
            try:
                with temporary.open("wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
                _sync(place)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def _reporting(self, path: Path, needed: int) -> Iterator[None]:
        """Turn an OSError into one paragraph that says what is lost (nothing) and what to do."""
        try:
            yield
        except OSError as error:
            size = f" ({needed:,} bytes)" if needed else ""
            kept = (
                f" What is finished stays in {self.partial}: resume from there."
                if self.partial.is_dir()
                else ""
            )
            raise OutputError(f"cannot write {path}{size}: {error.strerror or error}.{kept}") from error


def _stem(shards: Iterable[str]) -> str:
    return min(shards).partition("-")[0].removesuffix(".safetensors")


def _sync(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
