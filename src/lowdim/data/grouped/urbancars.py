"""UrbanCars: cars of the city and the country, before either ground, beside things of either."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.data.grouped.pictures import File, gather, listed, some
from lowdim.data.grouped.settings import Folder
from lowdim.data.planted.sets import Planted

if TYPE_CHECKING:
    from lowdim.data.classification import Known

CLASSES = ("urban", "country")
_TRAIN, _OTHER = "bg-0.95_co_occur_obj-0.95", "bg-0.5_co_occur_obj-0.5"


def urbancars(known: Known, how: Folder) -> Planted:
    """Read ROOT/bg-B_co_occur_obj-C/PART/obj-X_bg-Y_co_occur_obj-Z: 0.95 to train on, 0.5 for ``val`` and ``test``.

    Paper: "A Whac-A-Mole Dilemma: Shortcuts Come in Multiples Where Mitigating One Amplifies Others", CVPR 2023, arXiv
    2212.04825.
    """
    train, validation, test = (
        [
            File(path, label, (ground, thing))
            for label, x in enumerate(CLASSES)
            for ground, y in enumerate(CLASSES)
            for thing, z in enumerate(CLASSES)
            for path in listed(how.home(ratio, part, f"obj-{x}_bg-{y}_co_occur_obj-{z}"))
        ]
        for ratio, part in ((_TRAIN, "train"), (_OTHER, "val"), (_OTHER, "test"))
    )
    return gather(how, CLASSES, known.cues, some(train, how, known.name), validation, test)
