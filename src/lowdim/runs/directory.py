"""Output directories that are either complete or not there: ``OUT.partial/``, then one rename to ``OUT/``.

Every file is written under a temporary name, synced and renamed, so that what has its name in ``OUT.partial/`` is
whole and a killed run can go on from it. A result that is to be replaced stays as it is until the new one is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from lowdim.core.errors import CheckpointError, RecipeError
from lowdim.core.files import plain_name, read_json
from lowdim.runs.fingerprint import goes_on
from lowdim.runs.lock import LOCK, DirectoryLock, OutputError

STATE = "state.json"
FINAL = ".final"
_RESULTS = ("lowdim.json", "config.json", "*.safetensors", "*.safetensors.index.json")


class Directory:
    """Write an output directory; a context manager.

    Leaving it by an exception, Ctrl-C included, keeps ``OUT.partial/`` for a later resume and releases the lock.

    Args:
        out: the directory to appear.
        overwrite: replace an existing result, at the end; unfinished work is thrown away.
        resume: go on from ``OUT.partial/`` where it exists.

    Attributes:
        out: the directory to appear.
        partial: where files are written meanwhile.
        place: where the next one goes: ``partial``, or a directory in it, see `gather`.
        state: a JSON object of the caller's, kept by `save_state` and found again on resume.

    Raises:
        OutputError: the output exists, is being written, is unfinished, or its parent cannot be written.
    """

    def __init__(self, out: str | Path, overwrite: bool = False, resume: bool = False) -> None:
        self.out = Path(out).resolve()
        self.partial = self.place = partial_of(self.out)
        self._old = self.out.with_name(self.out.name + ".replaced")
        self.state: dict[str, Any] = {}
        self._overwrite = overwrite
        with _reporting(self.partial, 0, self.partial):
            self._lock = DirectoryLock(self.partial)
        try:
            self._prepare(resume)
        except BaseException:
            self.close()
            raise

    def _prepare(self, resume: bool) -> None:
        # An earlier finish() was killed between its two renames, or after them.
        if self._old.exists() and not self.out.exists():
            os.rename(self._old, self.out)
        self._check_out()
        if self._overwrite:
            shutil.rmtree(self._old, ignore_errors=True)
        with _reporting(self.partial, 0, self.partial):
            for stale in self.partial.glob(".*.tmp"):
                stale.unlink()
            shutil.rmtree(self.partial / FINAL, ignore_errors=True)
        begun = any(path.name != LOCK for path in self.partial.iterdir())
        if begun and resume:
            self.state = self._read_state()
        elif begun and self._overwrite:
            self.reset()
        elif begun:
            raise OutputError(
                f"{self.partial} holds an unfinished run. Resume it, overwrite it, or remove that directory."
            )

    def _check_out(self) -> None:
        empty = self.out.is_dir() and not os.path.ismount(self.out) and not any(self.out.iterdir())
        if not self.out.exists() or empty:
            return
        if os.path.ismount(self.out):
            wrong = (
                f"is a mount point, which nothing can be put in the place of. Give {self.out / 'model'}, for example."
            )
        elif not self.out.is_dir():
            wrong = "is a file; the output must be a directory that does not exist yet"
        elif not self._overwrite:
            wrong = "exists and is not empty. Choose another output, or allow overwriting it."
        elif not any(found for pattern in _RESULTS for found in self.out.glob(pattern)):
            wrong = "does not hold a model; it is not overwritten. Remove it yourself if you can."
        else:
            return
        raise OutputError(f"{self.out} {wrong}")

    def _read_state(self) -> dict[str, Any]:
        try:
            return read_json(self.partial / STATE) if self.has(STATE) else {}
        except CheckpointError as error:
            raise OutputError(f"cannot resume from {self.partial}: {error}. Overwrite it instead.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; what was written stays in ``OUT.partial/``, unless that is nothing."""
        self._lock.release(self.partial)
        with contextlib.suppress(OSError):
            self.partial.rmdir()

    def reset(self) -> None:
        """Throw away what ``OUT.partial/`` holds; of a result that has appeared there is nothing left in it."""
        self.state, self.place = {}, self.partial
        if not self.partial.is_dir():
            return
        with _reporting(self.partial, 0, self.partial):
            for path in self.partial.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def begin(self, fingerprint: Mapping[str, Any]) -> None:
        """Begin, or go on with, a run of this fingerprint; files of an unknown origin are thrown away.

        Raises:
            ResumeError: the unfinished run has another one; the first fields that differ are named.
        """
        if not goes_on(self.state, fingerprint, self.partial):
            self.reset()
            self.state = {"fingerprint": dict(fingerprint)}
            self.save_state()

    def require_space(self, needed: int) -> None:
        """Check that the file system has room for an output of ``needed`` bytes; some may lie there already."""
        free, place = shutil.disk_usage(self.partial).free, self.partial.parent
        there = (path for path in self.partial.rglob("*") if path.is_file() and path.name != LOCK)
        needed -= sum(path.stat().st_size for path in there)
        if free < needed:
            wrong = f"{place} has {free:,} bytes free, and {needed:,} are needed"
            raise OutputError(f"{wrong}. Free some space or choose another output.")

    def has(self, name: str) -> bool:
        """Tell whether a file is already there, whole."""
        return (self.partial / name).is_file() or (self.place / name).is_file()

    def files(self) -> list[str]:
        """Return the names of the files that will appear, sorted; those that begin with a dot are for the run alone."""
        names = sorted(path.name for path in self.place.iterdir() if path.is_file())
        return [name for name in names if name != STATE and not name.startswith(".")]

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file: UTF-8, two spaces, keys in the order given."""
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file."""
        data = text.encode()
        self.write(name, lambda file: file.write(data), len(data))

    def copy(self, source: Path, name: str | None = None, place: Path | None = None) -> None:
        """Copy a file's bytes, under its own name or another, to where `write` writes."""
        with _reporting(source, 0, self.partial), source.open("rb") as origin:
            needed = os.fstat(origin.fileno()).st_size
            self.write(name or source.name, lambda file: shutil.copyfileobj(origin, file, 1 << 20), needed, place)

    def save_state(self) -> None:
        """Make `state` durable."""
        data = json.dumps(self.state, indent=2).encode()
        self.write(STATE, lambda file: file.write(data), len(data), self.partial)

    def gather(self, names: Iterable[str], needed: int) -> None:
        """Let the result appear from a fresh directory, which gets copies of these files and all that comes later.

        What was written before stays until `finish`, so that a run killed in between can be resumed from it.
        """
        self.place = self.partial / FINAL
        with _reporting(self.place, needed, self.partial):
            self.place.mkdir()
        for name in names:
            self.copy(self.partial / name)

    def finish(self) -> Path:
        """Drop the state and let the result appear under its name; return the directory.

        Raises:
            OutputError: the disk is full or the directory cannot be renamed; the old result is still in place.
        """
        self._check_out()
        with _reporting(self.out, 0, self.partial):
            (self.place / STATE).unlink(missing_ok=True)  # first: without it a killed run begins anew
            for own in self.place.glob(".*"):
                if own.is_file() and own.name != LOCK:
                    own.unlink()
            _sync(self.place)
            self._swap()
            _sync(self.out.parent)
        if self.place == self.partial:
            self._lock.release(self.out)
        else:  # before the lock goes, since another writer may begin at once
            shutil.rmtree(self.partial, ignore_errors=True)
            self._lock.release(None)
        shutil.rmtree(self._old, ignore_errors=True)
        return self.out

    def _swap(self) -> None:
        if not self.out.exists():
            os.rename(self.place, self.out)
            return
        shutil.rmtree(self._old, ignore_errors=True)
        os.rename(self.out, self._old)
        try:
            os.rename(self.place, self.out)
        except OSError:
            os.rename(self._old, self.out)
            raise

    def write(self, name: str, fill: Callable[[IO[bytes]], object], needed: int, place: Path | None = None) -> None:
        """Write a file, whole or not at all: ``fill`` writes about ``needed`` bytes to it.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """
        if not plain_name(name):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        write_whole((place or self.place) / name, fill, needed, self.partial)


def write_whole(target: Path, fill: Callable[[IO[bytes]], object], needed: int, partial: Path) -> None:
    """Write a file of the run that fills ``partial``, as `Directory.write` does, which only one process has."""
    temporary = target.with_name(f".{target.name}.tmp")
    with _reporting(target, needed, partial):
        try:
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _reporting(path: Path, needed: int, partial: Path) -> Iterator[None]:
    """Turn an OSError into one paragraph that says what is lost (nothing) and what to do."""
    try:
        yield
    except OSError as error:
        size, kept = f" ({needed:,} bytes)" if needed else "", ""
        if partial.is_dir():
            kept = f" What is finished stays in {partial}: resume from there."
        raise OutputError(f"cannot write {path}{size}: {error.strerror or error}.{kept}") from error


def partial_of(out: Path) -> Path:
    """Return where the files of an output are while it is written: beside what it is, if its name is a link."""
    place = out.resolve()
    return place.with_name(f"{place.name}.partial")


def check_idle(out: object, resume: bool, overwrite: bool) -> None:
    """Refuse to go on with, or to replace, an output that is not asked for.

    Example:
        >>> check_idle(None, resume=True, overwrite=False)
        Traceback (most recent call last):
        lowdim.core.errors.RecipeError: resume is about an output, and without out there is none. Give out, or leave
        resume out.
    """
    asked = [name for name, given in (("resume", resume), ("overwrite", overwrite)) if given]
    if out is None and asked:
        raise RecipeError(
            f"{asked[0]} is about an output, and without out there is none. Give out, or leave {asked[0]} out."
        )


def tidy(out: Path) -> None:
    """Remove what a run leaves beside its output that was killed once this had appeared.

    Raises:
        OutputError: another process is writing it.
    """
    real = out.resolve()
    if any(real.with_name(f"{real.name}.{end}").exists() for end in ("partial", "replaced")):
        Directory(out, overwrite=True).close()
    if (out / LOCK).exists():  # killed between the rename and this
        DirectoryLock(out).release(out)
    out.with_name(f".{out.name}.run.json.tmp").unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
