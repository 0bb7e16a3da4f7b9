"""Noise: of a sensor, of few photons, of broken pixels. Pictures are fp32 [height, width, channels] in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[Any]


def gaussian_noise(x: Picture, severity: int, draw: Generator) -> Picture:
    """Add N(0, c^2), c from 0.04 to 0.10."""
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return x + draw.normal(scale=scale, size=x.shape).astype(np.float32)


def shot_noise(x: Picture, severity: int, draw: Generator) -> Picture:
    """Replace each value by Poisson(c x) / c, c from 500 down to 50."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return (draw.poisson(x * photons) / photons).astype(np.float32)


def impulse_noise(x: Picture, severity: int, draw: Generator) -> Picture:
    """Make a share of the values, from 1 to 7%, black or white with equal chance."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit, white = draw.random(x.shape) < share, draw.random(x.shape) < 0.5
    return np.where(hit, white.astype(np.float32), x)
