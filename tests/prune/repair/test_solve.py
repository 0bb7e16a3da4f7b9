from __future__ import annotations

import pytest
import torch
from tests.prune import one, reference
from torch import Tensor

from lowdim.prune.recipe import Recipe
from lowdim.prune.repair.solve import refit


def solved(weight: Tensor, kept: Tensor, h: Tensor, iterations: int = 200, tolerance: float = 1e-7) -> Tensor:
    matrix = h.float()
    return refit(weight @ matrix, kept, matrix, torch.zeros_like(weight), iterations, tolerance)


def problem(rows: int = 10, cols: int = 40, tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    return one.matrix(rows, cols), one.matrix(rows, cols, seed=9) > 0.3, one.inputs(tokens, cols)


def test_two_columns_by_hand() -> None:
    h = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    made = solved(torch.tensor([[1.0, 3.0]]), torch.tensor([[False, True]]), h)
    assert torch.allclose(made, torch.tensor([[0.0, 3.5]]))


def test_rows_equal_least_squares_on_the_inputs_in_fp64() -> None:
    weight, kept, x = problem()
    made = solved(weight, kept, x.double().t() @ x.double() / len(x))
    assert torch.equal(made != 0, kept)
    for row in range(len(weight)):
        inputs = x[:, kept[row]].double()
        found = torch.linalg.lstsq(inputs, x.double() @ weight[row].double()).solution
        assert torch.allclose(made[row, kept[row]].double(), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_rows_equal_the_normal_equations_in_fp64(damping: float) -> None:
    weight, kept, x = problem()
    h = reference.hessian(x.double(), damping)
    expected = reference.least_squares(weight, kept, h)
    assert float((solved(weight, kept, h) - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_never_worse_than_sparsegpt_on_the_same_mask(seed: int) -> None:
    weight, x = one.matrix(6, 24, seed), one.inputs(120, 24, seed + 50)
    pruned = one.matrix(6, 24, seed + 100) < 0
    h = reference.hessian(x.double(), 0.0)
    swept, _, _ = reference.sparsegpt(weight, h, reference.given(pruned))
    made = solved(weight, ~pruned, h)
    greedy, exact = (reference.loss(w.double() - weight.double(), h) for w in (swept, made))
    assert exact < greedy * 0.999


def test_never_worse_than_sparsegpt_through_the_engine() -> None:
    weight, x = one.matrix(32, 160), one.inputs(1000, 160)
    for pattern in ("unstructured", "2:4", "4x4"):
        base = {"score": "wanda", "pattern": pattern} | ({} if pattern == "2:4" else {"sparsity": 0.5})
        swept, one_error = one.prune(Recipe(repair="sparsegpt", **base), weight, x)
        solved_too, other_error = one.prune(Recipe(repair="refit", **base), weight, x)
        assert torch.equal(swept != 0, solved_too != 0)
        assert other_error.error < one_error.error


def test_keeping_everything_gives_the_dense_weight() -> None:
    weight, kept, x = problem()
    made = solved(weight, torch.ones_like(kept), reference.hessian(x.double(), 0.01))
    assert torch.allclose(made, weight, atol=1e-4)


def test_a_row_that_keeps_nothing_is_zero_and_the_others_are_not_disturbed() -> None:
    weight, kept, x = problem()
    h = reference.hessian(x.double(), 0.01)
    alone = solved(weight, kept, h)
    kept[3] = False
    made = solved(weight, kept, h)
    assert not made[3].any()
    others = [row for row in range(len(weight)) if row != 3]
    assert torch.allclose(made[others], alone[others], atol=1e-6)


def test_a_row_of_zeros_stays_zero() -> None:
    weight, kept, x = problem()
    weight[1] = 0.0
    made = solved(weight, kept, reference.hessian(x.double(), 0.01))
    assert made.isfinite().all()
    assert not made[1].any()


def test_the_first_guess_does_not_decide_the_result() -> None:
    weight, kept, x = problem()
    h = reference.hessian(x.double(), 0.01).float()
    one_way = refit(weight @ h, kept, h, torch.zeros_like(weight), 200, 1e-7)
    start = one.matrix(10, 40, seed=77)
    other_way = refit(weight @ h, kept, h, start, 200, 1e-7)
    assert torch.allclose(one_way, other_way, atol=1e-5)
    assert torch.equal(start, one.matrix(10, 40, seed=77))


def test_more_iterations_only_help() -> None:
    weight, kept, x = problem()
    h = reference.hessian(x.double(), 0.0)
    losses = [
        reference.loss(solved(weight, kept, h, steps, 0.0).double() - weight.double(), h)
        for steps in (1, 2, 4, 8, 16, 64)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[3]


def test_a_loose_tolerance_stops_early() -> None:
    weight, kept, x = problem()
    h = reference.hessian(x.double(), 0.0)
    exact, loose = solved(weight, kept, h), solved(weight, kept, h, tolerance=0.5)
    assert not torch.allclose(exact, loose, atol=1e-4)
