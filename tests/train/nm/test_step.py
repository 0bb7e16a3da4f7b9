"""STEP: when masks begin, and Adam's step with its variance held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.nm.test_from_scratch import STEPS, Net, data, loss, made, weights
from torch import nn

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.recipe.families import build
from lowdim.train.loop import Loop
from lowdim.train.nm.from_scratch import SparseFromScratch
from lowdim.train.nm.sr_ste import SRSTE
from lowdim.train.nm.step import STEP
from lowdim.train.nm.variance import Variance

EARLY = STEP(least=0.0, most=0.25)  # masks from the fifth of twelve steps on


def rider(loop: Loop) -> SparseFromScratch:
    found = loop.riders[0]
    assert isinstance(found, SparseFromScratch)
    return found


def moments(loop: Loop, key: str = "exp_avg_sq") -> torch.Tensor:
    model: Any = loop.model
    return torch.cat([loop.optimizer.state[layer.weight][key].flatten() for layer in (model.up, model.down)])


def test_masks_begin_when_the_variance_stands_still_but_between_the_bounds() -> None:
    rule = STEP()
    assert not rule.begins(10, 100, [0.0], 1e-8) and rule.begins(11, 100, [0.0], 1e-8)
    assert not rule.begins(50, 100, [1.0], 1e-8) and rule.begins(51, 100, [1.0], 1e-8)
    assert not rule.begins(20, 100, [0.0, 4e-8], 1e-8) and rule.begins(20, 100, [0.0, 1.9e-8], 1e-8)
    assert STEP(threshold=0.5).begins(20, 100, [0.4], 1e-8)
    with pytest.raises(RecipeError, match=r"least=0.6 is above most=0.5"):
        STEP(least=0.6)
    with pytest.raises(RecipeError, match=r"from-scratch.most must be between 0 and 1"):
        build("from-scratch", {"name": "step", "most": 2})


def test_before_masks_begin_it_is_adam_to_the_bit() -> None:
    loop = made(STEP(least=1.0, most=1.0))
    loop.run(map(data, range(STEPS)))
    model = Net()
    Loop(model, torch.optim.AdamW(model.parameters(), lr=0.01), loss=loss).run(map(data, range(STEPS)))
    assert torch.equal(weights(loop.model), weights(model))
    assert rider(loop).since is None and len(rider(loop).history) == STEPS


@pytest.mark.parametrize(("optimizer", "decay"), [(torch.optim.AdamW, 0.1), (torch.optim.Adam, 0.1)])
def test_then_the_step_is_adams_with_the_variance_held(optimizer: Any, decay: float) -> None:
    def decaying(parameters: Any, lr: float) -> Any:
        return optimizer(parameters, lr=lr, weight_decay=decay)

    loop = made(EARLY, decaying)
    loop.run(map(data, range(4)))
    assert rider(loop).since == 4
    model: Any = loop.model
    wide, state = loop.copy_of(model.up.weight).clone(), loop.optimizer.state[model.up.weight]
    mean, square = state["exp_avg"].clone(), state["exp_avg_sq"].clone()
    loss(model, data(4)).backward()  # of what the model computes with: two of four
    assert ((model.up.weight.detach().unflatten(1, (-1, 4)) != 0).sum(2) == 2).all()
    gradient = model.up.weight.grad.clone()
    model.zero_grad()
    if optimizer is torch.optim.Adam:
        gradient += decay * wide
    else:
        wide *= 1 - 0.01 * decay
    mean = 0.9 * mean + 0.1 * gradient
    wanted = wide - 0.01 * mean / (1 - 0.9**5) / ((square / (1 - 0.999**4)).sqrt() + 1e-8)
    loop.run([data(4)])
    assert torch.allclose(loop.copy_of(model.up.weight), wanted, atol=1e-7)
    assert torch.equal(state["exp_avg_sq"], square) and torch.allclose(state["exp_avg"], mean)
    assert float(state["step"]) == 5


def test_the_variance_is_that_of_the_last_dense_step_and_of_masked_layers_alone() -> None:
    loop = made(EARLY)
    loop.run(map(data, range(4)))
    held, head = moments(loop).clone(), loop.optimizer.state[loop.model.head.weight]["exp_avg_sq"].clone()  # type: ignore[union-attr,index]
    loop.run(map(data, range(4, STEPS)))
    assert torch.equal(moments(loop), held)
    assert not torch.equal(loop.optimizer.state[loop.model.head.weight]["exp_avg_sq"], head)  # type: ignore[union-attr,index]
    model: Any = loop.model
    for layer in (model.up, model.down):
        assert ((layer.weight.detach().unflatten(1, (-1, 4)) != 0).sum(2) == 2).all()
    other = made(SRSTE(decay=0.0))  # whose variance goes on
    other.run(map(data, range(STEPS)))
    assert not torch.equal(weights(loop.model), weights(other.model))


def test_a_change_is_the_mean_over_all_entries() -> None:
    layers = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 3, bias=False)])
    optimizer = torch.optim.AdamW(layers.parameters(), betas=(0.9, 0.9))
    variance = Variance(optimizer, [layer.weight for layer in layers])  # type: ignore[misc]
    assert variance.window == 10
    for gradients, wanted in (((1.0, 2.0), 0.1 * (2 + 24) / 8), ((1.0, 0.0), (2 * 0.09 + 6 * 0.04) / 8)):
        for layer, value in zip(layers, gradients, strict=True):
            layer.weight.grad = torch.full_like(layer.weight, value)  # type: ignore[arg-type, union-attr]
        variance.note()
        optimizer.step()
        assert variance.change() == pytest.approx(wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"least": 0.75, "most": 1.0},
        {"most": 0.75},
        {"threshold": 10.0},
        {"corrected": False},
        {"tail": 0.5},
        {"every": 5},
        {"decay": 0.5},
        {"mvue": True},
    ],
    ids=str,
)
def test_every_setting_changes_the_run(changes: dict[str, Any]) -> None:
    ends = []
    for settings in ({}, changes):
        loop = made(STEP(**{"least": 0.0, "most": 0.5, "threshold": 0.0, **settings}))
        loop.run(map(data, range(STEPS - 1)))
        ends.append(weights(loop.model))
    assert not torch.equal(*ends)


@pytest.mark.parametrize("at", [2, 8])
def test_a_run_goes_on_to_the_same_bytes(at: int, tmp_path: Path) -> None:
    loop = made(EARLY)
    batches = list(map(data, range(STEPS)))
    loop.run(batches[:at])
    torch.save(loop.state_dict(), tmp_path / "state")
    loop.run(batches[at:])
    again = made(EARLY)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert rider(again).since == (None if at == 2 else 4)
    again.run(batches[at:])
    assert torch.equal(weights(loop.model), weights(again.model))
    assert torch.equal(moments(loop, "exp_avg"), moments(again, "exp_avg"))
    assert rider(loop).history == rider(again).history


def test_an_optimizer_without_a_variance_is_refused() -> None:
    for optimizer in (torch.optim.SGD, lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True)):
        with pytest.raises(LowdimError, match="Take Adam or AdamW of torch"):
            made(EARLY, optimizer)
    made(SRSTE(), torch.optim.SGD)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_layer_whose_first_gradient_comes_after_the_masks(kind: Any, corrected: bool) -> None:
    layers = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    optimizer = kind([{"params": layer.parameters()} for layer in layers], lr=0.1, betas=(0.5, 0.75), weight_decay=0.0)
    rule = STEP(least=0.0, most=0.25, corrected=corrected)
    sparse = SparseFromScratch({"a": layers[0], "b": layers[1]}, rule, optimizer, total_steps=8)
    loop = Loop(
        nn.ModuleList(layers),
        optimizer,
        loss=lambda _, batch: layers[int(batch[0, 0] > 0)](batch).square().sum(),
        projected=sparse.projections(),
        riders=[sparse],
    )
    loop.run([-torch.ones(1, 4)] * 3)
    assert sparse.since == 3
    before = loop.copy_of(layers[1].weight).clone()  # type: ignore[arg-type]
    loop.run([torch.ones(1, 4)])
    moved = (loop.copy_of(layers[1].weight) - before).abs()  # type: ignore[arg-type]
    size = 0.1 if corrected else 0.2  # Adam's first step, and that without the correction of V
    assert torch.allclose(moved, torch.full_like(moved, size), rtol=1e-3)
    loop.run([torch.ones(1, 4), -torch.ones(1, 4)] * 2)
    assert bool(torch.cat([loop.copy_of(layer.weight) for layer in layers]).isfinite().all())  # type: ignore[arg-type]


def test_an_objective_that_is_climbed_is_refused() -> None:
    with pytest.raises(LowdimError, match="without amsgrad and maximize"):
        made(EARLY, lambda p, lr: torch.optim.AdamW(p, lr=lr, maximize=True))
