"""The samples of each class that people are shown: its first and its last."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import Tensor

from lowdim.data.labelled.source import Source
from lowdim.data.select.ranks import Ranks

EACH, LETTERS = 10, 600


def shown(source: Source, ranks: Ranks) -> dict[str, Any]:
    """Return the ten first and the ten last samples of each class, as JSON can hold them.

    Within a rank those come first that were learnt best when it was given. A class of few samples is cut in two halves,
    so that none is shown on both sides.
    """
    within = ranks.values.get("p", torch.zeros(len(ranks))).double().clamp(0, 1)
    classes = []
    for number, name in enumerate(ranks.classes):
        mine = (ranks.label == number).nonzero().flatten()
        mine = mine[(ranks.rank[mine].double() - 0.999 * within[mine]).argsort(stable=True)]
        each = min(EACH, len(mine) // 2)
        sides = {"first": mine[:each], "last": mine[len(mine) - each :].flip(0)}
        found = {side: [_one(source, ranks, int(row)) for row in rows] for side, rows in sides.items()}
        classes.append({"name": name, "samples": len(mine), **found})
    side = source.x.shape[-1] if isinstance(source.x, Tensor) and source.kind == "image" else 0
    return {"kind": source.kind, "side": side, "classes": classes}


def _one(source: Source, ranks: Ranks, row: int) -> dict[str, Any]:
    told: dict[str, Any] = {"name": ranks.names[row], "rank": int(ranks.rank[row])}
    told["value"] = next((round(float(values[row]), 4) for values in ranks.values.values()), None)
    value = source.x[row]
    if isinstance(value, str):
        return told | {"text": value if len(value) <= LETTERS else value[:LETTERS].rstrip() + " …"}
    if source.kind == "image":
        return told | {"png": png(value)}
    return told | {"text": ", ".join(f"{number:.4g}" for number in value.tolist()[:12])}


def png(picture: Tensor) -> str:
    """Return a picture [1 or 3, height, width] of values in [0, 255] as the base64 of a PNG file.

    Example:
        >>> base64.b64decode(png(torch.zeros(1, 2, 2)))[1:4]
        b'PNG'
    """
    from PIL import Image

    values = picture.float().round().clamp(0, 255).to(torch.uint8)
    made = Image.fromarray(values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).numpy())
    content = io.BytesIO()
    made.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
