"""Files of pictures as tensors, and what to do about those that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data.errors import DataError
from lowdim.data.grouped.settings import Folder
from lowdim.data.planted.sets import Planted
from lowdim.data.planted.truth import Truth
from lowdim.data.raw import Raw, Split

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_NAMED = 5


class File(NamedTuple):
    """A picture with its class, and for each cue the class that it speaks for."""

    path: Path
    label: int
    cues: tuple[int, ...] = ()


def square(source: Any, size: int) -> torch.Tensor:
    """Return a picture cut to a square about its middle, scaled and on white ground, uint8 [3, size, size].

    Args:
        source: a path, a stream of bytes, or a picture of Pillow.
        size: pixels along a side.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with source if isinstance(source, Image.Image) else Image.open(source) as opened:
        picture = _eight_bits(opened).convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        fitted = ImageOps.fit(Image.alpha_composite(ground, picture).convert("RGB"), (size, size))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def squares(sources: Iterable[tuple[str, Callable[[], Any]]], size: int) -> tuple[list[torch.Tensor], list[int], str]:
    """Return the pictures that can be read, the places of these, and a sentence about the others, empty without any.

    Args:
        sources: for each picture its name, and what returns a source of `square`.
        size: pixels along a side.
    """
    made, kept, wrong = [], [], []
    total = 0
    for name, opened in sources:
        try:
            made.append(square(opened(), size))
            kept.append(total)
        except (OSError, ValueError, SyntaxError):  # what Pillow raises for damaged files
            wrong.append(name)
        total += 1
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    said = f"{len(wrong)} of {total} pictures cannot be read: {', '.join(wrong[:_NAMED])}{more}"
    return made, kept, said if wrong else ""


def _eight_bits(picture: Any) -> Any:
    """Return a grey picture of 16 bits a pixel with 8, of which Pillow would cut off all above 255."""
    import numpy as np
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))


def listed(folder: Path) -> list[Path]:
    """Return all pictures below a folder, in the order of their names.

    Raises:
        DataError: there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(ENDINGS)}). Is it the folder of this set?")
    return found


def read(files: Sequence[File], how: Folder) -> tuple[torch.Tensor, list[File]]:
    """Return the pictures, uint8 [pictures, 3, size, size], and the files that they are of.

    Raises:
        DataError: some cannot be read, and they are not to be skipped; names the first and counts all.
    """
    made, kept, said = squares(((str(file.path), partial(Path, file.path)) for file in files), how.size)
    if said:
        if how.unreadable == "refuse" or not made:
            raise DataError(f"{said}. Replace them, or set data.settings.unreadable=skip to go on without.")
        warnings.warn(f"{said}; they are left out", stacklevel=2)
    return torch.stack(made), [files[place] for place in kept]


def some(files: Iterable[File], how: Folder, name: str) -> list[File]:
    """Return the training files that are used: all, or so many, drawn, in their order."""
    found = list(files)
    if how.samples is None or how.samples >= len(found):
        return found
    rows = torch.randperm(len(found), generator=generator(0, "data", "samples", name))[: how.samples]
    return [found[row] for row in rows.sort().values.tolist()]


def gather(
    how: Folder,
    classes: tuple[str, ...],
    cues: tuple[str, ...],
    train: Sequence[File],
    validation: Sequence[File],
    test: Sequence[File],
) -> Planted:
    """Read three lists of files into one data set, with the truth about their cues.

    Raises:
        DataError: a picture cannot be read, or a class or cue is out of range.
    """
    for file in (*train, *validation, *test):
        if not all(0 <= value < len(classes) for value in (file.label, *file.cues)):
            raise DataError(
                f"{file.path} is of class {file.label} with cues of classes {list(file.cues)}, and classes run from 0 "
                f"to {len(classes) - 1}. Is it a file of this set?"
            )
    (x, first), (held_x, held) = read(train, how), read(validation, how) if validation else (None, [])
    tested, last = read(test, how)
    x = x if held_x is None else torch.cat([x, held_x])
    truths = [_truth(files, cues, classes) for files in ([*first, *held], last)]
    raw = Raw(x, truths[0].label, classes, Split(tested, truths[1].label), held=len(held))
    return Planted(raw, *truths)


def _truth(files: Sequence[File], cues: tuple[str, ...], classes: tuple[str, ...]) -> Truth:
    label = torch.tensor([file.label for file in files], dtype=torch.int64)
    cue = torch.tensor([file.cues for file in files], dtype=torch.int64).reshape(len(files), len(cues))
    return Truth(label, cue, torch.ones(cue.shape), cues, classes)
