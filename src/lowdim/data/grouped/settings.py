"""Where a set of pictures lies, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lowdim.core.settings import Moot, Settings, count, within
from lowdim.data.errors import DataError
from lowdim.data.labelled.settings import Pictures


@dataclass(frozen=True)
class Home(Settings):
    """A folder of this machine.

    Attributes:
        root: the folder in which the set was unpacked.
        samples: of the training pictures at most so many, drawn; None takes all.
    """

    root: str = ""
    samples: int | None = count(None)

    def home(self, *inside: str) -> Path:
        """Return the folder, or what is inside it.

        Raises:
            DataError: no folder is given, or it is not there.
        """
        if not self.root:
            raise DataError(
                "this set lies in a folder of yours: give its path, such as data.settings.root=/data/celeba"
            )
        path = Path(self.root, *inside)
        if not path.exists():
            raise DataError(f"{path} does not exist. Unpack the set there, or correct data.settings.root")
        return path


@dataclass(frozen=True)
class Folder(Pictures, Home):
    """Pictures in files of a folder."""


@dataclass(frozen=True)
class Percent(Folder):
    """Pictures of which a percentage conflicts with the bias, one folder each.

    Attributes:
        percent: the folder's name: the percentage, such as "0.5pct", "1pct", "2pct", "5pct".
    """

    percent: str = "0.5pct"
    size: int = count(32)


@dataclass(frozen=True)
class Attributes(Folder):
    """Faces with attributes.

    Attributes:
        target: the attribute that is the class.
        cue: the attribute that goes with it.
        opposite: whether the cue goes with the target by its absence, as "Male" does with "Blond_Hair".
    """

    target: str = "Blond_Hair"
    cue: str = "Male"
    opposite: bool = True


@dataclass(frozen=True)
class Corrupted(Home):
    """CIFAR-10 to train on and one corruption of its test pictures.

    Attributes:
        corruption: the file's name, such as "gaussian_noise" or "fog".
        severity: from 1 to 5.
    """

    corruption: str = "gaussian_noise"
    severity: int = within(3, least=1, most=5, whole=True)


@dataclass(frozen=True)
class People(Settings):
    """Emoji of people.

    Attributes:
        conflicting: share of each class's training pictures with the tone of the other class.
        size: pixels along a side.
        unbiased: as many pictures of both tones in each class; ``conflicting`` says nothing there.
        seed: of who is trained on and who is tested, and of which pictures conflict.
    """

    moot: ClassVar[Moot] = {"conflicting": ("unbiased", (True,))}

    conflicting: float = within(0.05, least=0, below=1)
    size: int = count(32)
    unbiased: bool = False
    seed: int = count(0, least=0)
