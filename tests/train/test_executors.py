"""Masked and truly sparse layers trained by the same methods: the same masks, the same weights to fp32 rounding."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.train.small import batch, mlp, train
from torch import nn

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.nn.csr.linear import CSRLinear
from lowdim.nn.csr.swap import sparse_
from lowdim.train import ITOP, SET, GradualMagnitude, GraNet, Method, NeurRev, RigL, SparseTraining, Static

METHODS: list[Method] = [
    Static(),
    SET(every=2),
    RigL(every=2),
    RigL(every=2, order="after_step"),
    RigL(every=2, drop=0.9, schedule="constant", candidates="live"),
    ITOP(every=2, grow="unfired"),
    ITOP(every=2, grow="gradient", death="taylor"),
    GradualMagnitude(every=2),
    GraNet(every=2),
    NeurRev(every=2),
]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.003, eps=1e-3),
}


def pair(method: Method, optimizer: str) -> tuple[tuple[nn.Module, SparseTraining], tuple[nn.Module, SparseTraining]]:
    masked, sparse = mlp(64, 48, 32, 4), mlp(64, 48, 32, 4)
    settings: dict[str, Any] = {"method": method, "total_steps": 12}
    names = ["0", "2"]
    first = SparseTraining(masked, OPTIMIZERS[optimizer](masked.parameters()), sparsity=0.8, include=names, **settings)
    sparse_(sparse, first.masks)
    shrinks = method.changes_density
    second = SparseTraining(
        sparse, OPTIMIZERS[optimizer](sparse.parameters()), sparsity=0.8 if shrinks else None, **settings
    )
    return (masked, first), (sparse, second)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_the_same_training(method: Method, optimizer: str) -> None:
    (masked, first), (sparse, second) = pair(method, optimizer)
    for step in range(12):
        a = train(masked, first.optimizer, range(step, step + 1), flat=True)
        b = train(sparse, second.optimizer, range(step, step + 1), flat=True)
        assert a == pytest.approx(b, rel=1e-4)
        assert first.masks == second.masks
    assert first.history == second.history
    for name, layer in (("0", sparse[0]), ("2", sparse[2])):  # type: ignore[index]
        assert torch.allclose(masked.get_submodule(name).weight, layer.dense(), atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_truly_sparse_run_resumes_to_the_bit(method: Method) -> None:
    _, (whole_model, whole) = pair(method, "adamw")
    train(whole_model, whole.optimizer, range(12), flat=True)

    _, (model, training) = pair(method, "adamw")
    train(model, training.optimizer, range(6), flat=True)
    file = io.BytesIO()
    torch.save([x.state_dict() for x in (model, training.optimizer, training)], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    _, (model, training) = pair(method, "adamw")
    model.load_state_dict(states[0])
    training.load_state_dict(states[2])
    training.optimizer.load_state_dict(states[1])
    train(model, training.optimizer, range(6, 12), flat=True)
    assert training.masks == whole.masks
    assert training.history == whole.history
    for a, b in zip(model.state_dict().values(), whole_model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def model() -> nn.Sequential:
    return nn.Sequential(CSRLinear.random(20, 16, 60, name="a"), nn.ReLU(), CSRLinear.random(16, 8, 30, name="b"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sparsity": 0.5}, "keep 90 weights"),
        ({"pattern": "fan-in"}, "bring their own masks"),
        ({"masks": {"0.weight": torch.ones(16, 20).bool()}}, "bring their own masks"),
        ({"include": ["1"]}, "matches no weight"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], match: str) -> None:
    made = model()
    with pytest.raises(RecipeError, match=match):
        SparseTraining(made, torch.optim.SGD(made.parameters(), lr=0.1), **({"method": Static()} | settings))


def test_an_optimizer_without_the_values() -> None:
    with pytest.raises(LowdimError, match=r"does not hold 0\.weight"):
        SparseTraining(model(), torch.optim.SGD(model().parameters(), lr=0.1), method=Static())


def test_the_table_shows_dense_shapes() -> None:
    made = model()
    training = SparseTraining(made, torch.optim.SGD(made.parameters(), lr=0.1), method=Static(), exclude=["2"])
    assert "16x20" in str(training)
    assert "dense (not chosen)" in str(training)


def test_gradients_anywhere() -> None:
    (masked, first), (sparse, second) = pair(RigL(every=1, order="after_step"), "sgd")
    found = []
    for net, training in ((masked, first), (sparse, second)):
        x, y = batch(0)
        nn.functional.cross_entropy(net(x.flatten(1)), y).backward()
        layer: Any = training.layers[0]
        at = torch.tensor([0, 5, layer.size - 1, 77])
        found.append(layer.gradients_at(at))
        assert len(layer.gradients_at(at[:0])) == 0
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert found[0].any()


def test_a_weight_too_large_to_be_followed() -> None:
    made = nn.Sequential(CSRLinear.random(10**6, 10**6, 5000), CSRLinear.random(10**6, 4, 40))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    training = SparseTraining(made, optimizer, method=SET(every=1))
    made(torch.ones(1, 10**6)).sum().backward()
    optimizer.step()
    assert training.history[0]["grown"]["0.weight"] > 1000
    assert training.explored() == training.explored("1") >= 40 / 4e6
    assert training.explored("0") != training.explored("0")
    training.load_state_dict(training.state_dict())


@pytest.mark.parametrize(
    ("make", "key", "start"),
    [
        (lambda p: torch.optim.Rprop(p, lr=0.02), "step_size", 0.02),
        (lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.3), "sum", 0.3),
    ],
)
def test_a_grown_weight_starts_as_the_optimizer_starts(make: Callable[[Any], Any], key: str, start: float) -> None:
    masked, sparse = mlp(64, 48, 4), mlp(64, 48, 4)
    settings: dict[str, Any] = {"method": RigL(every=3, drop=0.5), "total_steps": 12}
    first = SparseTraining(masked, make(masked.parameters()), sparsity=0.8, **settings)
    sparse_(sparse, first.masks)
    second = SparseTraining(sparse, make(sparse.parameters()), **settings)
    for net, training in ((masked, first), (sparse, second)):
        layer: Any = training.layers[0]
        train(net, training.optimizer, range(2), flat=True)
        before = layer.positions()
        train(net, training.optimizer, range(2, 3), flat=True)
        grown = torch.tensor(sorted({*layer.positions().tolist()} - {*before.tolist()}))
        state = training.optimizer.state[layer.parameter][key]
        if net is masked:
            found = state.flatten()[grown]
        else:
            found = state[torch.isin(layer.positions(), grown)]
        assert len(found)
        assert found.tolist() == pytest.approx([start] * len(found))
