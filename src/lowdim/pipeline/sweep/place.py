"""A run of a sweep on disk: its directory, its record, and what its command left there.

``DIR/NAME/`` holds ``run.json`` (the record), ``log.txt`` (what the command said), ``out`` (the directory that it
wrote) and ``result.json`` (what it wrote by ``--json``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.files import read_json, replace_json
from lowdim.pipeline.sweep.command import Command
from lowdim.pipeline.sweep.recipe import Run

_BAD, _OF = r"\b(NaN|Inf|infinite|not finite)\b", r"\b(loss|gradient|norm)\b"
_DIVERGED = re.compile(rf"\bdiverged\b|{_OF}[^.]*{_BAD}|{_BAD}[^.]*{_OF}", re.IGNORECASE)
_TAIL = 4000  # characters of a log in which the last paragraph is looked for


@dataclass(frozen=True)
class Place:
    """Where a run is, and what became of it."""

    run: Run
    directory: Path
    command: Command

    @property
    def out(self) -> Path:
        """The directory that the command writes."""
        return self.directory / "out"

    @property
    def result(self) -> Path:
        """The file that the command writes by ``--json``."""
        return self.directory / "result.json"

    @property
    def log(self) -> Path:
        """What the command says."""
        return self.directory / "log.txt"

    def record(self) -> dict[str, Any]:
        """Return what is known of the run; empty before its first attempt."""
        path = self.directory / "run.json"
        return read_json(path) if path.exists() else {}

    def check(self) -> None:
        """Refuse a directory that holds another run.

        Raises:
            LowdimError: the arguments differ from those that the directory was made with.
        """
        found = self.record()
        asked = [self.command.name, *self.run.arguments]
        if found and found.get("arguments") != asked:
            raise LowdimError(
                f"{self.directory} holds a run of other arguments ({' '.join(map(str, found.get('arguments', [])))}). "
                "Choose another --out, or remove that directory."
            )

    def state(self) -> str:
        """Return "new", "running" (begun, and not known to have ended), "finished", "failed" or "diverged"."""
        found = self.record()
        state = found.get("state", "new")
        if state == "running" and self._complete():  # killed between the command's last step and the record of it
            return "finished"
        return str(state)

    def _complete(self) -> bool:
        if self.command.json:
            try:
                return bool(read_json(self.result))
            except CheckpointError:
                return False
        return self.out.is_dir() and not self.out.with_name("out.partial").exists()

    def words(self) -> list[str]:
        """Return the whole command line behind ``lowdim``; an earlier attempt is gone on with where that can be."""
        again = [self.command.again] if self.command.again and self.record() else []
        where = self.command.results(str(self.out), str(self.result))
        return [self.command.name, *self.run.arguments, *where, *again]

    def begin(self) -> None:
        """Record that an attempt begins."""
        self._write({"state": "running"})

    def end(self, code: int, seconds: float) -> str:
        """Record how an attempt ended, and return its state."""
        error = "" if code == 0 else self.complaint() or f"exit code {code}"
        state = "finished" if code == 0 else "diverged" if _DIVERGED.search(error) else "failed"
        self._write({"state": state, "exit": code, "seconds": round(seconds, 3), "error": error})
        return state

    def _write(self, facts: dict[str, Any]) -> None:
        asked = [self.command.name, *self.run.arguments]
        replace_json(self.directory / "run.json", {"arguments": asked, "axes": self.run.axes, **facts})

    def complaint(self) -> str:
        """Return the last paragraph of the log that says what went wrong, as one line."""
        if not self.log.exists():
            return ""
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip()
        start = max(tail.rfind("Error: "), tail.rfind("Usage: "))
        said = tail[start:].removeprefix("Error: ") if start >= 0 else tail.rpartition("\n")[2]
        return " ".join(said.split())
