from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from lowdim.core.errors import LowdimError
from lowdim.nn.csr.linear import CSRLinear
from lowdim.nn.csr.swap import sparse_
from lowdim.train.sparse.csr import CSRLayer

Make = Callable[[list[nn.Parameter]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: Adam(p, 0.01),
    "amsgrad": lambda p: Adam(p, 0.01, amsgrad=True),
}


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(make: Make = OPTIMIZERS["adam"]) -> tuple[CSRLinear, CSRLayer, Optimizer]:
    """A 2 x 3 weight with values at 0, 2 and 4, after one step."""
    module = CSRLinear(3, 2, torch.tensor([0, 2, 4]), torch.tensor([1.0, 2.0, 3.0]))
    optimizer = make(list(module.parameters()))
    module(numbers(0, 4, 3)).square().sum().backward()
    optimizer.step()
    return module, CSRLayer("fc.weight", module, optimizer), optimizer


def test_what_a_method_sees() -> None:
    module, layer, _ = trained()
    assert (layer.size, layer.kept, layer.shape) == (6, 3, (2, 3))
    assert layer.positions().tolist() == [0, 2, 4]
    assert layer.mask().tolist() == [[True, False, True], [False, True, False]]
    assert torch.equal(layer.values(), module.values.detach())
    assert module.values.grad is not None
    assert torch.equal(layer.gradients(), module.values.grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_move_carries_values_gradient_and_state(name: str) -> None:
    module, layer, optimizer = trained(OPTIMIZERS[name])
    state = optimizer.state[module.values]
    before = {k: v.clone() for k, v in state.items() if isinstance(v, Tensor) and v.numel() == 3}
    values, gradient = module.values.detach().clone(), layer.gradients().clone()
    assert before
    # 0 stays, 2 is dropped and grown again, 4 is dropped, 5 is new
    layer.move(torch.tensor([True, False, False]), torch.tensor([2, 5]))
    assert layer.positions().tolist() == [0, 2, 5]
    assert torch.equal(module.values.detach(), torch.cat([values[:2], torch.zeros(1)]))
    assert torch.equal(layer.gradients(), torch.cat([gradient[:2], torch.zeros(1)]))
    for key, old in before.items():
        assert torch.equal(state[key], torch.cat([old[:2], torch.zeros(1)])), key
    assert module.values is layer.parameter
    module(numbers(1, 4, 3)).sum().backward()
    optimizer.step()


def test_given_values_start_anew() -> None:
    module, layer, optimizer = trained()
    layer.move(torch.tensor([True, False, True]), torch.tensor([2, 5]), torch.tensor([0.5, -0.5]))
    assert layer.positions().tolist() == [0, 2, 4, 5]
    assert module.values.detach()[[1, 3]].tolist() == [0.5, -0.5]
    assert optimizer.state[module.values]["exp_avg"][[1, 3]].tolist() == [0.0, 0.0]
    assert bool(optimizer.state[module.values]["exp_avg"][[0, 2]].all())


def test_moves_change_how_much_is_kept() -> None:
    module, layer, optimizer = trained()
    nothing = torch.empty(0, dtype=torch.int64)
    layer.move(torch.tensor([False, True, False]), nothing)
    assert layer.kept == module.values.numel() == 1
    layer.move(torch.tensor([False]), nothing)
    assert layer.kept == 0
    layer.move(torch.empty(0, dtype=torch.bool), torch.tensor([0, 1, 2, 3, 4, 5]))
    assert module.values.tolist() == [0.0] * 6
    assert optimizer.state[module.values]["exp_avg"].tolist() == [0.0] * 6
    module(numbers(1, 4, 3)).sum().backward()
    optimizer.step()
    assert bool(module.values.any())


def test_an_optimizer_whose_state_is_unknown_is_refused() -> None:
    module, layer, optimizer = trained()
    optimizer.state[module.values]["pairs"] = torch.zeros(3, 3)
    with pytest.raises(LowdimError, match="pairs"):
        layer.move(torch.tensor([True, True, False]), torch.tensor([5]))


def test_the_largest_gradients_of_a_step() -> None:
    module = CSRLinear.random(40, 30, 200)
    layer = CSRLayer("fc.weight", module, SGD(module.parameters(), 0.1))
    layer.watch(True)
    x = numbers(0, 2, 5, 40)
    dense = module.to_linear()
    for part in x:  # two backward passes add up
        module(part).square().sum().backward()
        dense(part).square().sum().backward()
    assert dense.weight.grad is not None
    scores = dense.weight.grad.abs().flatten()
    scores[layer.positions()] = -1
    found = layer.top_gradient(25, layer.positions())
    assert torch.equal(found, scores.topk(25).indices.sort().values)
    torch.testing.assert_close(layer.gradients(), dense.weight.grad.flatten()[layer.positions()], rtol=1e-5, atol=1e-5)
    assert layer.finite()
    layer.release()
    with pytest.raises(LowdimError, match="watch"):
        layer.top_gradient(25, layer.positions())


def test_factors_that_are_not_finite() -> None:
    module = CSRLinear(2, 1, torch.tensor([0]), bias=False)
    layer = CSRLayer("fc.weight", module, SGD(module.parameters(), 0.1))
    layer.watch(True)
    module(torch.tensor([[1.0, float("inf")]])).sum().backward()
    assert bool(layer.gradients().isfinite().all())
    assert not layer.finite()


def test_a_step_without_gradients_is_refused() -> None:
    module = CSRLinear(2, 1, torch.tensor([0]))
    layer = CSRLayer("fc.weight", module, SGD(module.parameters(), 0.1))
    with pytest.raises(LowdimError, match="no gradient"):
        layer.gradients()
    module.values = nn.Parameter(torch.zeros(1))
    with pytest.raises(LowdimError, match="replaced"):
        layer.check()


def test_a_held_gradient_outlives_the_parameters_own() -> None:
    _, layer, optimizer = trained()
    before = layer.gradients().clone()
    layer.hold_gradient()
    optimizer.zero_grad()
    assert torch.equal(layer.gradients(), before)
    layer.release()
    with pytest.raises(LowdimError, match="no gradient"):
        layer.gradients()


@pytest.mark.parametrize("model_first", [True, False])
def test_state_before_or_after_the_models_own(model_first: bool) -> None:
    module, layer, _ = trained()
    model_state, state = {k: v.clone() for k, v in module.state_dict().items()}, layer.state()
    layer.move(torch.tensor([True, False, False]), torch.tensor([1, 3, 5]))
    steps = [lambda: module.load_state_dict(model_state), lambda: layer.load(state)]
    for step in steps if model_first else reversed(steps):
        step()
    assert layer.positions().tolist() == [0, 2, 4]
    assert torch.equal(module.values.detach(), model_state["values"])


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_equals_that_of_a_masked_dense_model(name: str) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5))

    dense, sparse = build(), build()
    masks = {f"{i}.weight": numbers(i, *dense[i].weight.shape) > 1 for i in (0, 2)}
    sparse_(sparse, masks)
    kept = {i: masks[f"{i}.weight"] for i in (0, 2)}
    ours, theirs = OPTIMIZERS[name](list(sparse.parameters())), OPTIMIZERS[name](list(dense.parameters()))
    x, labels = numbers(9, 64, 24), torch.randint(5, (64,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for i, mask in kept.items():
            dense[i].weight.mul_(mask)
    for _ in range(20):
        losses = []
        for model, optimizer in ((sparse, ours), (dense, theirs)):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), labels)
            loss.backward()
            losses.append(loss.detach())
            if model is dense:
                for i, mask in kept.items():
                    dense[i].weight.grad.mul_(mask)
            optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    for i, mask in kept.items():
        assert not bool(dense[i].weight.detach()[~mask].any())
        torch.testing.assert_close(sparse[i].dense(), dense[i].weight.detach(), rtol=1e-3, atol=1e-4)
