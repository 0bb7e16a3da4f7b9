"""The search for transposable masks: the kernel, its rival in torch and a plain enumeration choose the same tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowdim.core.errors import NumericalError
from lowdim.train.nm import transposable as module
from lowdim.train.nm.transposable import tiles, transposable


def enumerated(weight: Tensor) -> Tensor:
    """Try the 90 tiles one after the other, with the sums as they are documented."""
    size = weight.abs().float()
    kept = torch.zeros(weight.shape, dtype=torch.bool)
    for row in range(0, len(weight), 4):
        for col in range(0, weight.shape[1], 4):
            tile = size[row : row + 4, col : col + 4]
            best, chosen = torch.tensor(-1.0), None
            for mask in tiles():
                pairs = [values[ones][0] + values[ones][1] for values, ones in zip(tile, mask, strict=True)]
                total = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
                if total > best:
                    best, chosen = total, mask
            kept[row : row + 4, col : col + 4] = chosen
    return kept


@pytest.fixture(params=["kernel", "torch"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Search with the compiled kernel, and as where there is none."""
    if request.param == "torch":
        monkeypatch.setattr(module, "library", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (4, 36), (12, 68)])
@pytest.mark.parametrize("kind", ["drawn", "ties", "bf16", "turned"])
def test_the_mask_is_that_of_an_enumeration(search: str, shape: tuple[int, int], kind: str) -> None:
    draw = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=draw)
    if kind == "ties":
        weight = torch.randint(-2, 3, shape, generator=draw).float()
    elif kind == "bf16":
        weight = weight.bfloat16()
    elif kind == "turned":
        weight = torch.randn(shape[::-1], generator=draw).T
    assert torch.equal(transposable(weight), enumerated(weight))


def test_a_large_matrix_is_cut_among_threads(search: str) -> None:
    weight = torch.randn(256, 132, generator=torch.Generator().manual_seed(0))
    mask = transposable(weight)
    assert torch.equal(mask[:8], transposable(weight[:8])) and torch.equal(mask[-4:], enumerated(weight[-4:]))
    four = mask.view(64, 4, 33, 4).transpose(1, 2)
    assert bool((four.sum(2) == 2).all()) and bool((four.sum(3) == 2).all())


@pytest.mark.parametrize("place", [(0, 0), (7, 35)])
def test_nan_is_seen_wherever_it_is(search: str, place: tuple[int, int]) -> None:
    weight = torch.zeros(8, 36)
    weight[place] = torch.nan
    with pytest.raises(NumericalError, match="training has diverged"):
        transposable(weight)


def test_nothing_is_left_of_an_empty_matrix(search: str) -> None:
    assert transposable(torch.zeros(4, 0)).shape == (4, 0)
