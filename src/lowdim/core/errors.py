"""Errors a user can act on, and the "did you mean" that goes with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LowdimError(ValueError):
    """Base of every error that the user, not lowdim, can put right."""


class RecipeError(LowdimError):
    """A recipe names an unknown key, an impossible value or an impossible combination."""


class PatternError(LowdimError):
    """A sparsity pattern does not fit the shape of a layer."""


class CheckpointError(LowdimError):
    """A checkpoint is damaged, unsafe or not what it says it is."""


class NumericalError(LowdimError):
    """A tensor holds NaN or Inf, or a factorisation failed beyond repair."""


def clash(one: str, other: str, why: str, remedy: str) -> RecipeError:
    """Return the error that two choices of a recipe exclude each other.

    Example:
        >>> str(clash("quantize=int8", "storage=dense", "codes are not stored so", "Leave storage out"))
        'quantize=int8 does not go with storage=dense: codes are not stored so. Leave storage out.'
    """
    return RecipeError(f"{one} does not go with {other}: {why}. {remedy}.")


def suggest(name: str, options: Iterable[str]) -> str:
    """Return the sentence that follows "unknown X": the nearest option, or all of them.

    Example:
        >>> suggest("wandda", ["wanda", "sparsegpt"])
        "Did you mean 'wanda'?"
        >>> suggest("zzz", ["wanda", "sparsegpt"])
        'Choose one of: sparsegpt, wanda.'
    """
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else f"Choose one of: {', '.join(known)}."
