"""Codes of a few bits for groups of values, each with a scale and a zero point of its own."""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(
    values: Tensor, bits: int, group: int, draw: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes of values, and the scale and zero point of every group of them in row-major order.

    With lo = min(values, 0) and hi = max(values, 0) of a group, s = (hi - lo) / (2^bits - 1), z = round(-lo / s); the
    code is round(w / s) + z, held between 0 and 2^bits - 1, and stands for s (code - z). Zero is always in the range,
    so that a group of one sign is not clipped to its edge.

    Args:
        values: any shape, finite.
        bits: 8 at most.
        group: values of a group; the last one may be shorter.
        draw: rounds w / s up with the probability of its fraction instead of to the nearest, so that the mean is w / s.

    Returns:
        uint8 of the shape; fp32 [groups]; uint8 [groups].

    Example:
        >>> codes, scales, zeros = quantise(torch.tensor([-1.0, 0.0, 0.5, 1.0]), 4, 256)
        >>> codes.tolist(), round(float(scales), 4), int(zeros)
        ([0, 8, 12, 15], 0.1333, 8)
        >>> [round(value, 4) for value in dequantise(codes, scales, zeros, 256).tolist()]
        [-1.0667, 0.0, 0.5333, 0.9333]
    """
    most = 2**bits - 1
    flat = values.detach().flatten().float()
    rows = torch.nn.functional.pad(flat, (0, -len(flat) % group)).view(-1, group)
    low = rows.amin(1, keepdim=True).clamp_(max=0.0)
    span = rows.amax(1, keepdim=True).clamp_(min=0.0) - low
    span = torch.where(span > 0, span, 1.0)
    zeros = (low * (-most / span)).round_()
    scaled = rows * (most / span)
    if draw is None:
        scaled.round_()
    else:
        scaled = scaled.add_(torch.rand(scaled.shape, generator=draw, device=scaled.device)).floor_()
    codes = scaled.add_(zeros).clamp_(0, most).to(torch.uint8).view(-1)[: len(flat)].view(values.shape)
    return codes.contiguous(), (span / most).view(-1), zeros.to(torch.uint8).view(-1)


def dequantise(codes: Tensor, scales: Tensor, zeros: Tensor, group: int) -> Tensor:
    """Return the fp32 values that codes stand for."""
    flat = codes.flatten().float()
    if len(flat) % group:
        whole = [each.repeat_interleave(group)[: len(flat)] for each in (zeros, scales)]
        return flat.sub_(whole[0]).mul_(whole[1]).view(codes.shape)
    return flat.view(-1, group).sub_(zeros[:, None]).mul_(scales[:, None]).view(codes.shape)


def pack(codes: Tensor) -> Tensor:
    """Return codes of 4 bits two to a byte, the first in the low half.

    Example:
        >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8)).tolist()
        [33, 3]
    """
    flat = torch.nn.functional.pad(codes.flatten(), (0, codes.numel() % 2))
    return flat[::2] | flat[1::2] << 4


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the codes that `pack` was given."""
    count = torch.Size(shape).numel()
    return torch.stack([packed & 15, packed >> 4], 1).view(-1)[:count].view(shape)
