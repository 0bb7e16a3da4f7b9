"""Coloured MNIST, corrupted CIFAR-10 and BFFHQ, as folders of aligned and conflicting pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lowdim.data.errors import DataError
from lowdim.data.grouped.pictures import File, gather, listed, some
from lowdim.data.grouped.settings import Percent
from lowdim.data.planted.sets import Planted

if TYPE_CHECKING:
    from lowdim.data.classification import Known

CLASSES = {
    "cmnist": tuple(map(str, range(10))),
    "corrupted-cifar-10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    "bffhq": ("young", "old"),
}


def percent(known: Known, how: Percent) -> Planted:
    """Read ROOT/PERCENT/{align,conflict}/CLASS/N_CLASS_BIAS.png, ``valid`` beside or in PERCENT, and ROOT/test.

    The layout of "Learning Debiased Representation via Disentangled Feature Augmentation", arXiv 2107.01372, whose
    pictures name their class and the class that their bias speaks for.
    """
    home = how.home(how.percent)
    train = [file for part in ("align", "conflict") for file in _files(how.home(how.percent, part))]
    held = next((folder for folder in (home / "valid", home.parent / "valid") if folder.is_dir()), None)
    validation = [] if held is None else list(_files(held))
    test = list(_files(how.home("test")))
    return gather(how, CLASSES[known.name], known.cues, some(train, how, known.name), validation, test)


def _files(folder: Path) -> Iterator[File]:
    for path in listed(folder):
        words = path.stem.split("_")
        if len(words) < 3 or not (words[-2].isdigit() and words[-1].isdigit()):
            raise DataError(f"{path} does not end in _CLASS_BIAS, two numbers. Is it a file of this set?")
        yield File(path, int(words[-2]), (int(words[-1]),))
