"""Contrast, bending, coarse pixels, compression. Pictures are fp32 [height, width, channels] in [0, 1]."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from lowdim.data.corrupted.noise import Picture


def contrast(x: Picture, severity: int, draw: Generator) -> Picture:
    """Move all values towards their mean, (x - m) c + m, c from 0.75 down to 0.15."""
    left = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = x.mean((0, 1), keepdims=True)
    found: Picture = (x - mean) * left + mean
    return found


def elastic(x: Picture, severity: int, draw: Generator) -> Picture:
    """Move three points of the picture, which bends it evenly, and then each pixel by smoothed noise."""
    far, sigma, corner = (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[severity - 1]
    height, width = x.shape[:2]
    side = min(height, width)
    points = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (side // 3) + np.array([height // 2, width // 2])
    moved = points + draw.uniform(-corner * side, corner * side, points.shape)
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # from where a pixel is to where it was
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).astype(np.float64)
    source = np.concatenate([grid, np.ones((height, width, 1))], -1) @ affine
    for axis in range(2):
        noise = draw.uniform(-1, 1, (height, width))
        source[..., axis] += far * side * ndimage.gaussian_filter(noise, sigma * side, truncate=3)
    parts = [
        ndimage.map_coordinates(x[..., c], source.transpose(2, 0, 1), order=1, mode="mirror") for c in range(x.shape[2])
    ]
    found: Picture = np.stack(parts, axis=2)
    return found


def _image(x: Picture) -> Any:
    from PIL import Image

    values = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(values[..., 0] if x.shape[2] == 1 else values)


def _picture(image: Any, x: Picture) -> Picture:
    return (np.asarray(image, dtype=np.float32) / 255).reshape(x.shape)


def pixelate(x: Picture, severity: int, draw: Generator) -> Picture:
    """Shrink to between 0.95 and 0.65 of the side, and enlarge again, each pixel the mean of a box."""
    from PIL import Image

    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = x.shape[:2]
    small = _image(x).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return _picture(small.resize((width, height), Image.Resampling.BOX), x)


def jpeg(x: Picture, severity: int, draw: Generator) -> Picture:
    """Compress as JPEG at a quality of 80 down to 40."""
    from PIL import Image

    stream = io.BytesIO()
    _image(x).save(stream, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    with Image.open(stream) as opened:
        return _picture(opened, x)
