"""BAR: six actions whose places change between training and test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.data.errors import DataError
from lowdim.data.grouped.pictures import File, gather, listed, some
from lowdim.data.grouped.settings import Folder
from lowdim.data.raw import Raw

if TYPE_CHECKING:
    from lowdim.data.classification import Known

CLASSES = ("climbing", "diving", "fishing", "racing", "throwing", "pole vaulting")
_WORDS = {name.split()[0]: number for number, name in enumerate(CLASSES)} | {"vaulting": 5}


def bar(known: Known, how: Folder) -> Raw:
    """Read ROOT/train and ROOT/test, whose files begin with their action: climbing_0.jpg.

    Nobody labelled the places: the test part is one that conflicts throughout. Paper: "Learning from Failure: Training
    Debiased Classifier from Biased Classifier", NeurIPS 2020, arXiv 2007.02561.
    """
    parts = []
    for part in ("train", "test"):
        files = []
        for path in listed(how.home(part)):
            word = path.stem.replace("_", " ").split()[0].lower()
            if word not in _WORDS:
                raise DataError(f"{path} begins with no action of {', '.join(CLASSES)}. Is it a file of this set?")
            files.append(File(path, _WORDS[word]))
        parts.append(files)
    return gather(how, CLASSES, known.cues, some(parts[0], how, known.name), [], parts[1]).raw
