"""How a bias is planted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from lowdim.core.errors import RecipeError, clash, suggest
from lowdim.core.settings import Moot, Settings, count, share, within


@dataclass(frozen=True)
class Planting(Settings):
    """What cue each sample is given, and how clearly.

    Each class has a cue of its own. Of the training samples of a class a share ``conflicting``, exactly, has the cue of
    another class, drawn uniformly; all others have their own. In the test part every cue is as frequent in every class.

    Attributes:
        conflicting: share of a class's training samples with another class's cue.
        second: the same for the second cue of a set that has two, drawn apart from the first; None takes
            ``conflicting``.
        strength: how clear the cue is, in [0, 1]: of a colour its saturation, of a texture its contrast, of a word how
            often it stands.
        second_strength: the same for the second cue; None takes ``strength``.
        graded: the strength of each sample is drawn from U(0, ``strength``) instead of being the same for all.
        unbiased: the twin without a bias: the same cues, as frequent in every class of the training part as well;
            ``conflicting`` and ``second`` say nothing there.
        samples: of the training samples at most so many, the first; None takes all.
        seed: of what is planted where.

    Raises:
        RecipeError: a value is out of its range, or changes nothing.

    Example:
        >>> Planting(conflicting=0.01).to_dict()["conflicting"]
        0.01
    """

    moot: ClassVar[Moot] = {"conflicting": ("unbiased", (True,)), "second": ("unbiased", (True,))}

    conflicting: float = within(0.05, least=0, below=1)
    second: float | None = within(None, least=0, below=1)
    strength: float = share(1.0)
    second_strength: float | None = share(None)
    graded: bool = False
    unbiased: bool = False
    samples: int | None = count(None)
    seed: int = count(0, least=0)

    def check_cues(self, name: str, cues: int) -> None:
        """Refuse settings of a second cue for a set that has one.

        Raises:
            RecipeError: names the setting and the remedy.
        """
        for key in ("second", "second_strength"):
            if cues < 2 and (value := getattr(self, key)) is not None:
                remedy = f"Leave {key} out, or take a set with two, such as coloured-textured-digits"
                raise clash(f"{key}={value!r}", f"data {name!r}", "it is of a second cue, and this set has one", remedy)

    def shares(self, cues: int) -> list[float]:
        """Return the share of conflicting samples for each of so many cues."""
        return [self.conflicting, self.conflicting if self.second is None else self.second][:cues]

    def strengths(self, cues: int) -> list[float]:
        """Return the strength of each of so many cues."""
        return [self.strength, self.strength if self.second_strength is None else self.second_strength][:cues]


def made_of(cls: type[Any], settings: Mapping[str, Any] | None) -> Any:
    """Return the settings object of a data set that a mapping stands for.

    Raises:
        RecipeError: a key is unknown, or a value out of its range.

    Example:
        >>> made_of(Planting, {"conflicting": 0.01}).conflicting
        0.01
    """
    known = [each.name for each in fields(cls)]
    for key in settings or {}:
        if key not in known:
            raise RecipeError(f"unknown setting of this data {key!r}. {suggest(key, known)}")
    return cls(**(settings or {}))
