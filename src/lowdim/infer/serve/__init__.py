"""An HTTP server that speaks the OpenAI protocol: many requests, one model, one batch."""

from __future__ import annotations

import importlib.util

from lowdim.core.errors import LowdimError

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """Refuse to go on without the packages of the extra ``serve``."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LowdimError(
            f"serving needs {', '.join(missing)}, which is not installed; run: pip install 'lowdim[serve]'"
        )
