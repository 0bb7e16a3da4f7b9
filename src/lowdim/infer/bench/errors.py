"""Errors of measuring."""

from __future__ import annotations

from lowdim.core.errors import LowdimError


class BenchError(LowdimError):
    """A measurement that this machine cannot make."""
