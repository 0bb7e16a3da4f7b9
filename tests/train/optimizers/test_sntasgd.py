from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lowdim.core.errors import RecipeError
from lowdim.train import SNTASGD, SparseTraining, Static
from lowdim.train.sparse.method import Periodic
from lowdim.train.sparse.moment import Moment


class Swap(Periodic):
    """Exchanges positions 0 and 1 of the one layer, back and forth."""

    def update(self, moment: Moment) -> None:
        (layer,) = moment.layers
        positions = layer.positions()
        new = 1 - int(positions[0])
        layer.move(positions > 1, torch.tensor([new]))


def random_gradients(shape: tuple[int, ...], steps: int) -> Tensor:
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(0))


def nt_asgd(weight: Tensor, gradients: Tensor, lr: float, decay: float, first: int) -> tuple[Tensor, Tensor]:
    """NT-ASGD by its definition: the plain mean of the weights of steps first + 1, first + 2, ..."""
    seen = []
    for step, gradient in enumerate(gradients):
        weight = weight - lr * (gradient + decay * weight)
        if step >= first:
            seen.append(weight)
    return weight, torch.stack(seen[1:]).mean(0)


def test_with_all_weights_active_it_is_nt_asgd() -> None:
    start, gradients = (
        torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
        random_gradients((3, 4), 12),
    )
    layer = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(start)
    optimizer = SNTASGD(layer.parameters(), lr=0.1, weight_decay=0.01)
    SparseTraining(layer, optimizer, sparsity=0.0, method=Static())
    for step, gradient in enumerate(gradients):
        if step == 5:
            optimizer.start()
        layer.weight.grad = gradient.clone()
        optimizer.step()
    weight, average = nt_asgd(start, gradients, 0.1, 0.01, first=5)
    assert torch.allclose(layer.weight, weight, atol=1e-6)
    with optimizer.averaged():
        assert torch.allclose(layer.weight, average, atol=1e-6)
    assert torch.allclose(layer.weight, weight, atol=1e-6)


def test_it_equals_torch_asgd_without_decay_from_the_first_step() -> None:
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer, reference = (
        SNTASGD(ours.parameters(), lr=0.1),
        torch.optim.ASGD(theirs.parameters(), lr=0.1, lambd=0.0, t0=0.0),
    )
    optimizer.start()
    for gradient in random_gradients((3, 4), 8):
        for layer in (ours, theirs):
            layer.weight.grad, layer.bias.grad = gradient.clone(), gradient[:, 0].clone()
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(optimizer.state[a]["ax"], reference.state[b]["ax"], atol=1e-6)


def test_average_of_a_weight_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    optimizer = SNTASGD([weight], lr=1.0)
    optimizer.start()
    averages = []
    for gradient in (-1.0, -1.0, -1.0, -3.0):  # the weight is 1, 2, 3, 6
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        averages.append(float(optimizer.state[weight]["ax"]))
    assert averages == pytest.approx([1.0, 2.0, 2.5, 11 / 3])


def test_a_regrown_weight_is_its_own_average_for_two_steps() -> None:
    layer = nn.Linear(4, 1, bias=False)
    optimizer = SNTASGD(layer.parameters(), lr=0.1)
    mask = torch.tensor([[True, False, True, True]])
    training = SparseTraining(layer, optimizer, masks={"weight": mask}, method=Swap(every=5))
    optimizer.start()
    for step, gradient in enumerate(random_gradients((1, 4), 15)):
        layer.weight.grad = gradient.clone()
        optimizer.step()
        active = training.masks["weight"]
        state = optimizer.state[layer.weight]
        assert torch.all(state["ax"][~active] == 0)
        assert torch.all(layer.weight[~active] == 0)
        newest = int(step % 10 >= 4)  # position 1 from step 5 to 9, position 0 again from step 10 on
        since = (step + 1) % 5
        if step >= 4:
            assert float(state["age"][0, newest]) == since
        if step >= 4 and since in (1, 2):
            assert torch.equal(state["ax"][0, newest], layer.weight[0, newest])
        if step >= 4 and since == 3:
            assert not torch.equal(state["ax"][0, newest], layer.weight[0, newest])
        assert float(state["age"][0, 2]) == step + 1


def test_averaging_starts_when_the_loss_is_above_the_best_of_before() -> None:
    optimizer = SNTASGD([nn.Parameter(torch.zeros(1))], lr=1.0, nonmono=2)
    losses = [
        5.0,
        4.0,
        4.5,
        4.2,
        4.1,
    ]  # the fourth has three before it, the best of which without the last two is 5
    assert [optimizer.observe(loss) for loss in losses] == [False, False, False, False, True]
    assert optimizer.observe(0.1)  # for good


def test_a_loss_that_keeps_falling_never_starts_it() -> None:
    optimizer = SNTASGD([nn.Parameter(torch.zeros(1))], nonmono=0)
    assert not any(optimizer.observe(1.0 / n) for n in range(1, 20))


def test_before_averaging_it_is_sgd_and_the_average_is_the_weight() -> None:
    ours, theirs = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer, reference = (
        SNTASGD([ours], lr=0.5, weight_decay=0.1),
        torch.optim.SGD([theirs], lr=0.5, weight_decay=0.1),
    )
    for _ in range(3):
        ours.grad, theirs.grad = torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0])
        optimizer.step()
        reference.step()
    assert torch.equal(ours, theirs)
    assert not optimizer.state
    with optimizer.averaged():
        assert torch.equal(ours, theirs)


def test_state_resumes_bit_exactly() -> None:
    gradients = random_gradients((3, 4), 10)

    def run(layer: nn.Linear, optimizer: SNTASGD, part: Tensor) -> None:
        for gradient in part:
            layer.weight.grad = gradient.clone()
            optimizer.step()
        optimizer.observe(2.0)

    layer = nn.Linear(4, 3, bias=False)
    optimizer = SNTASGD(layer.parameters(), lr=0.1)
    optimizer.start()
    run(layer, optimizer, gradients[:5])
    copy = deepcopy(layer)
    resumed = SNTASGD(copy.parameters(), lr=0.7)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    assert resumed.averaging
    run(layer, optimizer, gradients[5:])
    run(copy, resumed, gradients[5:])
    assert torch.equal(layer.weight, copy.weight)
    assert torch.equal(optimizer.state[layer.weight]["ax"], resumed.state[copy.weight]["ax"])
    assert resumed.param_groups[0]["losses"] == (2.0, 2.0)


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = SNTASGD([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert weight.item() == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"lr": 0.0}, "lr"), ({"weight_decay": -1.0}, "weight_decay"), ({"nonmono": -1}, "nonmono")],
)
def test_bad_settings_are_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        SNTASGD([nn.Parameter(torch.zeros(1))], **settings)  # type: ignore[arg-type]
