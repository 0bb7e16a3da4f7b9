"""Rankings of a few made-up pictures and texts, as `lowdim rank` leaves them on disk."""

from __future__ import annotations

from pathlib import Path

import torch

import lowdim
from lowdim.data.labelled.source import Source

RED, BLUE = (200, 30, 60), (20, 90, 180)


def pictures(out: Path) -> Path:
    """Two hundred pictures, red or blue above by their class but for ten; names that are markup, and one unreadable."""
    y = torch.arange(200) % 2
    cue = torch.where(torch.arange(200) < 10, 1 - y, y)
    x = torch.randint(0, 60, (200, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    x[:, :, :3] = torch.tensor([RED, BLUE])[cue].reshape(-1, 3, 1, 1)
    names = ("<script>.png", *(f"{n}.png" for n in range(1, 200)))
    return _ranked(Source("made", "image", x.to(torch.uint8), y, ("<b>cats</b>", "dogs"), names, ("broken.png",)), out)


def texts(out: Path) -> Path:
    """Texts whose first word tells the class, with a name and a word that are too long for a narrow page."""
    y = torch.arange(120) % 2
    rows = [f"{('bad', 'good')[n % 2]} <i>text</i> number {n} {'x' * 300 if n < 4 else ''}" for n in range(120)]
    names = ("n" * 200, *map(str, range(1, 120)))
    return _ranked(Source("letters/" + "l" * 100, "text", rows, y, ("x", "y"), names), out)


def _ranked(source: Source, out: Path) -> Path:
    found = lowdim.rank(source, method={"name": "sebra", "epochs": 8, "lr": 0.02}, out=out).out
    assert found is not None
    return found
