"""Optimizers in the small space of their gradients: inner optimizers, what is kept, what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.optimizers.projections import (
    PROJECTORS,
    adamw,
    data,
    loss,
    matrix,
    net,
    reachable_bytes,
    stepped,
    train,
    weights,
)
from torch import Tensor, nn

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.train.loop import Loop
from lowdim.train.optimizers.eight_bit import AdamW8bit
from lowdim.train.optimizers.projected import Projected
from lowdim.train.optimizers.projector import Projector
from lowdim.train.optimizers.projectors import SVD, Power, Random, Randomised

KINDS = [SVD, Randomised, Power, Random]


# ---------------------------------------------------------------- inner optimizers


@pytest.mark.parametrize(
    "make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Muon, AdamW8bit]
)
def test_decay_is_that_of_the_optimizer(make: Any) -> None:
    """At full rank with a scale of 1 the small space is the whole one, turned: decay alone tells runs apart."""

    def after(decay: float, project: bool) -> Tensor:
        weight = nn.Parameter(matrix(6, 4, 1))
        optimizer = make([weight], lr=0.1, weight_decay=decay)
        optimizer = Projected(optimizer, SVD(rank=4, scale=1.0)) if project else optimizer
        weight.grad = matrix(6, 4, 2)
        optimizer.step()
        return weight.detach()

    plain, small = ((after(0.0, project) - after(0.5, project)) for project in (False, True))
    assert small.any()
    if make is not torch.optim.Adam:  # its decay goes through the axes
        assert torch.allclose(plain, small, atol=1e-5)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adafactor, AdamW8bit])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls(make: Any, kind: Any) -> None:
    model = net()
    lr = 0.3 if make is torch.optim.SGD else 0.03
    optimizer = Projected(make(model.parameters(), lr=lr), kind(rank=3, gap=3, scale=1.0))
    before = loss(model, data(0)).item()
    for _ in range(15):
        train(model, optimizer, range(1))
    assert loss(model, data(0)).item() < before - 0.1


def test_adafactor_takes_steps_as_large_as_the_weight() -> None:
    gradient = matrix(6, 4)

    def change(factor: float) -> float:
        weight = nn.Parameter(factor * torch.ones(6, 4))
        weight.grad = gradient.clone()
        Projected(torch.optim.Adafactor([weight], lr=0.1), SVD(rank=2)).step()
        return float((weight.detach() - factor).norm())

    assert change(4.0) == pytest.approx(2 * change(2.0), rel=1e-3)


def test_decay_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(LowdimError, match=r"what RMSprop does with weight_decay=0\.1 is not known"):
        Projected(torch.optim.RMSprop(net().parameters(), weight_decay=0.1), SVD(rank=2))
    Projected(torch.optim.RMSprop(net().parameters()), SVD(rank=2))


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("rows", "cols"), [(96, 64), (64, 160), (64, 64)])
@pytest.mark.parametrize("eight", [False, True])
def test_state_takes_the_bytes_of_the_formula(rows: int, cols: int, eight: bool) -> None:
    rank, small, large = 48, min(rows, cols), max(rows, cols)
    weight = nn.Parameter(matrix(rows, cols))
    make: Any = AdamW8bit if eight else torch.optim.AdamW
    optimizer = Projected(make([weight], lr=0.1), SVD(rank=rank))
    weight.grad = matrix(rows, cols, 1)
    optimizer.step()
    weight.grad = None
    formula = 4 * rank * small + 2 * rank * large * (1 + 4 / 256 if eight and rank * large >= 4096 else 4)
    assert reachable_bytes(optimizer, weight) == pytest.approx(formula, rel=0.01)


def test_directions_that_the_gradient_has_left_are_chosen_anew() -> None:
    held: dict[str, Any] = {}
    projector = Power(rank=1, gap=1, oversample=0)
    for step, row in enumerate(([1.0, 0.0], [0.0, 1.0])):
        assert projector.refresh(torch.tensor([row, row, row]), held, step=step, place=0)
        assert bool(held["right"].isfinite().all())
        assert float(held["right"].norm()) == pytest.approx(1.0)


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["torch", "safetensors"])
def test_a_run_goes_on_to_the_same_bytes(kind: Any, how: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if how == "torch" else torch.float32

    def made() -> tuple[nn.Module, Projected]:
        model = nn.Sequential(nn.Linear(6, 80), nn.Tanh(), nn.Linear(80, 60), nn.Tanh(), nn.Linear(60, 4)).to(dtype)
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).mul(0.1).to(dtype)
        inner = AdamW8bit(model.parameters(), lr=0.02) if how == "torch" else adamw(model)
        return model, Projected(inner, kind(rank=3, gap=4, scale=1.0), [model[0].weight, model[4].weight])

    def run(model: nn.Module, optimizer: Projected, steps: range) -> None:
        for step in steps:
            x, y = data(step)
            nn.functional.cross_entropy(model(x.to(dtype)).float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = made()
    run(model, optimizer, range(6))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    if how == "safetensors":
        state = saved["optimizer"]["state"]
        flat = {f"{i}/{key}": torch.as_tensor(value) for i, held in state.items() for key, value in held.items()}
        save_file({key: value.contiguous() for key, value in flat.items()}, tmp_path / "flat")
        for key, value in load_file(tmp_path / "flat").items():
            place, _, name = key.partition("/")
            whole = not isinstance(state[int(place)][name], Tensor)
            state[int(place)][name] = int(value) if whole else value
    run(model, optimizer, range(6, 9))
    other, again = made()
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    run(other, again, range(6, 9))
    assert torch.equal(weights(model), weights(other))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        mine, its = optimizer.state[p], again.state[q]
        assert mine.keys() == its.keys()
        assert all(torch.equal(torch.as_tensor(mine[k]), torch.as_tensor(its[k])) for k in mine)


@pytest.mark.parametrize("other", [SVD(rank=3), SVD(rank=2, side="full"), Power(rank=2), SVD(rank=2, gap=9)])
def test_the_state_of_another_projector_is_refused(other: Projector) -> None:
    model = net()
    optimizer = Projected(adamw(model), SVD(rank=2))
    train(model, optimizer, range(2))
    state, fresh = optimizer.state_dict(), Projected(adamw(net()), other)
    with pytest.raises(CheckpointError, match="Use the same settings"):
        fresh.load_state_dict(state)
    assert not fresh.state
    with pytest.raises(CheckpointError, match="without projector"):
        fresh.load_state_dict(adamw(net()).state_dict())


def test_a_scheduler_moves_the_rate_of_projected_weights() -> None:
    model = net()
    optimizer = Projected(adamw(model), SVD(rank=2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    before = weights(model)
    train(model, optimizer, range(1))
    assert torch.equal(before, weights(model))  # the rate is 0
    schedule.step()
    train(model, optimizer, range(1))
    assert not torch.isclose(before, weights(model)).any()


# ---------------------------------------------------------------- whole gradients


def test_accumulated_and_clipped_gradients_are_those_of_one_batch() -> None:
    ends = []
    for parts in (1, 3):
        model = net()
        optimizer = Projected(torch.optim.SGD(model.parameters(), lr=0.5), SVD(rank=3, gap=2, scale=1.0))
        Loop(model, optimizer, loss=loss, clip=0.05, accumulate=parts).run(
            tuple(side[i * 12 // parts : (i + 1) * 12 // parts] for side in data(step))
            for step in range(4)
            for i in range(parts)
        )
        ends.append(weights(model))
    assert torch.allclose(ends[0], ends[1], atol=1e-5)
    assert 0 < (ends[0] - weights(net())).norm() <= 4 * 0.5 * 0.05 * 1.001


def test_layerwise_is_the_same_training_with_no_gradient_left() -> None:
    ends = []
    for layerwise in (False, True):
        model = net()
        optimizer = Projected(adamw(model), SVD(rank=3, gap=2), layerwise=layerwise)
        Loop(model, optimizer, loss=loss, schedule=lambda step: 1.0 / (1 + step)).run(map(data, range(4)))
        ends.append(weights(model))
        assert all(p.grad is None for p in model.parameters())
    assert torch.equal(*ends)


def test_there_is_never_more_than_one_gradient_in_a_layerwise_pass() -> None:
    model, most = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(5))), 0
    optimizer = Projected(adamw(model), SVD(rank=2), layerwise=True)

    def watch(*_: Any) -> None:
        nonlocal most
        most = max(most, sum(p.grad is not None for p in model.parameters()))

    for layer in model:
        layer.register_full_backward_hook(watch)
    optimizer.inner.register_step_pre_hook(watch)
    model(torch.ones(2, 6, requires_grad=True)).sum().backward()
    assert most == 1


def test_layerwise_does_not_accumulate_nor_clip() -> None:
    model = net()
    optimizer = Projected(adamw(model), SVD(rank=2), layerwise=True)
    loss(model, data(0)).backward()
    with pytest.raises(LowdimError, match="layerwise updates do not accumulate"):
        loss(model, data(1)).backward()
    for settings in ({"accumulate": 2}, {"clip": 1.0}):
        with pytest.raises(LowdimError, match="updates weights in the backward pass"):
            Loop(model, optimizer, loss=loss, **settings)  # type: ignore[arg-type]
    narrow = net().bfloat16()
    optimizer = Projected(adamw(narrow), SVD(rank=2), layerwise=True)
    with pytest.raises(LowdimError, match="no fp32 copies"):
        Loop(narrow, optimizer, loss=loss, master=True)


# ---------------------------------------------------------------- what is given


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_no_directions_are_chosen_from_a_gradient_that_is_none(bad: float) -> None:
    weight = nn.Parameter(matrix(5, 3))
    optimizer = Projected(torch.optim.AdamW([weight], lr=0.1), SVD(rank=2, gap=2))
    weight.grad = torch.full((5, 3), bad)
    before = weight.detach().clone()
    if bad:
        with pytest.warns(UserWarning, match="it is not trained"):
            optimizer.step()
    else:  # a step of nothing, as AdamW's own would be
        optimizer.step()
        before *= 1 - 0.1 * 0.01
    assert torch.allclose(weight, before)
    for step in range(2 if bad else 3):  # the step of nothing counts
        weight.grad = matrix(5, 3, step)
        optimizer.step()
    kept = optimizer.state[weight]["projector.right"].clone()
    weight.grad = torch.full((5, 3), bad)
    with pytest.warns(UserWarning, match="the old ones stay"):
        optimizer.step()
    assert torch.equal(optimizer.state[weight]["projector.right"], kept)
    weight.grad = matrix(5, 3, 7)
    optimizer.step()
    assert not torch.equal(optimizer.state[weight]["projector.right"], kept)


def test_weights_without_a_gradient_wait() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = Projected(adamw(model), SVD(rank=2, gap=2))
    before = model[0].weight.detach().clone()
    train(model, optimizer, range(3))
    assert torch.equal(model[0].weight, before)
    assert model[0].weight not in optimizer.state
    model[0].weight.requires_grad_(True)  # thawed: its own steps begin
    train(model, optimizer, range(1))
    assert not torch.equal(model[0].weight, before)
    assert optimizer.state[model[0].weight]["projector.step"] == 1
    assert optimizer.state[model[2].weight]["projector.step"] == 4


def test_what_cannot_be_projected_is_refused() -> None:
    model = net()
    with pytest.raises(
        LowdimError, match=r"rank=5 exceeds the smaller side of a weight of shape \(4, 14\). Take at most 4"
    ):
        Projected(adamw(model), SVD(rank=5))
    with pytest.raises(LowdimError, match=r"takes matrices; got a weight of shape \(14,\)"):
        Projected(adamw(model), SVD(rank=2), [model[0].bias])
    with pytest.raises(LowdimError, match="targets names others"):
        Projected(adamw(model), SVD(rank=2), [net()[0].weight])
    with pytest.raises(LowdimError, match="there is none"):
        Projected(torch.optim.AdamW([model[0].bias]), SVD(rank=2))
    used = adamw(model)
    train(model, used, range(1))
    with pytest.raises(LowdimError, match="has taken steps"):
        Projected(used, SVD(rank=2))
    with pytest.raises(RecipeError, match="rank must be a whole number of at least 1"):
        SVD(rank=0)


def test_reversed_sides_at_full_rank_still_know_their_side() -> None:
    for shape in ((5, 3), (3, 5)):
        change = stepped(SVD(rank=3, scale=1.0, side="reverse_std"), matrix(*shape), torch.optim.SGD)
        assert torch.allclose(change, -matrix(*shape), atol=1e-5)


def test_a_closure_gives_the_gradient() -> None:
    ends = []
    for closed in (False, True):
        model = net()
        optimizer = Projected(adamw(model), SVD(rank=2))

        def compute(model: nn.Module = model) -> Tensor:
            value = loss(model, data(0))
            value.backward()
            return value

        returned = optimizer.step(compute) if closed else (compute(), optimizer.step())[0]
        assert returned is not None
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_the_generators_of_torch_are_left_alone() -> None:
    model = net()
    optimizer = Projected(adamw(model), Random(rank=2))
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, range(2))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("kind", PROJECTORS)
def test_an_objective_is_climbed_by_the_steps_that_descend_its_negative(make: Any, kind: str) -> None:
    def after(sign: float, up: bool) -> Tensor:
        model = net()
        optimizer = Projected(make(model.parameters(), lr=0.05, weight_decay=0.1, maximize=up), PROJECTORS[kind])
        for step in range(4):
            (sign * loss(model, data(step))).backward()
            optimizer.step()
            optimizer.zero_grad()
        return weights(model)

    assert torch.allclose(after(1.0, False), after(-1.0, True), atol=1e-6)
