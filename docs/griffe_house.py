"""Lets the site read the house's docstrings: a section "Example:" is what griffe calls "Examples:"."""

from __future__ import annotations

import re
from typing import Any

import griffe


class HouseDocstrings(griffe.Extension):
    """Renames the heading before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring, however the object came about."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
