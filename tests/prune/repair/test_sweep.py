from __future__ import annotations

import pytest
import torch
from tests.prune import one, reference
from torch import Tensor

from lowdim.prune.repair.hessian import factor
from lowdim.prune.repair.sweep import sweep


def swept(weight: Tensor, h: Tensor, pruned: Tensor, width: int) -> Tensor:
    """Sweep with a given mask; return ``[out, in]``."""
    factored = factor(h.float(), 1, 1e-12, "layer")
    turned = weight.t().clone(memory_format=torch.contiguous_format)
    mask = sweep(turned, factored.inverse_factor, lambda a, b, w, d: ~pruned[:, a:b].t(), width)
    assert torch.equal(mask.t(), ~pruned)
    return turned.t()


def test_two_columns_by_hand() -> None:
    h, weight = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    made = swept(weight, h, torch.tensor([[True, False]]), 2)
    assert torch.allclose(made, torch.tensor([[0.0, 3.5]]), atol=1e-6)
    change = (made - weight).double()
    assert reference.loss(change, h.double()) == pytest.approx(1.5, abs=1e-6)


def problem(rows: int = 12, cols: int = 70) -> tuple[Tensor, Tensor, Tensor]:
    weight, x = one.matrix(rows, cols), one.inputs(8 * cols, cols)
    pruned = one.matrix(rows, cols, seed=5) < 0.2
    return weight, reference.hessian(x.double(), 0.0), pruned


def test_the_losses_add_up_to_the_trace() -> None:
    weight, h, pruned = problem()
    _, _, total = reference.sparsegpt(weight, h, reference.given(pruned))
    change = (swept(weight, h, pruned, 16) - weight).double()
    assert reference.loss(change, h) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 24, 32, 33, 64, 70, 128])
def test_blocks_change_nothing_when_the_mask_is_given(width: int) -> None:
    weight, h, pruned = problem()
    expected, _, _ = reference.sparsegpt(weight, h, reference.given(pruned))
    made = swept(weight, h, pruned, width)
    assert torch.equal(made == 0, pruned)
    assert float((made - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("width", [1, 3, 4, 32, 33, 64, 100])
def test_every_column_is_asked_about_once_and_in_order_after_those_before(width: int) -> None:
    weight, h, pruned = problem()
    expected, _, _ = reference.sparsegpt(weight, h, reference.given(pruned))
    asked: list[int] = []

    def select(start: int, end: int, weights: Tensor, diagonal: Tensor) -> Tensor:
        assert end - start == min(width, 70 - start)
        assert weights.shape == (end - start, 12)
        assert diagonal.shape == (end - start,)
        asked.extend(range(start, end))
        assert torch.allclose(turned[:start].t().double(), expected[:, :start], atol=1e-3)
        return ~pruned[:, start:end].t()

    turned = weight.t().clone(memory_format=torch.contiguous_format)
    sweep(turned, factor(h.float(), 1, 1e-12, "layer").inverse_factor, select, width)
    assert asked == list(range(70))


def test_keeping_everything_changes_nothing() -> None:
    weight, h, _ = problem()
    assert torch.equal(swept(weight, h, torch.zeros(12, 70, dtype=torch.bool), 8), weight)


def test_pruning_everything_leaves_zeros() -> None:
    weight, h, _ = problem()
    assert not swept(weight, h, torch.ones(12, 70, dtype=torch.bool), 8).any()
