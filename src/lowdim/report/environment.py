"""The templates of all pages, and the papers that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core import registry
from lowdim.core.errors import LowdimError
from lowdim.report.draw import words
from lowdim.report.draw.palette import css_variables

if TYPE_CHECKING:
    from jinja2 import Environment


def templates() -> Environment:
    """Return the environment that renders a page, with words and colours; a name that it is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("lowdim.report"),
        autoescape=True,  # model, layer and task names come from files that others wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals |= {"words": words, "light": css_variables(0), "dark": css_variables(1)}
    return pages


def paper(kind: str, name: str) -> dict[str, str]:
    """Return title, arXiv number and year of a method, as templates show them; empty where it is not registered."""
    try:
        found = registry.find(kind, name)
    except (LowdimError, ImportError):
        return {"title": "", "arxiv": "", "year": ""}
    return {"title": found.title, "arxiv": found.arxiv, "year": str(found.year or "")}
