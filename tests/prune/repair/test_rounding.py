from __future__ import annotations

import pytest
import torch
from tests.prune import one, reference
from torch import Tensor

from lowdim.core.quantize import Grid, decode, fit_table, scales_of, to_levels
from lowdim.prune.repair.hessian import factor
from lowdim.prune.repair.rounding import Rounding, importance
from lowdim.prune.repair.sweep import sweep

LEAST, ONE = 2.0**-126, torch.ones(512)


def swept(weight: Tensor, h: Tensor, kept: Tensor, rounding: Rounding, width: int = 128) -> Tensor:
    """Sweep with a given mask and round; return ``[out, in]``."""
    turned = weight.t().clone(memory_format=torch.contiguous_format)
    inverse = factor(h.float(), 1, 1e-12, "layer").inverse_factor
    sweep(turned, inverse, lambda a, b, w, d: kept[:, a:b].t(), width, rounding)
    return turned.t().contiguous()


def test_two_by_two_by_hand() -> None:
    """Whole numbers are the grid. Row 0 loses 1.2 and gains half of it in column 1: 3.6, which is 4.

    Row 1 rounds 1.4 to 1 and gains 0.2: 3.55 is 4 as well, where alone it would be 3; the loss is 0.645, not 0.845.
    """
    h = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    weight, kept = torch.tensor([[1.2, 3.0], [1.4, 3.35]]), torch.tensor([[False, True], [True, True]])
    expected = torch.full((2, 2), 127.0)
    rounding = Rounding(Grid(8), expected, kept.t(), ONE[:2], torch.zeros(2, 2), [(0, 1), (1, 2)], LEAST)
    made = swept(weight, h, kept, rounding)
    assert made.tolist() == [[0.0, 4.0], [1.0, 4.0]]
    change = (made - weight).double()
    assert reference.loss(change[1:], h.double()) == pytest.approx(0.645, abs=1e-5)
    alone = torch.tensor([[-0.4, -0.35]]).double()
    assert reference.loss(alone, h.double()) == pytest.approx(0.845)
    (first, lost), (second, _) = rounding.results()
    assert (first.levels.tolist(), second.levels.tolist()) == ([[0, 4]], [[1, 4]])
    assert first.scales.tolist() == [[1.0]]
    assert lost == pytest.approx((4 - 3.6) ** 2 / 3.6**2, rel=1e-4)


@pytest.mark.parametrize("width", [1, 3, 4, 32, 33, 64, 100, 128])
@pytest.mark.parametrize("grid", [Grid(8, 64), Grid(4, 64), Grid(8, 128), Grid(4, 128)], ids=str)
def test_it_is_the_column_by_column_reference_in_fp64(grid: Grid, width: int) -> None:
    weight, x = one.matrix(24, 200), one.inputs(1600, 200)
    h, pruned = reference.hessian(x.double(), 0.01), one.matrix(24, 200, seed=5) < 0.2
    expected, _, _ = reference.sparsegpt(weight, h, reference.given(pruned))
    expected = expected.float()
    scales = scales_of(expected, ~pruned, grid)
    table = (
        fit_table(expected, ~pruned, scales, grid, importance(ONE[:200], expected, ~pruned)) if grid.bits == 4 else None
    )

    def rounded(j: int, column: Tensor) -> Tensor:
        scale = scales[:, j // grid.group].double()
        return to_levels((column / scale).float(), torch.ones(len(column), dtype=torch.bool), table) * scale

    found, _, loss = reference.sparsegpt(weight, h, reference.given(pruned), rounded)
    rounding = Rounding(grid, expected.t().contiguous(), ~pruned.t(), ONE[:200], torch.zeros(200, 24), [(0, 24)], LEAST)
    made = swept(weight, h, ~pruned, rounding, width)
    [(codes, _)] = rounding.results()
    assert torch.equal(decode(codes.levels, codes.scales, grid), made)
    assert torch.equal(made != 0, ~pruned)
    # fp32 may take the other side of a tie, after which the two rows part: few do, and the loss is the same
    same = (made.double() == found).all(1)
    assert int(same.sum()) >= 18
    change = (made - weight).double()
    assert reference.loss(change, h) == pytest.approx(loss, rel=0.01)


def test_layers_side_by_side_have_tables_of_their_own() -> None:
    weight, x = one.matrix(24, 128), one.inputs(900, 128)
    weight[8:] = weight[8:].abs().sqrt() * weight[8:].sign()
    h, kept = reference.hessian(x.double(), 0.01), torch.ones(24, 128, dtype=torch.bool)
    both = Rounding(Grid(4), weight.t(), kept.t(), ONE[:128], torch.zeros(128, 24), [(0, 8), (8, 24)], LEAST)
    made = swept(weight, h, kept, both)
    for (a, b), (codes, lost) in zip(both.spans, both.results(), strict=True):
        alone = Rounding(
            Grid(4), weight[a:b].t(), kept[a:b].t(), ONE[:128], torch.zeros(128, b - a), [(0, b - a)], LEAST
        )
        assert torch.allclose(swept(weight[a:b], h, kept[a:b], alone), made[a:b], atol=1e-5)
        [(other, loss)] = alone.results()
        assert torch.equal(codes.scales, other.scales)
        assert codes.table is not None
        assert other.table is not None
        assert codes.table.tolist() == other.table.tolist()
        assert lost == pytest.approx(loss)


def test_weights_that_no_token_shows_are_rounded_and_move_nothing() -> None:
    weight, x = one.matrix(8, 64), one.inputs(500, 64)
    x[:, 10] = 0.0
    factored = factor(x.t() @ x, len(x), 0.01, "layer")
    seen = weight.clone()
    seen[:, 10] = 0.0
    unseen = torch.zeros(64, 8)
    unseen[10] = weight[:, 10] * 50
    kept = torch.ones(8, 64, dtype=torch.bool)
    results = []
    for hidden in (unseen, torch.zeros(64, 8)):
        rounding = Rounding(Grid(8), seen.t() + unseen - hidden, kept.t(), ONE[:64], hidden, [(0, 8)], LEAST)
        turned = seen.t().clone(memory_format=torch.contiguous_format)
        sweep(turned, factored.inverse_factor, lambda a, b, w, d: kept[:, a:b].t(), 128, rounding)
        results.append(turned.t())
    others = [j for j in range(64) if j != 10]
    assert torch.equal(results[0][:, others], results[1][:, others])
    assert float((results[0][:, 10] / (weight[:, 10] * 50) - 1).abs().max()) < 0.02


def test_importance_is_between_what_inputs_and_mask_say() -> None:
    weight = torch.tensor([[1.0, 4.0, 0.0, 2.0], [-1.0, 4.0, 0.0, 2.0]])
    energies = torch.tensor([400.0, 4.0, 9.0, 0.0])
    # by the mask 1, 1/16, 0 and 1/4; by the inputs 1, 1/100, 9/400 and 0
    assert importance(energies, weight, weight != 0).tolist() == pytest.approx([1.0, 0.025, 0.0, 0.0])
    assert not importance(torch.zeros(4), weight, weight != 0).any()
