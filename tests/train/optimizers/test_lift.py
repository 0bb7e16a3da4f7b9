"""LIFT: principal weights, exactly K of them, Adam's memory of K numbers, and what stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from tests.train.adapters.trainers import tune
from tests.train.optimizers.projections import data, decaying, llama, loss, matrix, net, train, weights
from torch import Tensor, nn

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.core.topk import keep_top
from lowdim.train.loop import Loop
from lowdim.train.optimizers.entries import Entries
from lowdim.train.optimizers.lift import LIFT

CARD = torch.tensor([[10.0, 0.0, 1.0], [9.0, 0.5, 1.2], [0.0, 0.1, 6.0]])
SMALL = LIFT(rank=2, budget=1, every=2, lr=0.05)


def of(mask: Any, rank: int, **settings: Any) -> LIFT:
    """Return the method with a mask; two of the rivals have no rank."""
    return LIFT(mask=mask, **settings, **({} if mask in ("magnitude", "random") else {"rank": rank}))


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def top(scores: Tensor, keep: int) -> list[list[int]]:
    return keep_top(scores.abs(), keep).nonzero().tolist()


# ---------------------------------------------------------------- which entries


@pytest.mark.parametrize("decomposition", ["randomised", "svd"])
def test_the_example_of_three_by_three(decomposition: Any) -> None:
    """Rank 1 lifts (0, 2), which is small, over (2, 2), which is large but alone."""
    near = LIFT(rank=1, decomposition=decomposition).reduced(CARD, draw())
    u, s, v = torch.linalg.svd(CARD)
    assert torch.allclose(near, s[0] * u[:, :1] @ v[:1], atol=1e-5)
    assert top(near, 3) == [[0, 0], [0, 2], [1, 0]]
    assert top(CARD, 3) == [[0, 0], [1, 0], [2, 2]]


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_full_rank_is_plain_magnitude(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    principal, magnitude = (of(mask, rank=8, budget=2).chosen(weight, draw()) for mask in ("principal", "magnitude"))
    assert torch.equal(principal, magnitude)


@pytest.mark.parametrize("flat", [False, True])
def test_random_directions_choose_nearly_what_the_decomposition_does(flat: bool) -> None:
    """Also where singular values hardly fall, as those of trained weights do."""
    weight = matrix(96, 160) if flat else decaying(96, 160)
    one, two = (
        set(LIFT(rank=16, budget=8, decomposition=kind).chosen(weight, draw()).tolist())
        for kind in ("randomised", "svd")
    )
    assert len(one & two) >= 0.98 * len(one)
    again = LIFT(rank=16, budget=8).chosen(weight, draw())
    assert set(again.tolist()) == one


def test_rivals_choose_what_they_are_called_after() -> None:
    weight = matrix(12, 8)
    found = {
        mask: of(mask, rank=3, budget=2).chosen(weight, draw())
        for mask in ("principal", "magnitude", "random", "smallest")
    }
    assert {len(index) for index in found.values()} == {40}
    near = LIFT(rank=3).reduced(weight, draw()).abs().view(-1)
    assert near[found["smallest"]].max() <= near[found["principal"]].min()
    assert weight.abs().view(-1)[found["magnitude"]].sum() >= weight.abs().view(-1)[found["principal"]].sum()
    other = LIFT(budget=2, mask="random").chosen(weight, torch.Generator().manual_seed(1))
    assert not torch.equal(other, found["random"])


@pytest.mark.parametrize("mask", ["principal", "magnitude", "random", "smallest"])
def test_zeros_are_never_chosen(mask: Any) -> None:
    weight = matrix(12, 8)
    weight[:, ::2] = 0.0
    index = of(mask, rank=3, budget=2).chosen(weight, draw())
    assert len(index) == 40 and bool((weight.view(-1)[index] != 0).all())


# ---------------------------------------------------------------- steps


def test_exactly_k_entries_of_every_matrix_move() -> None:
    model = net()
    before = copy.deepcopy(model)
    optimizer = LIFT(rank=2, budget=1, lr=0.05).build(model)
    train(model, optimizer, range(3))
    for (name, now), was in zip(model.named_parameters(), before.parameters(), strict=True):
        changed = int((now != was).sum())
        assert changed == (sum(now.shape) if now.dim() == 2 else 0), name
    matrices = [p for p in model.parameters() if p.dim() == 2]
    kept = {tuple(value.shape) for p in matrices for value in optimizer.state[p].values() if hasattr(value, "shape")}
    assert kept == {(), (20,), (18,)}
    assert optimizer.state_bytes() == 3 * 4 * (20 + 18) + 2 * 4


def test_all_entries_are_adamw_to_the_bit() -> None:
    class Every:
        every, seed = 2, 0

        def entries(self, shape: tuple[int, ...]) -> int:
            return shape[0] * shape[1]

        def chosen(self, matrix: Tensor, draw: torch.Generator) -> Tensor:
            return torch.arange(matrix.numel())

        def to_dict(self) -> dict[str, Any]:
            return {}

    def run(make: Any) -> Tensor:
        model = net()
        for layer in (model[0], model[2]):
            layer.bias.requires_grad_(False)
        train(model, make([model[0].weight, model[2].weight]), range(5))
        return weights(model)

    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    mine = run(lambda params: Entries(params, Every(), **settings))
    assert torch.equal(mine, run(lambda params: torch.optim.AdamW(params, fused=True, **settings)))


def test_kept_entries_keep_their_means_and_new_ones_begin_at_zero() -> None:
    weight = nn.Parameter(torch.tensor([[4.0, 3.0], [2.0, 1.0]]))
    optimizer = Entries([weight], LIFT(budget=1, mask="magnitude", every=2), lr=1e-3)
    with pytest.raises(RecipeError, match=r"2 x 2"):
        LIFT(budget=2).entries((2, 2))
    optimizer.choice = Rows(every=2)
    for step in range(3):
        weight.grad = torch.full((2, 2), 1.0)
        if step == 2:
            means = dict(zip(*(optimizer.state[weight][key].tolist() for key in ("index", "exp_avg")), strict=True))
            with torch.no_grad():
                weight.copy_(torch.tensor([[0.1, 3.0], [2.0, 9.0]]))
        optimizer.step()
    state = optimizer.state[weight]
    assert means == {0: pytest.approx(0.19), 1: pytest.approx(0.19)}
    assert state["index"].tolist() == [1, 3] and int(state["step"]) == 3
    assert state["exp_avg"].tolist() == pytest.approx([0.9 * 0.19 + 0.1, 0.1])
    assert state["touched"] == 3


class Rows(LIFT):
    """The two largest entries."""

    def entries(self, shape: tuple[int, ...]) -> int:
        return 2

    def chosen(self, matrix: Tensor, draw: torch.Generator) -> Tensor:
        return keep_top(matrix.abs(), 2).view(-1).nonzero().view(-1)


def test_steps_that_bf16_cannot_hold_add_up() -> None:
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = Entries([weight], LIFT(rank=1, budget=1, every=100), lr=1e-4)
    for _ in range(60):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = weight.detach()[weight.detach() != 1]
    assert len(moved) == 8 and torch.allclose(moved.float(), torch.tensor(0.994), atol=0.004)
    assert optimizer.state[weight]["values"].tolist() == pytest.approx([0.994] * 8, abs=1e-4)


def test_weights_without_a_gradient_stand_still() -> None:
    model = net()
    optimizer = SMALL.build(model)
    optimizer.step()
    assert not any(optimizer.state.values())
    model[0](data(0)[0]).sum().backward()
    optimizer.step()
    assert set(optimizer.state) == {model[0].weight}


def test_decay_pulls_chosen_entries_alone() -> None:
    weight = nn.Parameter(CARD.clone())
    optimizer = Entries([weight], LIFT(rank=1, budget=1), lr=0.5, weight_decay=0.1)
    weight.grad = torch.zeros(3, 3)
    optimizer.step()
    chosen = optimizer.state[weight]["index"].long()
    expected = CARD.clone().view(-1)
    expected[chosen] *= 1 - 0.5 * 0.1
    assert torch.allclose(weight.detach().view(-1), expected)


def test_experts_in_one_weight_have_k_entries_each() -> None:
    weight = nn.Parameter(torch.stack([matrix(6, 4, seed) for seed in range(3)]))
    before = weight.detach().clone()
    optimizer = Entries([weight], LIFT(rank=2, budget=1), lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight != before).flatten(1).sum(1).tolist() == [10, 10, 10]


def test_a_mixture_of_experts_is_trained() -> None:
    model = ZOO["mixtral"]()
    optimizer = LIFT(rank=2, budget=1).build(model)
    stacks = [n for n, p in model.named_parameters() if p.dim() == 3 and p.requires_grad]
    assert stacks and not model.get_input_embeddings().weight.requires_grad
    before = {name: model.get_parameter(name).detach().clone() for name in stacks}
    ids = torch.arange(24).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    for name in stacks:
        changed = (model.get_parameter(name) != before[name]).flatten(1).sum(1)
        assert int(changed.max()) <= sum(before[name].shape[1:]) and int(changed.sum()) > 0


# ---------------------------------------------------------------- in loops


def test_zeros_of_a_pruned_model_stay() -> None:
    model = net()
    for layer in (model[0], model[2]):
        layer.weight.data[:, ::2] = 0.0
    masks = Masks.of(model)
    train(model, SMALL.build(model), range(5))
    assert Masks.of(model) == masks


@pytest.mark.parametrize("narrow", [False, True])
def test_a_loop_goes_on_to_the_same_bytes(narrow: bool) -> None:
    def loop() -> Loop:
        model = net().bfloat16() if narrow else net()
        settings = {"clip": 1.0, "schedule": lambda step: 1 / (1 + step)}

        def lost(model: nn.Module, batch: Any) -> Tensor:
            return loss(model, (batch[0].to(model[0].weight.dtype), batch[1])).float()  # type: ignore[index]

        return Loop(model, SMALL.build(model), loss=lost, size=lambda batch: len(batch[0]), **settings)  # type: ignore[arg-type]

    whole = loop()
    whole.run(data(step) for step in range(7))
    first, second = loop(), loop()
    first.run(data(step) for step in range(3))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.run(data(step) for step in range(3, 7))
    assert torch.equal(weights(second.model), weights(whole.model))
    for p, q in zip(whole.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert p.keys() == q.keys()
        assert all(torch.equal(p[k], q[k]) if isinstance(p[k], Tensor) else p[k] == q[k] for k in p)


def test_the_trainer_of_transformers_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    def run(home: Path, resume: Any = None, steps: int = 6) -> Any:
        torch.manual_seed(0)
        model = ZOO["llama"]()
        optimizer = LIFT(rank=2, budget=1, every=2, lr=1e-2).build(model)
        return tune(home, model, None, resume, optimizer, max_steps=steps).model

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", steps=3)
    resumed = run(tmp_path / "cut", str(tmp_path / "cut" / "checkpoint-3"))
    assert torch.equal(weights(whole), weights(resumed))
    torch.manual_seed(0)
    start = ZOO["llama"]()
    changed = [int((p != q).sum()) for p, q in zip(whole.parameters(), start.parameters(), strict=True)]
    frozen = [n for n, p in whole.named_parameters() if not p.requires_grad]
    assert sum(changed) > 0 and any("norm" in name for name in frozen) and any("embed" in name for name in frozen)


@pytest.mark.parametrize("mask", ["principal", "magnitude", "random", "smallest"])
def test_the_loss_falls(mask: Any) -> None:
    model = llama()
    optimizer = of(mask, rank=4, budget=3, lr=1e-2, every=10).build(model)
    ids = torch.randint(40, (8, 16), generator=draw())
    losses = []
    for _ in range(15):
        found = model(input_ids=ids, labels=ids).loss
        losses.append(found.detach())
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 5}, r"budget=5 asks for 100 entries of a matrix of 14 x 6, which has 84\. Take at most budget=4"),
        ({"rank": 7, "budget": 1}, r"rank=7 exceeds the smaller side of a matrix of 14 x 6\. Take at most rank=6"),
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"mask": "largest"}, "unknown mask 'largest'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        LIFT(**({"rank": 2} | settings)).build(net())


def test_a_rank_that_is_not_used_is_not_refused() -> None:
    assert LIFT(budget=1, mask="random").entries((14, 6)) == 20


def test_more_entries_than_are_kept_are_refused_before_anything_changes() -> None:
    model = net()
    model[0].weight.data[:, :5] = 0.0
    with pytest.raises(RecipeError, match="of which 14 are not zero"):
        LIFT(rank=2, budget=1).build(model)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(LowdimError, match=r"has the shape \(3,\)"):
        Entries([nn.Parameter(torch.ones(3))], LIFT())
    with pytest.raises(LowdimError, match="no matrix that is trained"):
        LIFT().build(nn.LayerNorm(4))


def test_a_state_of_another_choice_is_refused() -> None:
    one, two = SMALL.build(net()), LIFT(rank=3, budget=1, every=2).build(net())
    with pytest.raises(CheckpointError, match="Use the same settings"):
        two.load_state_dict(one.state_dict())
