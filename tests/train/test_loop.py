"""The training loop: every option changes something, and a run goes on with the same bytes from any step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.ranks import fork_ranks
from tests.train.looped import batch, data, loss, made, main, narrow, net
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.runs import tree
from lowdim.train import RigL, SparseTraining
from lowdim.train.loop import Loop, examples


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def plain(model: nn.Module, optimizer: Any = torch.optim.SGD, **settings: Any) -> Loop:
    return Loop(model, optimizer(model.parameters(), lr=0.1), **{"loss": loss, **settings})


def trained(batches: Any, **settings: Any) -> Tensor:
    model = net()
    plain(model, **settings).run(batches)
    return weights(model)


def cut(whole: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.split(sizes) for part in whole), strict=True))


# ---------------------------------------------------------------- what a step is


def test_a_step_is_the_one_that_everybody_writes() -> None:
    model, other = net(), net()
    loop = plain(model)
    batches = [batch(8, n) for n in range(4)]
    losses = []
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for each in batches:
        value = loss(other, each)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    told = []
    mean = loop.run(batches, lambda step, value: told.append((step, value)))
    assert torch.equal(weights(model), weights(other))
    assert told == [(n + 1, pytest.approx(value)) for n, value in enumerate(losses)]
    assert mean == pytest.approx(sum(losses) / 4)
    assert loop.step == 4


def test_four_small_batches_are_one_large_one() -> None:
    whole = [batch(16, n) for n in range(3)]
    parts = [part for each in whole for part in cut(each, 4, 4, 4, 4)]
    assert torch.allclose(trained(parts, accumulate=4), trained(whole), atol=1e-6)
    assert not torch.allclose(trained(parts), trained(whole), atol=1e-3)


def test_batches_weigh_as_much_as_their_examples() -> None:
    whole = batch(16, 1)
    uneven = cut(whole, 1, 9, 2, 4)
    assert torch.allclose(trained(uneven, accumulate=4), trained([whole]), atol=1e-6)
    model = net()
    expected = float(loss(model, whole).detach())
    assert plain(model, accumulate=4).run(uneven) == pytest.approx(expected, rel=1e-6)
    alike = trained(uneven, accumulate=4, size=lambda _: 1)
    assert not torch.allclose(alike, trained([whole]), atol=1e-3)


def test_the_last_step_takes_what_is_left() -> None:
    loop = plain(net(), accumulate=4)
    loop.run([batch(4, n) for n in range(6)])
    assert loop.step == 2
    assert math.isnan(loop.run([]))
    assert loop.step == 2


def test_clipping_bounds_the_norm() -> None:
    def moved(clip: float | None) -> float:
        return float((trained([batch(8, 1)], clip=clip) - weights(net())).norm()) / 0.1

    free = moved(None)
    assert moved(free / 4) == pytest.approx(free / 4, rel=1e-4)
    assert moved(free * 4) == pytest.approx(free, rel=1e-4)


def test_the_schedule_is_a_factor_on_the_rates_of_all_groups() -> None:
    model = net()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.4},
            {"params": model[2].parameters(), "lr": 0.1},
        ]
    )
    loop = Loop(model, optimizer, loss=loss, schedule=lambda step: 0.5**step)
    seen: list[tuple[float, ...]] = []
    loop.run([batch(4, n) for n in range(3)], lambda *_: seen.append(rates(optimizer)))
    assert seen == [(0.4, 0.1), (0.2, 0.05), (0.1, 0.025)]


def rates(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    return tuple(group["lr"] for group in optimizer.param_groups)


def test_examples_of_any_batch() -> None:
    x = torch.zeros(3, 5)
    assert [examples(each) for each in (x, (x, 1), [x], {"input_ids": x, "n": 2}, ({"x": x}, 0))] == [3] * 5


# ---------------------------------------------------------------- master weights


def test_master_weights_add_up_what_bf16_cannot_hold() -> None:
    def walk(master: bool) -> tuple[nn.Module, Loop]:
        model = nn.Linear(1, 1, bias=False).bfloat16()
        nn.init.constant_(model.weight, 1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-12)  # bf16 near 1 has steps of 2^-7
        loop = Loop(model, optimizer, loss=lambda model, x: model(x).mean(), master=master)
        loop.run([torch.ones(1, 1, dtype=torch.bfloat16)] * 64)
        return model, loop

    model, loop = walk(master=True)
    assert model.weight.item() == 1 - 64 * 2.0**-12 == loop.state_dict()["master"][0].item()
    assert model.weight.dtype == torch.bfloat16
    assert walk(master=False)[0].weight.item() == 1.0


def test_master_weights_give_the_optimizer_fp32_and_leave_fp32_alone() -> None:
    model = net()
    model[0].bfloat16()
    model[1] = nn.Sequential(nn.Tanh(), Wide())
    loop = plain(model, torch.optim.AdamW, master=True)
    narrow = nn.Sequential(Narrow(), *model)
    loop.model = narrow
    loop.run([batch(8, n) for n in range(3)])
    assert [p.dtype for p in model.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert len(loop.state_dict()["master"]) == 2
    assert all(state["exp_avg"].dtype == torch.float32 for state in loop.optimizer.state.values())


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


class Wide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def test_a_model_computes_with_the_projection_and_the_copy_gets_its_gradient() -> None:
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -1.0, 0.5]]))
    mask = torch.tensor([[True, True, False]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    project = {model.weight: lambda wide: wide * mask}
    loop = Loop(model, optimizer, loss=lambda model, x: model(x).mean(), projected=project)
    assert model.weight.tolist() == [[3.0, -1.0, 0.0]]
    loop.run([torch.tensor([[0.0, 0.0, 0.25]])])
    assert loop.state_dict()["master"][0].tolist() == [[3.0, -1.0, 0.25]]  # straight through the mask
    mask[:] = torch.tensor([[True, False, True]])
    loop.run([torch.tensor([[1.0, 0.0, 0.0]])])
    assert model.weight.tolist() == [[2.0, 0.0, 0.25]]
    assert loop.state_dict()["master"][0].tolist() == [[2.0, -1.0, 0.25]]


def test_projected_weights_go_on_from_their_copies() -> None:
    def begun() -> tuple[nn.Module, Loop]:
        model = net().bfloat16()
        project = {p: lambda wide: wide.mul(8).round().div(8) for p in model.parameters() if p.dim() == 2}
        return model, plain(model, torch.optim.AdamW, master=True, projected=project, loss=narrow_loss)

    def narrow_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(model, (batch[0].bfloat16(), batch[1]))

    batches = [batch(8, n) for n in range(6)]
    model, loop = begun()
    loop.run(batches)
    first, half = begun()
    half.run(batches[:3])
    again, rest = begun()
    rest.load_state_dict(deepcopy(half.state_dict()))
    assert torch.equal(weights(first), weights(again))
    rest.run(batches[3:])
    assert torch.equal(weights(model), weights(again))
    assert all(bool((p * 8 == (p * 8).round()).all()) for p in again.parameters() if p.dim() == 2)


def test_masks_ride_on_master_weights() -> None:
    model = nn.Sequential(Narrow(), net().bfloat16(), Wide())
    loop = made_sparse(model, "1.0.weight", master=True)
    loop.run([batch(8, n) for n in range(6)])
    training = loop.riders[0]
    assert isinstance(training, SparseTraining)
    mask, weight = training.masks["1.0.weight"], model[1][0].weight
    assert int(mask.sum()) == 36
    assert not weight[~mask].any()
    assert not loop.state_dict()["master"][0][~mask].any()
    assert any("grown" in update and sum(update["grown"].values()) for update in training.history)


def made_sparse(model: nn.Module, name: str, **settings: Any) -> Loop:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    training = SparseTraining(model, optimizer, sparsity=0.5, method=RigL(every=2), total_steps=10, include=[name])
    return Loop(model, optimizer, loss=loss, riders=[training], **settings)


# ---------------------------------------------------------------- going on


SETTINGS: list[dict[str, Any]] = [
    {},
    {"accumulate": 2},
    {"clip": 0.1},
    {"schedule": lambda step: 1 / (1 + step)},
    {"master": True},
    {"accumulate": 2, "clip": 0.1, "schedule": lambda step: 1 / (1 + step), "master": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s) or "plain")
def test_it_goes_on_with_the_same_bytes_from_any_step(settings: dict[str, Any]) -> None:
    def start(seed: int) -> Loop:
        model = nn.Sequential(Narrow(), net().bfloat16(), Wide())
        if seed:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(generator=torch.Generator().manual_seed(seed))
        return made_sparse(model, "1.0.weight", **settings)

    every = settings.get("accumulate", 1)
    batches = [batch(6 + n % 2, n) for n in range(6 * every)]
    loop, kept = start(0), [0]
    states = [deepcopy(loop.state_dict())]
    loop.run(batches, lambda *_: states.append(deepcopy(loop.state_dict())))
    assert all(not torch.equal(*(s["model"]["1.0.weight"] for s in pair)) for pair in pairwise(states))
    text, tensors = tree.pack(loop.state_dict())
    for step, state in enumerate(states[:-1]):
        other = start(step + 1)
        other.load_state_dict(tree.unpack(*tree.pack(state)))
        assert other.step == step
        other.run(batches[step * every :])
        again, others = tree.pack(other.state_dict())
        assert again == text
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)
        kept.append(step)
    assert kept[-1] == 5


def test_a_state_of_other_settings_is_refused() -> None:
    loop = plain(net(), accumulate=2)
    state = deepcopy(loop.state_dict())
    before = weights(loop.model)
    for other, word in (
        (plain(net(), accumulate=3), "'accumulate': 2.*this is .*'accumulate': 3"),
        (plain(net(), accumulate=2, clip=1.0), "'clip': None.*this is .*'clip': 1.0"),
        (plain(net().bfloat16(), accumulate=2, master=True), "'master': 0.*this is .*'master': 4"),
        (made(net(), accumulate=2), "'riders': 0.*this is .*'riders': 1"),
    ):
        with pytest.raises(CheckpointError, match=word):
            other.load_state_dict(state)
    assert torch.equal(weights(loop.model), before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1; got 0"),
        ({"accumulate": 1.5}, "accumulate must be a whole number"),
        ({"clip": 0.0}, "clip must be above 0; got 0.0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        plain(net(), **settings)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(LowdimError, match="a batch of step 2 holds no example"):
        plain(net()).run([batch(4, 1), batch(0, 2)])


# ---------------------------------------------------------------- ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    home: Path = tmp_path_factory.mktemp("ranks")
    fork_ranks(main, (str(home),), 2)
    return [torch.load(home / f"{rank}.pt") for rank in range(2)]


def test_ranks_step_together_on_the_mean_of_all_examples(ranks: list[dict[str, Any]]) -> None:
    both = [data(rank)[:4] for rank in range(2)]
    steps = [
        tuple(torch.cat([each[start + n][part] for each in both for n in range(2)]) for part in range(2))
        for start in (0, 2)
    ]
    model = net()
    loop = made(model)
    mean = loop.run(steps)
    for rank in ranks:
        assert rank["step"] == 2
        assert rank["mean"] == pytest.approx(mean, rel=1e-5)
        for name, tensor in model.state_dict().items():
            assert torch.allclose(rank["model"][name], tensor, atol=1e-6)
    assert all(torch.equal(ranks[0]["model"][name], ranks[1]["model"][name]) for name in model.state_dict())
    masks = loop.state_dict()["riders"][0]["masks"]
    assert all(torch.equal(rank["masks"]["0.weight"], masks["0.weight"]) for rank in ranks)


def test_ranks_share_the_gradients_of_narrow_weights_after_the_first_step_too(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["half"] for rank in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = net().bfloat16()
    narrow(model).run([tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(data(0), data(1), strict=False)])
    for name, tensor in model.state_dict().items():
        assert torch.allclose(first[name], tensor, rtol=0.02, atol=0.01)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """Let this process be the only rank of a group."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{tmp_path}/store", 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_sharded_weights_accumulate_too_and_have_no_master() -> None:
    batches = [batch(4 + n, n) for n in range(4)]
    whole, model = net(), net()
    fully_shard(model)
    means = [plain(each, accumulate=2, clip=0.5).run(batches) for each in (whole, model)]
    assert means[0] == pytest.approx(means[1])
    for mine, theirs in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.allclose(theirs.full_tensor(), mine, atol=1e-6)  # type: ignore[attr-defined]
    with pytest.raises(LowdimError, match="MixedPrecisionPolicy"):
        plain(model, master=True)


@pytest.mark.usefixtures("alone")
def test_sharded_weights_are_projected_where_they_lie() -> None:
    batches = [batch(8, n) for n in range(4)]

    def begun(shard: bool, dtype: torch.dtype | None = None) -> tuple[nn.Module, Loop]:
        model = net()
        if shard:
            fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=dtype))
        projected = {p: lambda wide: wide.mul(8).round().div(8) for p in model.parameters() if p.dim() == 2}
        return model, plain(model, torch.optim.AdamW, clip=0.5, projected=projected)

    (whole, loop), (model, sharded) = begun(False), begun(True)
    assert loop.run(batches) == pytest.approx(sharded.run(batches))
    for mine, theirs in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.allclose(theirs.full_tensor(), mine, atol=1e-6)  # type: ignore[attr-defined]
    for copy, other in zip(loop.state_dict()["master"], sharded.state_dict()["master"], strict=True):
        assert torch.allclose(copy, other, atol=1e-6)
        assert bool((copy * 8 != (copy * 8).round()).any())
    model, sharded = begun(True, torch.bfloat16)
    computed: list[torch.dtype] = []
    model[0].register_forward_hook(lambda *seen: computed.append(seen[-1].dtype))  # type: ignore[operator]
    sharded.run([(x.bfloat16(), y) for x, y in batches])
    assert set(computed) == {torch.bfloat16}
    assert all(copy.dtype == torch.float32 for copy in sharded.state_dict()["master"])
    narrow = net().bfloat16()
    fully_shard(narrow)
    with pytest.raises(LowdimError, match="MixedPrecisionPolicy"):
        plain(narrow, projected={next(narrow.parameters()): lambda wide: wide})


def test_the_norm_of_a_step_is_known_to_whoever_asks_while_it_is_taken() -> None:
    def loop(clip: float | None, asks: bool) -> tuple[Loop, list[float]]:
        model = nn.Linear(2, 1, bias=False)
        nn.init.ones_(model.weight)
        optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), list[float]()
        made = Loop(model, optimizer, loss=lambda m, x: m(x).sum(), clip=clip)
        if asks:
            optimizer.register_step_pre_hook(lambda *_: seen.append(made.norm))
        made.run([torch.tensor([[3.0, 4.0]])])
        return made, seen

    for clip in (None, 1.0):
        made, seen = loop(clip, asks=True)
        assert seen == [pytest.approx(5.0)] and made.norm == pytest.approx(5.0)
    assert loop(1.0, asks=False)[0].norm == pytest.approx(5.0)
    assert math.isnan(loop(None, asks=False)[0].norm)
