"""``OUT.run.json``: what depends on the machine and the hour, kept out of the output directory."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from lowdim.core.progress import Progress
from lowdim.prune.run import Clock
from lowdim.prune.session import Session


def write_sidecar(out: Path, session: Session, clock: Clock, progress: Progress) -> Path:
    """Write stages, machine and sizes beside an output directory; return the file's path."""
    target = out.with_name(f"{out.name}.run.json")
    content: dict[str, Any] = {
        "stages": clock.stages,
        "machine": machine(),
        "size": sizes(out, session),
        "command": shlex.join(["lowdim", *sys.argv[1:]])
        if Path(sys.argv[0]).stem in ("lowdim", "__main__")
        else "",
    }
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, target)
    return target


def machine() -> dict[str, Any]:
    """Describe this machine."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gb": round(ram / 2**30, 1),
        "platform": platform.platform(),
    }


def sizes(out: Path, session: Session) -> dict[str, Any]:
    """Return bytes on disk before and after."""
    after = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    before = session.checkpoint.size_bytes if session.checkpoint else 0
    return {"dense_bytes": before, "sparse_bytes": after}
