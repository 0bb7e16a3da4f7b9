"""What one word of a recipe, or of the command line, stands for: a score and a repair."""

from __future__ import annotations

from lowdim.core.errors import RecipeError, suggest

METHODS = {
    "magnitude": ("magnitude", "none"),
    "wanda": ("wanda", "none"),
    "sparsegpt": ("obs", "sparsegpt"),
    "refit": ("obs", "refit"),
}
"""What ``--method``, and ``method`` in a recipe, stand for: a score and a repair."""


def expand(method: object) -> dict[str, str]:
    """Return the score and the repair that a method stands for.

    Raises:
        RecipeError: there is no such method; the nearest one is suggested.

    Example:
        >>> expand("sparsegpt")
        {'score': 'obs', 'repair': 'sparsegpt'}
    """
    if not isinstance(method, str) or method not in METHODS:
        raise RecipeError(f"unknown method {method!r}. {suggest(str(method), METHODS)}")
    return dict(zip(("score", "repair"), METHODS[method], strict=True))
