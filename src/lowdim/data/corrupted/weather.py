"""Weather: snow, frost, fog, bright light. Pictures are fp32 [height, width, channels] in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lowdim.data.corrupted.blur import scaled, swept, zoomed
from lowdim.data.corrupted.noise import Picture

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def grey(x: Picture) -> Picture:
    """Return the brightness of each pixel, [height, width, 1]."""
    return x if x.shape[2] == 1 else (x @ _GREY)[..., None]


def plasma(size: int, decay: float, draw: Generator) -> NDArray[np.float64]:
    """Return a cloud by midpoint displacement, [size, size] in [0, 1]; noise shrinks by ``decay`` at each halving.

    Example:
        >>> cloud = plasma(8, 2.0, np.random.default_rng(0))
        >>> cloud.shape, float(cloud.min()), float(cloud.max())
        ((8, 8), 0.0, 1.0)
    """
    side = 1 << max(1, int(np.ceil(np.log2(size))))
    cloud, step, noise = np.zeros((side, side)), side, 1.0
    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        middle = (corners + np.roll(corners, -1, 0) + np.roll(corners, -1, 1) + np.roll(corners, (-1, -1), (0, 1))) / 4
        cloud[half::step, half::step] = middle + noise * draw.uniform(-1, 1, middle.shape)
        centres = cloud[half::step, half::step]
        across = (corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)) / 4
        along = (corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1)) / 4
        cloud[::step, half::step] = across + noise * draw.uniform(-1, 1, across.shape)
        cloud[half::step, ::step] = along + noise * draw.uniform(-1, 1, along.shape)
        step, noise = half, noise / decay
    cloud -= cloud.min()
    return (cloud / cloud.max())[:size, :size] if cloud.max() > 0 else cloud[:size, :size]


def _whole(cloud: NDArray[np.float64], x: Picture) -> Picture:
    """Return a cloud of a picture's size, its values from 0 to 1."""
    part = cloud[: x.shape[0], : x.shape[1]]
    low, high = part.min(), part.max()
    found: Picture = (((part - low) / (high - low)) if high > low else part).astype(np.float32)[..., None]
    return found


def fog(x: Picture, severity: int, draw: Generator) -> Picture:
    """Add a cloud c m and scale to the brightest value there was, (x + c m) max / (max + c)."""
    thick, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    most = max(float(x.max()), 1e-6)
    return (x + thick * _whole(plasma(max(x.shape[:2]), decay, draw), x)) * most / (most + thick)


def frost(x: Picture, severity: int, draw: Generator) -> Picture:
    """Lay crystals over the picture, a x + b f; f are needles between clouds, where the authors use photographs."""
    keep, lay = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    needles = draw.normal(size=(*x.shape[:2], 1)).astype(np.float32)
    crystals = np.zeros_like(needles)
    for angle in draw.uniform(0, np.pi, 3):
        crystals = np.maximum(crystals, swept(needles, scaled(6, x), scaled(3, x), angle))
    cloud = _whole(plasma(max(x.shape[:2]), 2.0, draw), x)
    ice = np.clip(0.6 * cloud + 0.8 * crystals / max(float(crystals.max()), 1e-6), 0, 1)
    return keep * x + lay * ice


def snow(x: Picture, severity: int, draw: Generator) -> Picture:
    """Brighten the picture, and add flakes: noise above a threshold, enlarged and swept, as it is and turned."""
    mean, spread, zoom, least, length, sigma, keep = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity - 1]
    flakes = zoomed(draw.normal(mean, spread, (*x.shape[:2], 1)).astype(np.float32), zoom)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = swept(flakes, scaled(length, x), scaled(sigma, x), draw.uniform(-3 * np.pi / 4, -np.pi / 4))
    pale = keep * x + (1 - keep) * np.maximum(x, grey(x) * 1.5 + 0.5)
    found: Picture = pale + flakes + np.rot90(flakes, 2)
    return found


def brightness(x: Picture, severity: int, draw: Generator) -> Picture:
    """Add c, from 0.05 to 0.3, to the value of each pixel in HSV; hue and saturation stay."""
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = x.max(2, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    found: Picture = np.where(value > 0, x * brighter / np.maximum(value, 1e-6), brighter)
    return found
