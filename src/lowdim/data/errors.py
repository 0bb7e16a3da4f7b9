"""What can be wrong with data a user handed over, or with data that lowdim must fetch."""

from __future__ import annotations

from lowdim.core.errors import LowdimError


class DataError(LowdimError):
    """A text, a data set or a set of tokens cannot be used as asked."""


class AssetError(LowdimError):
    """A built-in asset cannot be fetched, or what came is not what was pinned."""
