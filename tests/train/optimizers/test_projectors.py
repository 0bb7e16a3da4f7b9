"""How directions are found: the papers' identities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.train.optimizers.projections import (
    adamw,
    decaying,
    matrix,
    net,
    stepped,
    train,
)
from torch import Tensor, nn

from lowdim.train.optimizers.projected import Projected
from lowdim.train.optimizers.projectors import SVD, Krylov, Power, Random, Randomised


@pytest.mark.parametrize(
    ("shape", "side", "kept"),
    [
        ((5, 3), "std", {"right": (2, 3)}),
        ((3, 3), "std", {"right": (2, 3)}),
        ((3, 5), "std", {"left": (2, 3)}),
        ((5, 3), "reverse_std", {"left": (2, 5)}),
        ((3, 5), "reverse_std", {"right": (2, 5)}),
        ((5, 3), "left", {"left": (2, 5)}),
        ((3, 5), "right", {"right": (2, 5)}),
        ((5, 3), "full", {"left": (2, 5), "right": (2, 3)}),
    ],
)
@pytest.mark.parametrize("kind", [SVD, Randomised, Krylov, Power])
def test_directions_are_orthonormal_on_the_side_asked(kind: Any, shape: Any, side: Any, kept: Any) -> None:
    held: dict[str, Any] = {}
    assert kind(rank=2, side=side).refresh(matrix(*shape), held, 0, 0)
    assert {key: tuple(rows.shape) for key, rows in held.items() if key != "due"} == kept
    for side in kept:
        assert torch.allclose(held[side] @ held[side].T, torch.eye(2), atol=1e-5)
        assert (held[side].gather(1, held[side].abs().argmax(1, keepdim=True)) > 0).all()


def test_the_first_step_of_adam_has_one_for_the_leading_entry() -> None:
    gradient = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    for sign in (1.0, -1.0):
        change = stepped(SVD(rank=1, scale=0.25), sign * gradient, torch.optim.AdamW, eps=1e-12)
        assert torch.allclose(change, -sign * 0.25 * torch.tensor([[1.0, 0], [0, 0], [0, 0]]), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("kind", [SVD, Randomised, Krylov, Power])
def test_at_full_rank_plain_descent_is_plain_descent(kind: Any, shape: tuple[int, int]) -> None:
    gradient = matrix(*shape)
    change = stepped(kind(rank=4, scale=1.0), gradient, torch.optim.SGD)
    assert torch.allclose(change, -gradient, atol=1e-5)
    adam = stepped(kind(rank=4, scale=1.0), gradient, torch.optim.AdamW)
    assert not torch.allclose(adam, -gradient.sign(), atol=1e-2)  # Adam depends on the axes


def test_a_gradient_of_rank_one_moves_the_weight_along_it_alone() -> None:
    along = torch.tensor([[0.6, 0.8, 0.0]])
    change = stepped(SVD(rank=1), matrix(5, 1) @ along, torch.optim.AdamW)
    assert change.any()
    assert torch.allclose(change @ (torch.eye(3) - along.T @ along), torch.zeros(5, 3), atol=1e-6)


def test_the_share_of_energy_is_that_of_the_leading_singular_values() -> None:
    gradient, held = decaying(40, 30), dict[str, Any]()
    values = torch.linalg.svdvals(gradient).square()
    SVD(rank=4).refresh(gradient, held, 0, 0)
    energy = SVD(rank=4).project(gradient, held).square().sum() / gradient.square().sum()
    assert float(energy) == pytest.approx(float(values[:4].sum() / values.sum()), rel=1e-5)


@pytest.mark.parametrize("kind", [Randomised, Power])
def test_what_is_not_exact_catches_nearly_the_energy(kind: Any) -> None:
    held, exact = dict[str, Any](), dict[str, Any]()
    for step in range(3):  # the gradient drifts
        gradient = decaying(60, 80) + 0.2 * step * decaying(60, 80, step + 1)
        kind(rank=8, gap=1).refresh(gradient, held, step, 0)
        SVD(rank=8, gap=1).refresh(gradient, exact, step, 0)
        caught, best = (SVD(rank=8).project(gradient, each).square().sum() for each in (held, exact))
        assert 0.99 * best <= caught <= best * 1.0001


def test_power_begins_with_the_directions_that_it_has() -> None:
    gradient, held = decaying(60, 80), dict[str, Any]()
    Power(rank=4, gap=1).refresh(gradient, held, 0, 0)
    no_luck = {"left": torch.linalg.qr(matrix(60, 4, 9)).Q.T}
    alone = Power(rank=4, gap=1, oversample=0)
    kept = {"left": held["left"].clone()}
    for each in (kept, no_luck):
        alone.refresh(gradient, each, 0, 0)
    caught = [alone.project(gradient, each).square().sum() for each in (kept, no_luck)]
    assert caught[0] > caught[1]


def test_random_directions_keep_lengths_on_average_and_are_drawn_again() -> None:
    gradient, held = matrix(80, 90), dict[str, Any]()
    projector = Random(rank=80, gap=5, side="right")
    projector.refresh(gradient, held, 0, 0)
    ratio = projector.project(gradient, held).norm(dim=1) / gradient.norm(dim=1)
    assert float(ratio.square().mean()) == pytest.approx(1.0, abs=0.1)
    first = projector.project(gradient, held)
    assert torch.equal(first, projector.project(gradient, held))
    assert not any(isinstance(value, Tensor) for value in held.values())
    projector.refresh(gradient, held, 4, 0)
    assert torch.equal(first, projector.project(gradient, held))
    projector.refresh(gradient, held, 5, 0)
    assert not torch.equal(first, projector.project(gradient, held))


def test_directions_are_chosen_every_gap_steps_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    inner = SVD.basis
    monkeypatch.setattr(SVD, "basis", lambda self, m, *rest: (calls.append(m.shape), inner(self, m, *rest))[1])
    model = net()
    optimizer = Projected(adamw(model), SVD(rank=2, gap=3))
    train(model, optimizer, range(7))
    assert len(calls) == 2 * 3  # ceil(7 / 3) for each of two matrices
    assert optimizer.state[model[0].weight]["projector.step"] == 7


def test_what_adam_remembers_is_neither_turned_nor_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    optimizer = Projected(torch.optim.AdamW([weight], lr=1.0, betas=(0.5, 0.5)), SVD(rank=1, gap=1))
    for gradient in (torch.tensor([[4.0, 0], [0, 0], [0, 0]]), torch.tensor([[0, 0], [0, 2.0], [0, 0]])):
        weight.grad = gradient
        optimizer.step()
    assert optimizer.state[weight]["exp_avg"].tolist() == [[1.0], [1.0], [0.0]]


@pytest.mark.parametrize("of_rank", [1, 3, 40])
def test_krylov_directions_are_orthonormal_whatever_the_rank_of_the_matrix(of_rank: int) -> None:
    """Products of a matrix of low rank give no more directions than that; the rest is drawn."""
    weight = matrix(60, of_rank, 1) @ matrix(of_rank, 40, 2)
    found = Krylov(rank=6).basis(weight, None, torch.Generator().manual_seed(0))
    assert torch.allclose(found @ found.T, torch.eye(6), atol=1e-5)
    exact = SVD(rank=6).basis(weight, None, torch.Generator())
    near, best = (weight @ rows.T @ rows for rows in (found, exact))
    assert float((weight - near).norm()) <= 1.001 * float((weight - best).norm()) + 1e-4


def test_krylov_finds_directions_whose_singular_values_are_close() -> None:
    weight = matrix(200, 120)
    exact = SVD(rank=10).basis(weight, None, torch.Generator())
    overlap = {}
    for kind in (Randomised, Krylov):
        found = kind(rank=10).basis(weight, None, torch.Generator().manual_seed(0))
        overlap[kind] = float((found @ exact.T).square().sum()) / 10
    assert overlap[Krylov] > 0.98 > 0.9 > overlap[Randomised]
