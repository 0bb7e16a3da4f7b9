"""RigL by hand: what goes, what grows, and when."""

from __future__ import annotations

import pytest
import torch
from tests.train.small import one_row, step_with

from lowdim.core.errors import RecipeError
from lowdim.train import RigL, SparseTraining

WEIGHTS, MASK = [0.9, -0.1, 0.5, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0]


def rigl(**settings: object) -> RigL:
    return RigL(every=1, until=1.0, drop=0.4, schedule="constant", **settings)  # type: ignore[arg-type]


def test_drops_the_smallest_and_grows_the_largest_gradient() -> None:
    model, training = one_row(WEIGHTS, MASK, rigl())
    assert step_with(model, training, [9, 0.2, 9, 0.3, 0.7, 0.1]) == [1, 0, 1, 0, 1, 0]
    assert model.weight[0].tolist() == pytest.approx([0.9, 0, 0.5, 0, 0, 0])


def test_a_weight_just_dropped_may_come_back_as_it_was() -> None:
    model, training = one_row(WEIGHTS, MASK, rigl())
    assert step_with(model, training, [9, 0.8, 9, 0.3, 0.7, 0.1]) == MASK
    assert model.weight[0].tolist() == pytest.approx([0.9, -0.1, 0.5, 0, 0, 0])


def test_unless_only_new_weights_are_candidates() -> None:
    model, training = one_row(WEIGHTS, MASK, rigl(candidates="new"))
    assert step_with(model, training, [9, 0.8, 9, 0.3, 0.7, 0.1]) == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("gradient", [[[1.0, 2, 0, 0], [9, 9, 9, 9], [0, 0, 5, 0]]])
def test_or_only_weights_of_outputs_that_keep_one(gradient: list[list[float]]) -> None:
    masks = []
    for candidates in ("any", "live"):
        model = torch.nn.Linear(4, 3, bias=False)
        mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
        training = SparseTraining(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            method=rigl(candidates=candidates),
            masks={"weight": mask},
            total_steps=4,
        )
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[5.0, 0, 1, 2], [0, 0, 0, 0], [6, 7, 0, 0]]))
        model.weight.grad = torch.tensor(gradient)
        training.optimizer.step()
        masks.append(training.masks["weight"].int().tolist())
    assert masks[0] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert masks[1] == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]


def test_an_update_takes_the_place_of_the_optimizer_step() -> None:
    model, training = one_row(WEIGHTS, MASK, rigl())
    training.optimizer.param_groups[0]["lr"] = 1.0
    step_with(model, training, [9, 0.2, 9, 0.3, 0.7, 0.1])
    assert model.weight[0].tolist() == pytest.approx([0.9, 0, 0.5, 0, 0, 0])
    assert not training.optimizer.state
    assert model.weight.grad is not None
    assert model.weight.grad[0].tolist() == pytest.approx([9, 0, 9, 0, 0.7, 0])


def test_or_follows_it() -> None:
    model, training = one_row(WEIGHTS, MASK, rigl(order="after_step"))
    training.optimizer.param_groups[0]["lr"] = 0.1
    assert step_with(model, training, [1, 0.2, 1, 0.3, 0.7, 0.1]) == [1, 0, 1, 0, 1, 0]
    assert model.weight[0].tolist() == pytest.approx([0.8, 0, 0.4, 0, 0, 0])


@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_nothing_to_drop_is_static(share: float) -> None:
    model, training = one_row(WEIGHTS, MASK, RigL(every=1, drop=share))
    assert step_with(model, training, [1, 2, 3, 4, 5, 6]) == MASK


def test_stops_before_its_end() -> None:
    method = RigL(every=100, until=0.75)
    assert [t for t in range(1, 1001) if method.due(t, 1000)] == [100, 200, 300, 400, 500, 600, 700]


def test_grown_weights_start_without_momentum() -> None:
    model, training = one_row(WEIGHTS, MASK, RigL(every=2, until=1.0, drop=0.4, schedule="constant"))
    step_with(model, training, [1, 1, 1, 9, 9, 9])
    momentum = training.optimizer.state[model.weight]["momentum_buffer"]
    assert momentum[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert step_with(model, training, [1, 1, 1, 0, 2, 0]) == [1, 0, 1, 0, 1, 0]
    assert momentum[0].tolist() == [1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("drop", 1.5, "drop must be"),
        ("every", 0, "every"),
        ("until", -1, "until"),
        ("order", "before", "order"),
    ],
)
def test_bad_settings(setting: str, value: object, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        RigL(**{setting: value})  # type: ignore[arg-type]
