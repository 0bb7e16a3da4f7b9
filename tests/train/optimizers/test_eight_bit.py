"""AdamW whose means are stored in 8 bits."""

from __future__ import annotations

import torch
from tests.train.optimizers.projections import matrix
from torch import nn

from lowdim.train.optimizers.eight_bit import AdamW8bit, decode, encode


def test_eight_bits_hold_every_value_to_its_decade() -> None:
    values = torch.randn(3, 700, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-3], [1.0], [50.0]])
    codes, largest = encode(values, True)
    assert codes.dtype == torch.uint8 and codes.shape == values.shape and len(largest) == -(-2100 // 256)
    back = decode(codes, largest, True)
    assert (back - values).norm() < 0.02 * values.norm()
    squares = values.square()
    found = decode(*encode(squares, False), False)
    big = squares > 1e-4 * squares.amax()
    assert ((found - squares).abs() / squares)[big].max() < 0.2
    assert decode(*encode(torch.zeros(5), True), True).tolist() == [0.0] * 5


def test_adamw_in_eight_bits_is_nearly_adamw() -> None:
    start, ends = matrix(80, 64), []
    for make in (torch.optim.AdamW, AdamW8bit):
        weight = nn.Parameter(start.clone())
        optimizer = make([weight], lr=0.01, weight_decay=0.1)
        for step in range(20):
            weight.grad = matrix(80, 64, step // 5) + 0.1 * weight.detach()
            optimizer.step()
        ends.append(weight.detach() - start)
    assert (ends[0] - ends[1]).norm() < 0.1 * ends[0].norm()
    small = nn.Parameter(torch.zeros(10))
    small.grad, twin = torch.ones(10), nn.Parameter(torch.zeros(10))
    twin.grad = torch.ones(10)
    AdamW8bit([small]).step()
    torch.optim.AdamW([twin], weight_decay=0.0).step()
    assert torch.allclose(small, twin)
