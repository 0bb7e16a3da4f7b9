"""Q-GaLore: the schedule of its decompositions, its bytes, no float copy, and a run that goes on to the same bytes."""

from __future__ import annotations

import gc
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.optimizers.projections import data, llama, loss, net, reachable_bytes, train, weights
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lowdim.core.errors import LowdimError
from lowdim.models.load import load
from lowdim.models.save import save_model
from lowdim.nn.int8 import Int8Weight, floats_
from lowdim.train.loop import Loop
from lowdim.train.optimizers.base import matrices
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.lazy import LazyPower, LazySVD
from lowdim.train.optimizers.plan import Way
from lowdim.train.optimizers.q_galore import QGaLore


def choices(projector: LazySVD | LazyPower, steps: int, gradient: Any) -> list[int]:
    """Return the steps at which directions are chosen."""
    held: dict[str, Any] = {}
    found = []
    for step in range(steps):
        if step >= held.get("due", 0):
            found.append(step)
            projector.refresh(gradient(step), held, step, 0)
    return found


def still(step: int) -> Tensor:
    """Return a gradient of constant directions, whose signs flip."""
    base = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    return (-1.0) ** (step // 200) * base @ torch.diag(torch.tensor([9.0, 5.0, 1, 0.5, 0.2, 0.1])) @ base.T


def anew(step: int) -> Tensor:
    return torch.randn(60, 60, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("kind", [LazySVD, LazyPower])
def test_ten_decompositions_where_galore_has_thirty_three(kind: Any) -> None:
    lazy = [0, 200, 400, 600, 800, 1000, 1200, 1600, 3200, 6400]
    assert choices(kind(rank=2, gap=200), 6401, still) == lazy
    assert choices(kind(rank=2, gap=200, tau=1.5), 6401, still) == list(range(0, 6401, 200))


def test_directions_that_move_are_looked_for_as_often_as_ever() -> None:
    assert choices(LazySVD(rank=2, gap=10), 101, anew) == list(range(0, 101, 10))


def test_the_queue_and_the_factor_decide_when() -> None:
    assert choices(LazySVD(rank=2, gap=10, queue=1, gamma=3), 100, still) == [0, 10, 30, 90]


def test_packed_directions_are_nearly_those_given() -> None:
    gradient, packed, plain = anew(0)[:, :40], dict[str, Any](), dict[str, Any]()
    LazySVD(rank=5).refresh(gradient, packed, 0, 0)
    LazySVD(rank=5, bits=32).refresh(gradient, plain, 0, 0)
    assert packed["right"].dtype == torch.uint8 and len(packed["right"]) == 5 * 40 // 2
    rows = LazySVD(rank=5).directions(packed, "right", gradient)
    assert rows is not None and rows.shape == (5, 40)
    assert (rows - plain["right"]).abs().max() < 1.1 / 15 * (plain["right"].max() - plain["right"].min())
    assert torch.allclose(rows.norm(dim=1), torch.ones(5), atol=0.1)


def test_without_codes_it_is_galore_in_eight_bits() -> None:
    ends = []
    for rule in (
        QGaLore(rank=2, gap=2, weight_bits=32, direction_bits=32, tau=2.0),
        GaLore(rank=2, gap=2, lr=0.015, inner="adamw8bit"),
    ):
        model = net()
        train(model, rule.build(model), range(5))
        ends.append(weights(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "changes",
    [{"weight_bits": 32}, {"direction_bits": 32}, {"stochastic": False}, {"tau": 2.0}, {"gamma": 9}, {"queue": 2}],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_run(changes: dict[str, Any]) -> None:
    ends = []
    for settings in ({**changes, **{key: QGaLore.__dataclass_fields__[key].default for key in changes}}, changes):
        model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 4))
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 9
        optimizer = QGaLore(**({"rank": 2, "gap": 1, "queue": 1, "tau": 0.01} | settings)).build(model)
        for step in range(8):
            x = torch.randn(12, 30, generator=torch.Generator().manual_seed(step))
            nn.functional.cross_entropy(model(x), data(step)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(weights(model))
    assert not torch.equal(*ends)


def test_weights_and_state_take_the_bytes_of_the_formula() -> None:
    torch.manual_seed(0)
    rows, cols, rank = 160, 96, 48
    model = nn.Sequential(nn.Linear(cols, rows, bias=False))
    optimizer = QGaLore(rank=rank).build(model)
    model(torch.randn(3, cols)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    weight = model[0].weight
    assert isinstance(weight, Int8Weight)
    held = [weight.codes, weight.scales, weight.zeros]
    assert sum(t.nbytes for t in held) == pytest.approx(rows * cols * (1 + 5 / 256), rel=0.01)
    state = rank * cols * (1 / 2 + 5 / 256) + 2 * rank * rows * (1 + 4 / 256)
    assert reachable_bytes(optimizer, *held) == pytest.approx(state, rel=0.01)


def test_no_float_copy_of_a_target_is_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(37, 41, bias=False) if i % 2 else nn.Linear(41, 37, bias=False) for i in range(4))
    )
    optimizer = QGaLore(rank=3, layerwise=True).build(model)

    def floats() -> list[Any]:
        gc.collect()
        return [
            t for t in gc.get_objects()
            if type(t) in (Tensor, nn.Parameter) and t.is_floating_point() and t.numel() == 37 * 41
        ]  # fmt: skip

    known = len(floats())
    for _ in range(2):
        y = model(torch.randn(5, 41)).square().sum()
        assert len(floats()) == known  # none is saved for the backward pass either
        y.backward()
        optimizer.step()
    assert len(floats()) == known
    assert all(isinstance(p, Int8Weight) for p in model.parameters())


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_run_goes_on_to_the_same_bytes(layerwise: bool, tmp_path: Path) -> None:
    def made() -> Loop:
        model = net()
        optimizer = QGaLore(rank=2, gap=2, layerwise=layerwise).build(model)
        return Loop(model, optimizer, loss=loss)

    loop = made()
    loop.run(map(data, range(5)))
    torch.save(loop.state_dict(), tmp_path / "state")
    loop.run(map(data, range(5, 8)))
    again = made()
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert all(isinstance(p, Int8Weight) for p in again.model.parameters() if p.dim() == 2)
    again.run(map(data, range(5, 8)))
    assert torch.equal(weights(loop.model), weights(again.model))


def test_rounding_by_chance_tracks_floats_and_to_the_nearest_stalls() -> None:
    """The direction of the paper's table, at a rate whose steps are below half a step of the grid."""
    losses = {}
    for name, changes in {"floats": {"weight_bits": 32}, "chance": {}, "nearest": {"stochastic": False}}.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Tanh(), nn.Linear(64, 32, bias=False))
        x = torch.randn(64, 32)
        goal = torch.randn(64, 32) / 4
        optimizer = QGaLore(rank=16, lr=5e-3, gap=50, **changes).build(model)  # type: ignore[arg-type]
        for _ in range(60):
            value = (model(x) - goal).square().mean()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[name] = float(value.detach())
    assert losses["floats"] <= losses["chance"] < losses["nearest"]
    assert losses["chance"] - losses["floats"] < 0.5 * (losses["nearest"] - losses["floats"])


def test_a_model_is_made_plain_again_to_be_saved() -> None:
    model = net()
    optimizer = QGaLore(rank=2).build(model)
    train(model, optimizer, range(2))
    before = weights(model)
    floats_(model)
    assert not any(isinstance(p, Int8Weight) for p in model.parameters())
    assert torch.equal(before, weights(model))


def test_a_stock_directory_holds_floats(tmp_path: Path) -> None:
    model = llama()
    optimizer = QGaLore(rank=2).build(model)
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    save_model(model, None, tmp_path)
    read = load(tmp_path)
    assert isinstance(model.model.layers[0].mlp.up_proj.weight, Int8Weight)
    assert type(read.model.layers[0].mlp.up_proj.weight) is nn.Parameter
    with torch.no_grad():
        assert torch.allclose(read(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    no = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, bos_token_id=0, eos_token_id=0, **sizes, **no))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_transposed_layers_of_gpt2_compute_with_codes_too(autocast: bool) -> None:
    """As with the floats that the codes stand for, to the bit, and with none of them kept for the way back."""
    model, ids, kept = gpt2(), torch.arange(24).view(2, 12), list[Tensor]()
    planned = Way(gpt2(), QGaLore(rank=4)).held()
    optimizer = QGaLore(rank=4).build(model)
    eight = [p for p in model.parameters() if isinstance(p, Int8Weight)]
    assert len(eight) == len(matrices(model)) == 8
    parts = [part for p in model.parameters() for part in ((p.codes, p.scales, p.zeros) if p in set(eight) else (p,))]
    assert planned.weights == sum(part.nbytes for part in parts)
    plain = deepcopy(model)
    floats_(plain)
    found = []
    for each in (model, plain):
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),  # type: ignore[func-returns-value]
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            value = each(input_ids=ids, labels=ids).loss
        value.backward()
        if each is model:
            shapes = {shape for p in eight for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
            assert all(isinstance(t, Int8Weight) for t in kept if tuple(t.shape) in shapes)
            assert sum(isinstance(t, Int8Weight) for t in kept) == len(eight)
        found.append([value.detach(), *(p.grad for p in each.parameters())])
    assert all(torch.equal(mine, its) for mine, its in zip(*found, strict=True))
    before = model(input_ids=ids, labels=ids).loss.detach()
    for _ in range(5):
        optimizer.step()
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
    assert model(input_ids=ids, labels=ids).loss < before
    optimizer.zero_grad()
    assert planned.state == pytest.approx(reachable_bytes(optimizer, *parts), rel=1e-3, abs=16 * len(parts))


def test_matrices_that_have_no_int8_form_are_refused() -> None:
    model = nn.Sequential(OrderedDict(body=nn.Linear(8, 8), cells=nn.LSTM(8, 8)))
    before = weights(model)
    for act in (QGaLore(rank=2).build, QGaLore(rank=2).prepare_, lambda model: Way(model, QGaLore(rank=2)).held()):
        with pytest.raises(LowdimError, match=r"weight_bits=8 .* cells.weight_ih_l0 is of no such.*Set weight_bits=32"):
            act(model)
    assert torch.equal(before, weights(model)) and not any(isinstance(p, Int8Weight) for p in model.parameters())
    QGaLore(rank=2, weight_bits=32).build(model)


def test_a_rank_too_large_leaves_the_model_alone() -> None:
    model = net()
    with pytest.raises(LowdimError, match="rank=128 exceeds"):
        QGaLore().build(model)
    assert not any(isinstance(p, Int8Weight) for p in model.parameters())
