"""One writer per output directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lowdim.core.errors import LowdimError

LOCK = ".lock"


class OutputError(LowdimError):
    """An output directory cannot be written, or must not be."""


class DirectoryLock:
    """Hold a directory's lock file until `release`.

    The kernel drops the lock of a process that dies, so a stale file locks nothing; the pid in it is for the message.

    Raises:
        OutputError: another writer, whose pid is given, holds the lock.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = -1
        while self._file < 0:
            self._file = self._try()

    def _try(self) -> int:
        path = self._directory / LOCK
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the other writer has just renamed the directory
            return -1
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(file, 32, 0).decode(errors="replace").strip()
            os.close(file)
            raise OutputError(
                f"{self._directory} is being written by another process (pid {pid or 'unknown'}). Wait for "
                "it, stop it, or choose another output directory."
            ) from error
        if not self._is_current(file, path):
            os.close(file)
            return -1
        os.truncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        return file

    @staticmethod
    def _is_current(file: int, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(file), path.stat())
        except FileNotFoundError:
            return False

    def release(self, directory: Path | None) -> None:
        """Remove the lock file from ``directory``, where the locked one is now, and let go; ``None``: it is gone."""
        if self._file >= 0:
            if directory is not None:
                (directory / LOCK).unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1
