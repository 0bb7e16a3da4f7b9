"""Pictures made worse in fifteen common ways, each at five severities."""

from __future__ import annotations

import importlib

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.core.random import derive_seed
from lowdim.core.settings import Range, check
from lowdim.data.errors import DataError

CORRUPTIONS: dict[str, str] = {
    **dict.fromkeys(("gaussian-noise", "shot-noise", "impulse-noise"), "noise"),
    **dict.fromkeys(("defocus-blur", "glass-blur", "motion-blur", "zoom-blur"), "blur"),
    **dict.fromkeys(("snow", "frost", "fog", "brightness"), "weather"),
    **dict.fromkeys(("contrast", "elastic", "pixelate", "jpeg"), "digital"),
}
"""The corruptions, each with the file that has it."""


def corrupt(x: torch.Tensor, name: str, severity: int = 3, *, seed: int = 0) -> torch.Tensor:
    """Return pictures with one corruption, of their shape and type uint8.

    The fifteen kinds and their strengths at 32 x 32 pixels are those of CIFAR-10-C, "Benchmarking Neural Network
    Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv 1903.12261; lengths grow with the picture's
    side. They are written anew and agree with the published files in kind, not in each pixel. Frost is a drawn pattern
    of crystals where the authors lay photographs of ice over the picture.

    Args:
        x: uint8 [pictures, 1 or 3, height, width].
        name: one of `CORRUPTIONS`.
        severity: from 1 to 5.
        seed: of what is drawn; each picture's draws depend on the seed and its position alone.

    Raises:
        DataError: an unknown corruption, or pictures of another type or shape.
        RecipeError: the severity is out of range.

    Example:
        >>> import torch
        >>> grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
        >>> corrupt(grey, "brightness", 1).unique().tolist()  # 0.05 of 255 is added
        [112]
    """
    import numpy as np

    if name not in CORRUPTIONS:
        raise DataError(f"unknown corruption {name!r}. {suggest(name, CORRUPTIONS)}")
    check("severity", severity, Range(least=1, most=5, whole=True))
    if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] not in (1, 3):
        raise DataError(
            f"pictures must be uint8 [pictures, 1 or 3, height, width]; got {x.dtype} {list(x.shape)}. Corrupt them "
            "before they are scaled"
        )
    room = importlib.import_module(f"lowdim.data.corrupted.{CORRUPTIONS[name]}")
    change = getattr(room, name.replace("-", "_"))
    found = np.empty((len(x), *x.shape[2:], x.shape[1]), dtype=np.uint8)
    for row, picture in enumerate(x.permute(0, 2, 3, 1).numpy().astype(np.float32) / 255):
        draw = np.random.default_rng(derive_seed(seed, "corrupt", name, severity, row))
        found[row] = np.clip(change(picture, severity, draw), 0, 1) * 255
    return torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()
