"""What this machine is: processor, cores, memory, for the record beside every measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


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


def free_memory() -> int | None:
    """Return the bytes that can still be had without swapping, or None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = meminfo.read_text(encoding="ascii").splitlines()
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else 1024 * int(found)
