"""NeuroFS's evolution of input neurons, as a method of the engine."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.train import SparseTraining
from lowdim.train.estimators.evolution import NeuronEvolution

EPOCHS, INPUTS, HIDDEN = 20, 50, 40
X = torch.randn(64, INPUTS, generator=torch.Generator().manual_seed(0))
Y = (X[:, 3] - X[:, 8] > 0).long()


class Training:
    """Epochs of three steps and an evolution."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 30), nn.Tanh(), nn.Linear(30, 2)
        )
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        self.sparse = SparseTraining(
            self.net,
            self.optimizer,
            allocation={"0.weight": 0.8, "2.weight": 0.7},
            method=NeuronEvolution(**{"select": 10, "every": 4, **settings}),
            total_steps=4 * EPOCHS,
        )

    def step(self, x: Tensor = X, y: Tensor = Y) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(x), y).backward()
        self.optimizer.step()

    def epoch(self) -> Tensor:
        """Return the mask of the first layer after an epoch and its evolution."""
        for part in range(3):
            self.step(X[part::3], Y[part::3])
        self.step()
        return self.sparse.masks["0.weight"]

    def memory(self) -> dict[str, Any]:
        return dict(self.sparse.state_dict()["memory"])


def test_active_inputs_fall_in_a_line_to_the_target() -> None:
    training, last = Training(), int(0.65 * EPOCHS)
    active = []
    for _ in range(EPOCHS):
        mask = training.epoch()
        known = training.memory().get("active", torch.ones(INPUTS, dtype=torch.bool))
        assert not mask[:, ~known].any()
        active.append(int(known.sum()))
    # D = 0.8 * 50 - 10 = 30 neurons go in the 11 epochs 2 to 12, counted from 0: 3 or 2 each time
    falls = [before - after for before, after in pairwise(active)]
    assert falls[0] == 0
    assert falls[1 : last - 1] == [3] * 8 + [2] * 3
    assert set(active[last - 1 :]) == {20}


def test_the_first_layer_keeps_its_number_of_weights() -> None:
    training = Training()
    number = round(0.2 * INPUTS * HIDDEN)
    assert {int(training.epoch().sum()) for _ in range(EPOCHS)} == {number}
    assert all(event["kept"] == {"0.weight": number, "2.weight": 360} for event in training.sparse.history)
    assert len(training.sparse.history) == EPOCHS - 1  # nothing moves after the last epoch


def test_a_layer_that_is_too_full_grows_no_more_than_there_is_room() -> None:
    training = Training(select=1, zeta_in=0.0)
    for _ in range(EPOCHS):
        mask = training.epoch()
    assert int(training.memory()["active"].sum()) == 1
    assert int(mask.sum()) == HIDDEN


def test_an_update_moves_no_weight_that_stays_and_new_ones_start_at_zero() -> None:
    training = Training()
    for _ in range(4):
        training.epoch()
    for part in range(3):
        training.step(X[part::3], Y[part::3])
    weight = training.net[0].weight
    before, mask = weight.detach().clone(), training.sparse.masks["0.weight"].clone()
    training.step()
    now = training.sparse.masks["0.weight"]
    stayed = weight != 0
    assert torch.equal(weight[stayed], before[stayed])
    assert bool((now & ~mask).any())
    assert torch.all(weight[now & ~mask] == 0)
    assert torch.all(training.optimizer.state[weight]["momentum_buffer"][~stayed] == 0)


def choose(
    strong: list[float], age: list[int], removed: int, epoch: int, **settings: Any
) -> tuple[int, int, list[int]]:
    method = NeuronEvolution(**{"select": 2, "zeta_in": 0.2, "remove_until": 0.5, **settings})
    active = torch.tensor([s >= 0 for s in strong])
    removed, exchanged, kept = method.choose(torch.tensor(strong), active, torch.tensor(age), removed, epoch, 20)
    return removed, exchanged, kept.nonzero().flatten().tolist()


TEN = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 0.5]


def test_removal_by_hand() -> None:
    # D = 0.8 * 10 - 2 = 6 over the epochs 2 to 9: ceil(6 / 8) = 1 goes first, the weakest
    assert choose(TEN, [2] * 10, 0, 2) == (1, 0, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    # at epoch 7 with 2 gone: ceil(4 / 3) = 2 more, and floor(2 * 0.2 * 13 / 20) = 0 are exchanged
    assert choose([9, 1, 8, 2, 7, 3, 6, 4, -1, -1], [2] * 10, 2, 7) == (4, 0, [0, 2, 4, 5, 6, 7])


def test_exchange_by_hand() -> None:
    # nothing is left to remove; floor(6 * 0.5 * 10 / 20) = 1 of the four is exchanged
    strong = [9, -1, -1, 2, -1, 3, -1, 4, -1, -1]
    assert choose(strong, [2] * 10, 6, 10, zeta_in=0.5, select=0 + 1) == (6, 1, [0, 5, 7])


def test_young_neurons_are_protected() -> None:
    young = [2] * 9 + [0]  # the weakest came in with the last update
    assert choose(TEN, young, 0, 2) == (0, 0, list(range(10)))
    young = [2] * 8 + [0, 2]  # a strong young one protects nobody else
    assert choose(TEN, young, 0, 2) == (1, 0, [0, 1, 2, 3, 4, 5, 6, 7, 8])


def test_neurons_come_in_by_their_largest_single_gradient() -> None:
    training = Training(zeta_in=0.5)
    for _ in range(15):
        training.epoch()
    for part in range(3):
        training.step(X[part::3], Y[part::3])
    before = training.memory()["active"]
    training.optimizer.zero_grad()
    nn.functional.cross_entropy(training.net(X), Y).backward()
    largest = training.net[0].weight.grad.abs().amax(0).masked_fill(before, -1)
    training.optimizer.step()
    after = training.memory()["active"]
    new = after & ~before
    exchanged = int(15 * 0.5 * (1 - 15 / EPOCHS))  # of the 0.5 * 50 - 10 = 15 that were removed
    assert int(new.sum()) == exchanged == 1
    assert new.nonzero().flatten().tolist() == [int(largest.argmax())]
    assert training.memory()["age"][new].tolist() == [0]


def test_it_resumes_bit_exactly() -> None:
    training = Training()
    for _ in range(6):
        training.epoch()
    other = Training()
    other.net.load_state_dict(training.net.state_dict())
    other.optimizer.load_state_dict(deepcopy(training.optimizer.state_dict()))
    other.sparse.load_state_dict(deepcopy(training.sparse.state_dict()))
    for _ in range(5):
        assert torch.equal(training.epoch(), other.epoch())
    assert torch.equal(training.net[0].weight, other.net[0].weight)


def test_a_shake_moves_weights_and_no_neurons() -> None:
    training = Training()
    training.sparse.shake(0.5)
    before = training.sparse.masks["0.weight"].clone()
    training.step()
    after = training.sparse.masks["0.weight"]
    assert int(after.sum()) == int(before.sum())
    assert not torch.equal(after, before)


def test_a_convolution_has_no_input_neurons() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match="linear first layer"):
        SparseTraining(net, optimizer, sparsity=0.5, method=NeuronEvolution(), total_steps=10)


@pytest.mark.parametrize(
    "settings", [{"select": 0}, {"every": 0}, {"zeta_in": 2.0}, {"zeta_hid": -1.0}, {"remove_until": 2.0}]
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        NeuronEvolution(**settings)
