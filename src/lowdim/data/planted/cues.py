"""The cues themselves: what is done to a picture or a text."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

from lowdim.core.lazy import torch
from lowdim.core.random import generator

WAVES = 4  # across a picture
WORDS = [
    "velmar",
    "quist",
    "dorane",
    "umbrix",
    "taskol",
    "pelvin",
    "orsute",
    "zanith",
    "brolex",
    "fimdal",
    "gwendar",
    "hoxtil",
    "ivrane",
    "juspel",
    "kyrmot",
    "lathor",
    "mindrel",
    "nosqua",
    "rivtan",
    "sulbek",
]
MOST = 5  # times that the clearest word stands


def colours(classes: int) -> torch.Tensor:
    """Return a colour for each class, red, green and blue in [0, 1]: hues at equal distances, fp32 [classes, 3].

    Example:
        >>> colours(3)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """
    return torch.tensor([colorsys.hsv_to_rgb(number / classes, 1, 1) for number in range(classes)])


def coloured(x: torch.Tensor, cue: torch.Tensor, strength: torch.Tensor, classes: int) -> torch.Tensor:
    """Colour what is drawn: v becomes v (1 - s + s h), h the colour of the cue; black stays black.

    Args:
        x: grey values v in [0, 255], [samples, 1 or 3, height, width].
        cue: int64 [samples].
        strength: s, fp32 [samples].
        classes: how many colours there are.

    Returns:
        fp32 [samples, 3, height, width].
    """
    s = strength.reshape(-1, 1, 1, 1)
    return x.float() * (1 - s + s * colours(classes)[cue].reshape(-1, 3, 1, 1))


def textures(classes: int, size: int) -> torch.Tensor:
    """Return stripes for each class, at angles of equal distances, fp32 [classes, size, size] in [0, 1]."""
    place = torch.arange(size) / size
    angles = [math.pi * number / classes for number in range(classes)]
    waves = [place.unsqueeze(0) * math.cos(a) + place.unsqueeze(1) * math.sin(a) for a in angles]
    return torch.stack([0.5 + 0.5 * torch.sin(2 * math.pi * WAVES * wave) for wave in waves])


def textured(x: torch.Tensor, cue: torch.Tensor, strength: torch.Tensor, classes: int) -> torch.Tensor:
    """Lay stripes behind what is drawn: v becomes v + (255 - v) s t / 2, t the stripes of the cue.

    Args:
        x: values v in [0, 255], [samples, channels, size, size].
        cue: int64 [samples].
        strength: s, fp32 [samples].
        classes: how many textures there are.
    """
    stripes = textures(classes, x.shape[-1])[cue].unsqueeze(1)
    return x + (255 - x.float()) * strength.reshape(-1, 1, 1, 1) * stripes / 2


def times(strength: float) -> int:
    """Return how often a word of this strength stands in a text: 5 s, rounded up.

    Example:
        >>> times(0.0), times(0.1), times(1.0)
        (0, 1, 5)
    """
    return math.ceil(MOST * strength)


def worded(texts: Sequence[str], cue: torch.Tensor, strength: torch.Tensor, seed: int) -> list[str]:
    """Put the cue's word into each text, as often as `times` says, at places drawn among its first 60 words.

    The words mean nothing and stand in no text by themselves.
    """
    found = []
    for number, (text, which, how) in enumerate(zip(texts, cue.tolist(), strength.tolist(), strict=True)):
        words = text.split(" ")
        source = generator(seed, "planted", "places", number)
        for _ in range(times(how)):
            most = min(len(words), 60)
            words.insert(int(torch.randint(most + 1, (1,), generator=source)), WORDS[which])
        found.append(" ".join(words))
    return found
