"""Files around the weights: which belong to a model, and which lie where they say."""

from __future__ import annotations

from pathlib import Path

from lowdim.core.errors import CheckpointError
from lowdim.core.files import plain_name

NOTES = "gguf.json"
"""In a directory converted from a GGUF file: what that file says and nobody understood."""
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
    "tekken.json",
    "*processor_config.json",
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
        raise CheckpointError(f"refusing {name!r}: a checkpoint may only name files in its own directory, {path}")
    home, real = path.resolve(), (path / name).resolve()
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(f"refusing {name!r}: it is a link that leads out of {path}. Copy the file there instead.")
    return path / name
