"""Files around the weights: which belong to a model, which names are safe, how they are read and hashed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lowdim.core.errors import CheckpointError

_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "spiece.model",
    "sentencepiece*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)


def companions(path: Path) -> list[str]:
    """Return the names of the files in a directory that must travel with the weights, sorted.

    Raises:
        CheckpointError: one is a link that leads out of the directory.
    """
    names = {found.name for pattern in _COMPANIONS for found in path.glob(pattern) if found.is_file()}
    return sorted(inside(path, name).name for name in names)


def inside(path: Path, name: str) -> Path:
    """Return ``path / name`` if that file really lies in the directory.

    Links may lead to the blobs of the same repository in the Hugging Face cache, whose snapshots are made of
    links.

    Raises:
        CheckpointError: the name or a symbolic link leads elsewhere.
    """
    if not plain_name(name):
        raise CheckpointError(
            f"refusing {name!r}: a checkpoint may only name files in its own directory, {path}"
        )
    home, real = path.resolve(), (path / name).resolve()
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"refusing {name!r}: it is a link that leads out of {path}. Copy the file there instead."
        )
    return path / name


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
        raise CheckpointError(
            f"{path.name} in {path.parent} must hold a JSON object, got {type(data).__name__}"
        )
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
