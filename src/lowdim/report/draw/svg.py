"""From a matplotlib figure to an inline SVG that follows the page: its font, its colours, its theme.

Matplotlib is imported here only, and only when something is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from lowdim.report.draw.palette import colour, variable
from lowdim.report.draw.words import clean

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

WIDTH = 520
_PER_INCH = 72  # an SVG of matplotlib counts 72 units per inch; one unit becomes one CSS pixel
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)|^#(.+)$")


def _style(key: str) -> Any:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": key,  # element names depend on the chart alone: same run, same bytes
        "text.parse_math": False,
        "font.family": ["DejaVu Sans"],  # ships with matplotlib; used to measure, never named on the page
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "axes.labelcolor": colour("muted"),
        "axes.edgecolor": colour("line"),
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "axes.formatter.use_mathtext": False,
        "grid.color": colour("line"),
        "grid.linewidth": 1,
        "xtick.color": colour("line"),
        "ytick.color": colour("line"),
        "xtick.labelcolor": colour("muted"),
        "ytick.labelcolor": colour("muted"),
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "xtick.minor.size": 0,
        "text.color": colour("ink"),
        "lines.linewidth": 2,
        "lines.solid_capstyle": "round",
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.04,
        "figure.constrained_layout.w_pad": 0.04,
    }


class Tips:
    """Texts to show when the pointer rests on a mark."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}

    def add(self, artist: Artist, texts: Sequence[str]) -> None:
        """Attach one text to each mark of an artist, in the order in which they are drawn."""
        key = f"tips-{len(self.texts)}"
        artist.set_gid(key)
        self.texts[key] = [clean(text) for text in texts]


def draw(key: str, label: str, height: float, paint: Callable[[Figure, Tips], None], *, width: float = WIDTH) -> str:
    """Paint a figure and return it as an ``<svg>`` element for an HTML page.

    Args:
        key: a word unique on the page; it seeds the names of the element's parts.
        label: what the chart shows, for those who cannot see it.
        height: in CSS pixels, like ``width``.
        paint: draws on the figure.
        width: in CSS pixels, at full size.
    """
    import matplotlib
    from matplotlib.figure import Figure

    tips = Tips()
    buffer = io.BytesIO()
    with matplotlib.rc_context(_style(key)), warnings.catch_warnings():
        # A letter that the measuring font lacks is drawn by the reader's browser all the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH), dpi=_PER_INCH)
        paint(figure, tips)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), key, label, tips)


def _inline(document: bytes, key: str, label: str, tips: Tips) -> str:
    root = ElementTree.fromstring(document)
    _drop_namespaces(root)
    for parent in list(root.iter()):
        for child in list(parent):
            # Matplotlib's own style sheet has a rule for `*`, which would reach the whole page.
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    _attach(root, tips)
    _restyle(root, key)
    root.attrib.update({"role": "img", "aria-label": clean(label), "width": "100%"})
    del root.attrib["height"], root.attrib["version"]
    root.set("style", f"max-width:{root.get('viewBox', '').split()[2]}px")
    ElementTree.indent(root, space="")
    return ElementTree.tostring(root, encoding="unicode")


def _drop_namespaces(root: ElementTree.Element) -> None:
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))


def _attach(root: ElementTree.Element, tips: Tips) -> None:
    groups = {element.get("id"): element for element in root.iter("g")}
    for gid, texts in tips.texts.items():
        group = groups[gid]
        marks = list(group.iter("use")) or [path for path in group.iter("path") if path.get("id") is None]
        assert len(marks) == len(texts), (gid, len(marks), len(texts))
        for mark, text in zip(marks, texts, strict=True):
            ElementTree.SubElement(mark, "title").text = text


def _restyle(root: ElementTree.Element, key: str) -> None:
    used = {found for e in root.iter() for value in e.attrib.values() for found in _referred(value)}
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            element.set(name, _attribute(name, value, key, used))
        if element.get("id") == "":
            del element.attrib["id"]


def _referred(value: str) -> list[str]:
    return [first or second for first, second in _REFERENCE.findall(value)]


def _attribute(name: str, value: str, key: str, used: set[str]) -> str:
    if name == "id":
        return f"{key}-{value}" if value in used else ""
    if _REFERENCE.search(value):
        return re.sub(r"#", f"#{key}-", value, count=1)
    if name == "style":
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        return _COLOUR.sub(lambda found: variable(found.group()), value)
    if name in ("d", "x", "y", "transform", "width", "height"):
        value = _NUMBER.sub(lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), value)
        return re.sub(r"\s*rotate\(-?0 [^)]*\)", "", value) if name == "transform" else " ".join(value.split())
    return value
