"""API keys: read from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from lowdim.core.errors import RecipeError

_LARGEST = 64 * 1024


class Keys:
    """The keys that open a server. Only their hashes are kept.

    Example:
        >>> keys = Keys(["secret"])
        >>> keys.accepts("Bearer secret"), keys.accepts("Bearer other"), keys.accepts(None)
        (True, False, False)
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [_hash(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accepts(self, authorization: str | None) -> bool:
        """Return whether an ``Authorization`` header carries one of the keys.

        How long this takes depends on the number of keys alone: every hash is compared, and in constant time.
        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        given = _hash(key.strip().encode("latin-1", "replace"))
        same = [hmac.compare_digest(given, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(same)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: str | Path) -> Keys:
    """Read a file with one key on each line; empty lines and lines that begin with ``#`` do not count.

    Raises:
        RecipeError: the file is missing, not a file, not readable, writable by others, or holds no key.
    """
    path = Path(path).expanduser()
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise RecipeError(f"--api-key-file: {path} is not a regular file. Give a text file, one key a line.")
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"--api-key-file: {path} cannot be read: {error.strerror}.") from error
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RecipeError(f"--api-key-file: other users may write to {path}. Run: chmod 600 {path}")
    if len(raw) > _LARGEST:
        raise RecipeError(f"--api-key-file: {path} has more than {_LARGEST} bytes; is it the right file?")
    return Keys(_parse(path, raw))


def is_exposed(path: str | Path) -> bool:
    """Return whether every user of this machine can read a file."""
    return os.name == "posix" and bool(Path(path).expanduser().stat().st_mode & stat.S_IROTH)


def _parse(path: Path, raw: bytes) -> list[str]:
    try:
        lines = [line.strip() for line in raw.decode("ascii").splitlines()]
    except UnicodeDecodeError:
        raise RecipeError(f"--api-key-file: {path} holds more than ASCII, which no header carries.") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise RecipeError(f"--api-key-file: {path} holds no key. Write one key on each line.")
    if any(len(key.split()) > 1 for key in keys):
        raise RecipeError(f"--api-key-file: a key in {path} has a space in it. Write one key on each line.")
    return keys
