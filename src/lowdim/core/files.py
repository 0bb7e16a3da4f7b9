"""Files: how they are read, replaced and hashed, and which names are safe."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, not UTF-8, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing from {path.parent}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} in {path.parent} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} in {path.parent} must hold a JSON object, got {type(data).__name__}")
    return data


def replace_json(path: Path, content: Any) -> None:
    """Write a JSON file in the place of an older one, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_name(name: str) -> bool:
    r"""Tell whether a name is that of a file in the directory itself.

    Example:
        >>> [plain_name(name) for name in ("model.safetensors", "../x", "/etc/passwd", "a\\b", "..", "")]
        [True, False, False, False, False, False]
    """
    return bool(name) and name not in {".", ".."} and not {"/", "\\", "\0"} & set(name)
