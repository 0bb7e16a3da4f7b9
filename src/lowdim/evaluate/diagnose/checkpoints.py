"""The models that a user names: each by itself, or a run by its directory of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lowdim.core.errors import CheckpointError

_CONFIG = "config.json"


def checkpoints(names: Sequence[str]) -> list[str]:
    """Return the models, a directory that is none replaced by the checkpoints in it, in the order of their numbers.

    Checkpoints are folders with a ``config.json``, in the directory or in its folder ``checkpoints``.

    Raises:
        CheckpointError: a directory that is no model holds none either.

    Example:
        >>> checkpoints(["builtin:smollm2-135m"])
        ['builtin:smollm2-135m']
    """
    found: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if not path.is_dir() or (path / _CONFIG).exists():
            found.append(name)
            continue
        inside = [file.parent for place in ("", "checkpoints") for file in (path / place).glob(f"*/{_CONFIG}")]
        if not inside:
            raise CheckpointError(f"{name} holds no {_CONFIG}, and neither do its folders. Name a model, or a run.")
        found += [str(each) for each in sorted(inside, key=_numbered)]
    return found


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts ``step-9`` before ``step-10``.

    Example:
        >>> sorted([Path("step-10"), Path("step-9")], key=_numbered)[0].name
        'step-9'
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path)) if part]
