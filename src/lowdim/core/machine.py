"""What this machine is: processor, cores, memory, for the record beside every measurement."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lowdim.core.lazy import torch


def machine() -> dict[str, Any]:
    """Describe this machine.

    Example:
        >>> sorted(machine())
        ['cores', 'cpu', 'platform', 'processor', 'ram_gb', 'threads']
    """
    found = _cpuinfo()
    name = found.get("model name") or platform.processor() or platform.machine()
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": name,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gb": round(ram / 2**30, 1),
        "platform": platform.platform(),
    }


def processor() -> str:
    """Return the processor's family and model, as "26-2", else the machine's name; fit for the name of a folder.

    Example:
        >>> processor() != ""
        True
    """
    found = _cpuinfo()
    parts = [found.get(name, "") for name in ("cpu family", "model")]
    return "-".join(parts) if all(parts) else platform.machine() or "unknown"


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first processor."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


@cache
def installed(library: str) -> str:
    """Return the version of a library that is installed; "absent" if it is not.

    Example:
        >>> installed("lowdims")
        'absent'
    """
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that can still be had without swapping, or None where the system does not say.

    Of a machine and of a container what is less: a container has a limit of its own, in which files that the kernel
    only remembers do not count. ``root`` is that of the file system that says so.
    """
    said = _table(root / "proc/meminfo").get("MemAvailable:")
    return min([*([] if said is None else [1024 * said]), *_allowed(root)], default=None)


def _allowed(root: Path) -> Iterator[int]:
    """Yield what each of the process' control groups leaves, of either version."""
    for line in _lines(root / "proc/self/cgroup"):
        _, kinds, own = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        most, now = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
        for place in (top / own.strip("/") / "memory").parents:
            if not place.is_relative_to(top):
                break
            limit, used = (_lines(place / f"memory.{name}") for name in (most, now))
            if limit and used and limit[0].isdigit():
                files = _table(place / "memory.stat")
                remembered = sum(files.get(f"{'total_' if kinds else ''}{age}active_file", 0) for age in ("", "in"))
                yield max(0, int(limit[0]) - int(used[0]) + remembered)


def _table(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, _lines(path)) if len(words) > 1 and words[1].isdigit()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # there is none, or it is not for us
        return []
