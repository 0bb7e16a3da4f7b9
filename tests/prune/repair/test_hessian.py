from __future__ import annotations

import pytest
import torch
from tests.prune import one

from lowdim.core.errors import NumericalError
from lowdim.prune.repair.hessian import factor


def test_two_columns_by_hand() -> None:
    made = factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 1, 1e-9, "layer")
    expected = torch.tensor([[0.8165, -0.4082], [0.0, 0.7071]])
    assert torch.allclose(made.inverse_factor, expected, atol=1e-4)
    scores = (torch.tensor([1.0, 3.0]) / made.inverse_factor.diagonal()).square()
    assert torch.allclose(scores, torch.tensor([1.5, 18.0]))


def test_the_factor_is_upper_and_gives_the_inverse() -> None:
    x = one.inputs(300, 40)
    made = factor(x.t() @ x, len(x), 0.01, "layer")
    upper = made.inverse_factor.double()
    assert torch.equal(upper, upper.triu())
    product = upper.t() @ upper @ made.matrix.double()
    assert torch.allclose(product, torch.eye(40, dtype=torch.float64), atol=1e-4)


def test_the_squared_diagonal_is_the_leading_entry_of_the_inverse_of_what_is_left() -> None:
    x = one.inputs(300, 24)
    made = factor(x.t() @ x, len(x), 0.01, "layer")
    for j in range(24):
        left = torch.linalg.inv(made.matrix[j:, j:].double())[0, 0]
        assert float(made.inverse_factor[j, j]) ** 2 == pytest.approx(float(left), rel=1e-4)


def test_damping_is_a_share_of_the_mean_diagonal_per_token() -> None:
    x = one.inputs(50, 6)
    gram = x.t() @ x
    made = factor(gram, 50, 0.1, "layer")
    expected = gram / 50 + 0.1 * (gram / 50).diagonal().mean() * torch.eye(6)
    assert torch.allclose(made.matrix, expected, rtol=1e-5)
    assert (made.damping, made.note) == (0.1, "")


def test_the_gram_matrix_is_not_changed() -> None:
    x = one.inputs(50, 6)
    x[:, 2] = 0.0
    gram = x.t() @ x
    before = gram.clone()
    factor(gram, 50, 0.1, "layer")
    assert torch.equal(gram, before)


def test_dead_inputs_stand_alone() -> None:
    x = one.inputs(50, 6)
    x[:, 2] = 0.0
    made = factor(x.t() @ x, 50, 0.01, "layer")
    assert made.dead.tolist() == [False, False, True, False, False, False]
    unit = torch.zeros(6)
    unit[2] = 1.0
    assert torch.equal(made.inverse_factor[2], unit)
    assert torch.equal(made.inverse_factor[:, 2], unit)
    assert torch.equal(made.matrix[2], unit)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_singular_matrix_gets_ten_times_more_damping_until_it_can_be_factored(tokens: int) -> None:
    x = 100 * one.inputs(tokens, 64)
    made = factor(x.t() @ x, tokens, 1e-12, "layer")
    assert made.damping > 1e-12
    assert made.note.startswith("damping raised from 1e-12 to ")
    assert made.inverse_factor.isfinite().all()


def test_an_indefinite_matrix_is_refused_with_the_name_and_remedies() -> None:
    gram = torch.diag(torch.tensor([1.0, 1.0, -500.0]))
    with pytest.raises(NumericalError, match=r"'the.layer'.*not positive definite.*repair\.damping.*'wanda'"):
        factor(gram, 1, 0.01, "the.layer")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_are_refused_with_the_name(value: float) -> None:
    gram = torch.eye(3)
    gram[0, 1] = gram[1, 0] = value
    with pytest.raises(NumericalError, match=r"'the.layer'.*NaN or Inf"):
        factor(gram, 1, 0.01, "the.layer")
