"""Blur: out of focus, through glass, in motion, zooming. Pictures are fp32 [height, width, channels] in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from lowdim.data.corrupted.noise import Picture


def scaled(length: float, x: Picture) -> float:
    """Return a length that is meant for pictures of 32 pixels, in pixels of this one."""
    return float(length * min(x.shape[:2]) / 32)


def smooth(x: Picture, sigma: float) -> Picture:
    """Return a picture convolved with a Gaussian, channel by channel."""
    found: Picture = ndimage.gaussian_filter(x, (sigma, sigma, 0)).astype(np.float32)
    return found


def defocus_blur(x: Picture, severity: int, draw: Generator) -> Picture:
    """Convolve with a disc whose edge is softened: radii from 0.3 to 1.5 pixels."""
    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    radius = scaled(radius, x)
    reach = int(np.ceil(radius)) + 2
    place = np.arange(-reach, reach + 1)
    disc = (place[:, None] ** 2 + place[None] ** 2 <= radius**2).astype(np.float64)
    kernel = ndimage.gaussian_filter(disc, scaled(soft, x))
    found: Picture = ndimage.convolve(x, (kernel / kernel.sum())[..., None].astype(np.float32), mode="reflect")
    return found


def glass_blur(x: Picture, severity: int, draw: Generator) -> Picture:
    """Exchange each pixel with one drawn near it, once or twice, between two slight blurs."""
    sigma, reach, times = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[severity - 1]
    sigma, reach = scaled(sigma, x), max(1, round(scaled(reach, x)))
    found = smooth(x, sigma).copy()
    height, width = x.shape[:2]
    for _ in range(times):
        moves = draw.integers(-reach, reach, (height, width, 2))
        for row in range(height - reach - 1, reach - 1, -1):
            for column in range(width - reach - 1, reach - 1, -1):
                down, right = moves[row, column]
                here, there = (row, column), (row + down, column + right)
                found[here], found[there] = found[there].copy(), found[here].copy()
    return smooth(found, sigma)


def swept(x: Picture, length: float, sigma: float, angle: float) -> Picture:
    """Return a picture averaged along a line, with weights that fall as a Gaussian from one end."""
    steps = np.arange(0, max(1, round(length)) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    found = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        shift = (step * np.sin(angle), step * np.cos(angle), 0)
        found += weight * ndimage.shift(x, shift, order=1, mode="nearest")
    return found


def motion_blur(x: Picture, severity: int, draw: Generator) -> Picture:
    """Sweep along a line of 6 to 9 pixels, at an angle of up to 45 degrees."""
    length, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    return swept(x, scaled(length, x), scaled(sigma, x), draw.uniform(-np.pi / 4, np.pi / 4))


def zoomed(x: Picture, factor: float) -> Picture:
    """Return the middle of a picture enlarged to its whole size."""
    height, width = x.shape[:2]
    rows = (np.arange(height) - (height - 1) / 2) / factor + (height - 1) / 2
    columns = (np.arange(width) - (width - 1) / 2) / factor + (width - 1) / 2
    grid = np.meshgrid(rows, columns, indexing="ij")
    parts = [ndimage.map_coordinates(x[..., c], grid, order=1, mode="nearest") for c in range(x.shape[2])]
    found: Picture = np.stack(parts, axis=2)
    return found


def zoom_blur(x: Picture, severity: int, draw: Generator) -> Picture:
    """Average the picture with itself enlarged by up to 1.05, 1.1, 1.15, 1.2 or 1.25, in steps of 0.01."""
    factors = np.arange(1, 1.005 + 0.05 * severity, 0.01)
    found: Picture = (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)
    return found
