"""Many small shards into few standard ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowdim.models.disk.packed_header import united
from lowdim.models.disk.shard import Header, Stored

MAX_SHARD_BYTES = 5_000_000_000


def group(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Divide files, in the order of their names, into runs of at most ``limit`` bytes; a larger one stands alone.

    Example:
        >>> group({"a": 3, "b": 3, "c": 5, "d": 9, "e": 1}, 6)
        [['a', 'b'], ['c'], ['d'], ['e']]
    """
    groups: list[list[str]] = []
    room = 0
    for name in sorted(sizes):
        if not groups or sizes[name] > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= sizes[name]
    return groups


def joined(headers: Sequence[Header]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors and the metadata of several files as those of one; lists of packed weights are united."""
    tensors = {name: stored for header in headers for name, stored in header.tensors.items()}
    return tensors, united(headers)
