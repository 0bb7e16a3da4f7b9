"""``OUT.run.json``: what depends on the machine and the hour, kept out of the output directory."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowdim.core.files import replace_json


def command() -> str:
    """Return the command line of this process; empty if called from Python."""
    called = Path(sys.argv[0]).stem in ("lowdim", "__main__")
    return shlex.join(["lowdim", *sys.argv[1:]]) if called else ""


def write_sidecar(out: Path, content: Mapping[str, Any]) -> Path:
    """Write the sidecar of an output directory beside it; return the file's path."""
    target = out.with_name(f"{out.name}.run.json")
    replace_json(target, content)
    return target
