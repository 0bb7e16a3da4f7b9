"""The models that a user names: each by itself, or a run by its directory of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json

_CONFIG, _RUN = "config.json", "pretraining.json"


def checkpoints(names: Sequence[str]) -> list[tuple[str, int | None]]:
    """Return the models, a run replaced by its checkpoints in the order of their numbers, each with its step if known.

    A run is a directory that is no model, whose folders, or those of its folder ``checkpoints``, are checkpoints: they
    have a ``config.json``. What `lowdim pretrain` wrote with ``keep`` is one too, and its own model is the last.

    Raises:
        CheckpointError: a directory that is no model holds none either.

    Example:
        >>> checkpoints(["builtin:smollm2-135m"])
        [('builtin:smollm2-135m', None)]
    """
    found: list[tuple[str, int | None]] = []
    for name in names:
        path = Path(name).expanduser()
        model, ours = not path.is_dir() or (path / _CONFIG).exists(), (path / _RUN).exists()
        places = () if model and not ours else ("checkpoints",) if model else ("", "checkpoints")
        inside = [file.parent for place in places for file in (path / place).glob(f"*/{_CONFIG}")]
        if not model and not inside:
            raise CheckpointError(f"{name} holds no {_CONFIG}, and neither do its folders. Name a model, or a run.")
        found += [(str(each), _step(each)) for each in sorted(inside, key=_numbered)]
        if model:
            found.append((name, read_json(path / _RUN).get("steps") if ours else _step(path)))
    return found


def _step(path: Path) -> int | None:
    found = re.fullmatch(r"(?:step|checkpoint)[-_](\d+)", path.name)
    return int(found[1]) if found else None


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts ``step-9`` before ``step-10``.

    Example:
        >>> sorted([Path("step-10"), Path("step-9")], key=_numbered)[0].name
        'step-9'
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path)) if part]
