"""2:4 training from scratch: tiles, MVUE, S-STE's function, decay, the dense end, exact resume."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from tests.ranks import finished
from tests.train.adapters.trainers import tune
from tests.train.gloo import joined
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowdim.core.errors import CheckpointError, LowdimError, NumericalError, PatternError, RecipeError
from lowdim.core.recipe.families import build
from lowdim.nn.blocks import linear_layers
from lowdim.train.adapters.huggingface import RiderCallback
from lowdim.train.loop import Loop
from lowdim.train.nm.base import FromScratch
from lowdim.train.nm.from_scratch import SparseFromScratch
from lowdim.train.nm.fst import FST
from lowdim.train.nm.mvue import inclusion, linear, sparsified
from lowdim.train.nm.s_ste import SSTE, shrunk
from lowdim.train.nm.sr_ste import SRSTE
from lowdim.train.nm.step import STEP
from lowdim.train.nm.transposable import tiles, transposable

STEPS = 12
RANKED = {"drawn": FST(every=2), "whole": FST(every=2, mvue=False)}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- tiles


def test_there_are_ninety_tiles_each_two_and_two() -> None:
    found = tiles()
    assert len(found) == len({tuple(tile.flatten().tolist()) for tile in found}) == 90
    assert (found.sum(1) == 2).all() and (found.sum(2) == 2).all()
    every = torch.tensor(list(product([0, 1], repeat=16))).view(-1, 4, 4)
    assert int(((every.sum(1) == 2).all(1) & (every.sum(2) == 2).all(1)).sum()) == 90


def test_the_search_is_enumeration() -> None:
    weight = torch.randn(24, 40, generator=draw())
    mask, greedy = transposable(weight), transposable(weight, greedy=True)
    for i, j in product(range(0, 24, 4), range(0, 40, 4)):
        tile = weight[i : i + 4, j : j + 4].abs()
        best = (tiles() * tile).sum((1, 2)).max()
        assert float(tile[mask[i : i + 4, j : j + 4]].sum()) == pytest.approx(float(best))
        assert float(tile[greedy[i : i + 4, j : j + 4]].sum()) <= float(best) + 1e-6
    for each in (mask, mask.T):
        assert (each.unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert (greedy.unflatten(1, (-1, 4)).sum(2) <= 2).all()
    assert (greedy.T.unflatten(1, (-1, 4)).sum(2) <= 2).all()
    assert not torch.equal(mask, greedy)


def test_the_tile_of_thirty_eight() -> None:
    tile = torch.tensor([[9.0, 1, 7, 4], [1, 2, 3, 0], [8, 3, 5, 4], [1, 2, 6, 2]])
    assert float(tile[transposable(tile)].sum()) == 38
    assert int((tile * transposable(tile, greedy=True) != 0).sum()) == 7
    assert float(tile[transposable(tile, greedy=True)].sum()) == 38
    same = torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(4, 4)
    assert float((same * transposable(same)).sum()) == 20
    assert torch.equal(transposable(same), tiles()[0])  # of equals the first


def test_what_has_no_tiles_is_refused() -> None:
    for shape in ((4, 6), (6, 4), (4,)):
        with pytest.raises(PatternError, match="whose sides 4 divides"):
            transposable(torch.ones(shape))
    with pytest.raises(NumericalError, match="training has diverged"):
        transposable(torch.full((4, 4), float("nan")))


# ---------------------------------------------------------------- MVUE


def test_inclusion_is_that_of_two_draws() -> None:
    assert torch.allclose(inclusion(torch.ones(4)), torch.full((4,), 0.5))
    found = inclusion(torch.tensor([4.0, -3.0, 2.0, -1.0]))
    assert torch.allclose(found, torch.tensor([0.7159, 0.6083, 0.4413, 0.2345]), atol=1e-4)
    assert float(found.sum()) == pytest.approx(2.0)
    kept = torch.tensor([4.0, 3.0, 2.0, 1.0]) / found
    assert torch.allclose(kept, torch.tensor([5.588, 4.932, 4.532, 4.264]), atol=1e-3)


def test_draws_are_right_on_average_and_two_of_four() -> None:
    values = torch.tensor([4.0, -3.0, 2.0, -1.0])
    many = sparsified(values[:, None].expand(4, 40_000), draw())
    assert ((many != 0).sum(0) == 2).all()
    assert torch.allclose((many != 0).float().mean(1), inclusion(values), atol=0.01)
    assert torch.allclose(many.mean(1), values, atol=0.05)
    assert sparsified(torch.zeros(4, 2), draw()).abs().sum() == 0
    odd = torch.tensor([4.0, -3.0, 2.0, -1.0, 5.0, 6.0])  # two more, alone in their four: both are kept as they are
    many = sparsified(odd[:, None].expand(6, 40_000), draw())
    assert torch.allclose(many.mean(1), odd, atol=0.05)
    assert torch.allclose(many[4:], odd[4:, None].expand(2, 40_000), atol=1e-3)


def test_the_gradient_of_the_weight_alone_is_drawn() -> None:
    x, weight, bias = torch.randn(2, 6, 8), torch.randn(4, 8), torch.randn(4)
    found = []
    for estimated in (False, True):
        each = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = linear(*each, draw) if estimated else nn.functional.linear(*each)  # type: ignore[arg-type]
        y.square().sum().backward()
        found.append([y.detach(), *(t.grad for t in each)])
    for place in (0, 1, 3):
        assert torch.allclose(found[0][place], found[1][place], atol=1e-5)
    assert not torch.allclose(found[0][2], found[1][2])
    mean = torch.zeros_like(weight)
    for seed in range(400):
        parameter = weight.clone().requires_grad_()
        linear(x, parameter, bias, lambda seed=seed: draw(seed)).square().sum().backward()
        mean += parameter.grad / 400
    assert (mean - found[0][2]).norm() < 0.1 * found[0][2].norm()
    few = weight.clone().requires_grad_()
    linear(x[:1, :1], few, bias, draw).sum().backward()  # a token alone
    assert torch.allclose(few.grad, torch.ones(4, 1) * x[0, 0], atol=1e-5)


# ---------------------------------------------------------------- S-STE


def test_the_function_of_s_ste() -> None:
    assert shrunk(torch.tensor([4.0, -3.0, 1.0, 0.5])).tolist() == [3.0, -2.0, 0.0, 0.0]
    assert float(SSTE().factor(torch.tensor([[4.0, -3.0, 1.0, 0.5]]))) == pytest.approx(18 / 13)
    both = torch.tensor([[4.0, -3.0, 1.0, 2.0, 1.0, 1.0, -2.0, 5.0]])
    assert shrunk(both).tolist() == [[2.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 4.0]]
    assert float(SSTE().factor(both)) == pytest.approx(1.5)
    a, b = (torch.randn(200, 4, generator=draw(seed)) for seed in range(2))
    assert ((shrunk(a) != 0).sum(1) <= 2).all()
    assert ((shrunk(a) - shrunk(b)).abs().amax(1) <= 2 * (a - b).abs().amax(1) + 1e-6).all()
    assert ((shrunk(torch.tensor([2.0, 2.0, 2.0, 1.0])) != 0).sum()) <= 1
    assert float(SSTE().factor(torch.zeros(1, 4))) == 0


# ---------------------------------------------------------------- training


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(self.up(x).relu()))  # type: ignore[no-any-return]


def data(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 8, generator=draw(step))
    return x, x[:, :4].argmax(1)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def made(rule: FromScratch, optimizer: Any = torch.optim.AdamW, lr: float = 0.01, **settings: Any) -> Loop:
    model = Net()
    inner = optimizer(model.parameters(), lr=lr)
    sparse = SparseFromScratch({"up": model.up, "down": model.down}, rule, inner, STEPS)
    return Loop(model, inner, loss=loss, projected=sparse.projections(), riders=[sparse], **settings)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("rule", [FST(every=2, tail=0.0), SRSTE(), SSTE()], ids=lambda rule: type(rule).__name__)
def test_the_model_computes_with_two_of_four(rule: FromScratch) -> None:
    loop = made(rule)
    before = loss(loop.model, data(0)).item()
    loop.run(map(data, range(STEPS)))
    for layer in (loop.model.up, loop.model.down):
        assert (layer.weight.detach().unflatten(1, (-1, 4)) != 0).sum(2).max() <= 2  # type: ignore[operator, union-attr]
        if isinstance(rule, FST):
            assert (layer.weight.detach().T.unflatten(1, (-1, 4)) != 0).sum(2).max() <= 2  # type: ignore[operator, union-attr]
        wide = loop.copy_of(layer.weight)  # type: ignore[arg-type, union-attr]
        assert int((wide != 0).sum()) == wide.numel()  # all weights train
    assert loss(loop.model, data(0)).item() < before
    history = loop.riders[0].history  # type: ignore[attr-defined]
    assert [choice["step"] for choice in history] == list(range(rule.every, STEPS + 1, rule.every))
    assert any(choice["flip_rate"] > 0 for choice in history)


def test_the_last_steps_are_dense() -> None:
    loop = made(FST(every=2, tail=0.5, decay=0.1))
    shares = []
    for step in range(STEPS):
        loop.run([data(step)])
        shares.append(float((loop.model.up.weight != 0).float().mean()))  # type: ignore[union-attr, operator]
    assert shares == [0.5] * (STEPS // 2 - 1) + [1.0] * (STEPS // 2 + 1)  # the sixth step leaves dense weights behind


def test_dense_from_the_first_step_is_dense_training() -> None:
    loop = made(FST(tail=1.0, decay=0.5), clip=1.0)
    loop.run(map(data, range(STEPS)))
    model = Net()
    Loop(model, torch.optim.AdamW(model.parameters(), lr=0.01), loss=loss, clip=1.0).run(map(data, range(STEPS)))
    assert torch.equal(weights(loop.model), weights(model))
    assert loop.riders[0].history == []  # type: ignore[attr-defined]


def test_masked_decay_goes_into_the_gradient_or_the_weight() -> None:
    class Half(SRSTE):
        def mask(self, weight: Tensor) -> Tensor:
            return torch.tensor([[True, False, True, False]])

    class HalfGradient(Half):
        decays = "gradient"

    for rule, optimizer, wanted in (
        (HalfGradient(decay=0.03), torch.optim.SGD, [1.0, 1.06, 1.0, 1.12]),
        (Half(decay=0.03), torch.optim.SGD, [1.0, 1.06, 1.0, 1.12]),
    ):
        layer = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        inner = optimizer(layer.parameters(), lr=0.1)
        sparse = SparseFromScratch({"layer": layer}, rule, inner, 10)
        loop = Loop(layer, inner, loss=lambda model, x: model(x).sum(), projected=sparse.projections(), riders=[sparse])
        loop.run([torch.ones(1, 4)])
        moved = (torch.tensor([[1.0, 2.0, 3.0, 4.0]]) - loop.copy_of(layer.weight)) / 0.1
        if rule.decays == "gradient":
            assert torch.allclose(moved, torch.tensor([wanted]), atol=1e-5)
        else:  # of the weight after the step
            assert torch.allclose(moved, torch.tensor([[1.0, 1 + 0.03 * 1.9, 1.0, 1 + 0.03 * 3.9]]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("fst", {key: value}) for key, value in {"every": 1, "decay": 0.5, "tail": 0.5}.items()),
        *(("fst", {key: value}) for key, value in {"mvue": False, "greedy": True}.items()),
        *(("sr-ste", {key: value}) for key, value in {"every": 5, "decay": 0.5, "tail": 0.5, "mvue": True}.items()),
        *(("s-ste", {key: value}) for key, value in {"decay": 0.5, "tail": 0.5, "mvue": False}.items()),
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_run(name: str, changes: dict[str, Any]) -> None:
    base = {"every": 3} if name == "fst" else {}
    ends = []
    for settings in ({}, changes):
        loop = made(build("from-scratch", {"name": name, **base, **settings}))
        loop.run(map(data, range(9)))
        ends.append(weights(loop.model))
    assert not torch.equal(*ends)


def test_the_factor_of_s_ste_stays_and_resumes() -> None:
    loop = made(SSTE())
    before = dict(loop.riders[0].state_dict()["factors"])
    loop.run(map(data, range(4)))
    assert loop.riders[0].state_dict()["factors"] == before
    assert float(before["up"]) == pytest.approx(float(SSTE().factor(Net().up.weight)))


@pytest.mark.parametrize("rule", [FST(every=3, tail=0.3), SRSTE(), SSTE()], ids=lambda rule: type(rule).__name__)
def test_a_run_goes_on_to_the_same_bytes(rule: FromScratch, tmp_path: Path) -> None:
    loop = made(rule, accumulate=2)
    batches = list(map(data, range(2 * STEPS)))
    loop.run(batches[:10])
    torch.save(loop.state_dict(), tmp_path / "state")
    loop.run(batches[10:])
    again = made(rule, accumulate=2)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    again.run(batches[10:])
    assert torch.equal(weights(loop.model), weights(again.model))
    assert loop.riders[0].history == again.riders[0].history  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="Construct everything as it was"):
        made(FST(every=4)).riders[0].load_state_dict(loop.riders[0].state_dict())


def test_evaluation_draws_nothing_and_removal_puts_layers_back() -> None:
    ends = []
    for look in (False, True):
        loop = made(FST(every=2))
        for step in range(4):
            if look:
                with torch.no_grad():
                    loop.model(data(99)[0][:3])  # no multiple of four either
            loop.run([data(step)])
        ends.append(weights(loop.model))
    assert torch.equal(*ends)
    loop.riders[0].remove()  # type: ignore[attr-defined]
    assert "forward" not in vars(loop.model.up)
    loop.model(data(99)[0][:3]).sum().backward()


def ranked(rank: int, size: int, home: str) -> None:
    """Train copies with and without MVUE on a part of every batch, and write what comes of it."""
    part, found = slice(rank * 12 // size, (rank + 1) * 12 // size), dict[str, Any]()
    with joined(rank, size, home):
        for name, rule in RANKED.items():
            copies = DistributedDataParallel(Net())
            inner = torch.optim.SGD(copies.parameters(), lr=0.1)
            layers = {"up": copies.module.up, "down": copies.module.down}
            sparse = SparseFromScratch(layers, rule, inner, STEPS)
            loop = Loop(copies, inner, loss=loss, projected=sparse.projections(), riders=[sparse])
            loop.run(tuple(side[part] for side in data(step)) for step in range(4))
            found[name] = [weights(copies).tolist(), sparse.history]
        shards = fully_shard(Net())
        try:
            SparseFromScratch({"up": shards.up}, FST(), torch.optim.SGD(shards.parameters()), STEPS)
        except ValueError as error:
            found["fsdp"] = str(error)
    (Path(home) / f"{rank}.json").write_text(json.dumps(found))


def test_ranks_choose_the_same_masks_and_train_as_one(tmp_path: Path) -> None:
    done = finished(3, tmp_path, ranked)
    found = [json.loads((done / f"{rank}.json").read_text()) for rank in range(3)]
    assert found[0] == found[1] == found[2]
    loop = made(RANKED["whole"], torch.optim.SGD, lr=0.1)
    loop.run(map(data, range(4)))
    assert torch.allclose(torch.tensor(found[0]["whole"][0]), weights(loop.model), atol=1e-5)
    assert found[0]["whole"][1] == loop.riders[0].history  # type: ignore[attr-defined]
    assert found[0]["drawn"] != found[0]["whole"]
    assert "linear layers of floats that are whole on a rank" in found[0]["fsdp"]


def test_what_cannot_be_sparse_is_refused() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    odd = nn.Linear(8, 6)
    inner = torch.optim.SGD(odd.parameters(), lr=0.1)
    with pytest.raises(PatternError, match="6 x 8: 4 must divide its inputs and its outputs"):
        SparseFromScratch({"odd": odd}, FST(), inner, 10)
    SparseFromScratch({"odd": odd}, SRSTE(), inner, 10)
    with pytest.raises(LowdimError, match="the optimizer must hold its weight"):
        SparseFromScratch({"odd": nn.Linear(8, 8)}, FST(), optimizer, 10)
    with pytest.raises(LowdimError, match="act is a ReLU"):
        SparseFromScratch({"act": nn.ReLU()}, FST(), optimizer, 10)
    with pytest.raises(LowdimError, match="there is no layer"):
        SparseFromScratch({}, FST(), optimizer, 10)


RULES = [
    FST(every=2, tail=0.5, decay=0.1),
    FST(every=2, tail=0.0),
    SRSTE(mvue=True),
    SSTE(pattern="3:8"),
    STEP(least=0.1, most=0.3, pattern="1:4"),
]


def test_the_trainer_of_transformers_resumes_and_leaves_zeros(tmp_path: Path) -> None:
    def callback() -> RiderCallback[SparseFromScratch]:
        return RiderCallback(
            lambda model, optimizer, **how: SparseFromScratch(model, SSTE(), optimizer, **how), "s-ste"
        )

    whole = tune(tmp_path / "a", ZOO["llama"](), callback())
    again = tune(tmp_path / "a", ZOO["llama"](), callback(), resume=str(tmp_path / "a" / "checkpoint-3"))
    assert torch.equal(weights(whole.model), weights(again.model))  # type: ignore[arg-type]
    for name, layer in linear_layers(whole.model).items():  # type: ignore[arg-type]
        kept = int((layer.weight.unflatten(1, (-1, 4)) != 0).sum(2).max())
        assert kept == (4 if "attn" in name else 2)
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("rule", [SRSTE, SSTE, STEP])
@pytest.mark.parametrize(("keep", "group"), [(1, 4), (3, 8), (1, 2)])
def test_any_n_of_m(rule: type[SRSTE], keep: int, group: int) -> None:
    weight = torch.randn(6, 16, generator=draw())
    wanted = (weight.abs().unflatten(1, (-1, group)).argsort(2).argsort(2) >= group - keep).flatten(1)
    made = rule(pattern=f"{keep}:{group}")
    assert torch.equal(made.mask(weight), wanted)
    shown = made.shown(weight, wanted, made.factor(weight))
    assert torch.equal(shown != 0, wanted)
    if rule is SSTE:  # beta makes up for what is lost along W: <W, W> of the shrunk weight is that of the weight
        assert float((weight * shown).sum()) == pytest.approx(float(shown.square().sum()))
    layer = nn.Linear(group + 1, 6)
    optimizer = torch.optim.AdamW(layer.parameters())
    with pytest.raises(PatternError, match=f"6 x {group + 1}: {group} must divide its inputs. Leave"):
        SparseFromScratch({"odd": layer}, made, optimizer, 10)


@pytest.mark.parametrize("pattern", ["4:4", "unstructured", "1x16"])
def test_a_pattern_that_is_no_n_of_m_is_refused(pattern: str) -> None:
    with pytest.raises(RecipeError, match=r"pattern must be N:M with N below M, such as 2:4 or 1:8; got"):
        SSTE(pattern=pattern)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_anybodys_loop_has_the_losses_of_ours(rule: FromScratch, tmp_path: Path) -> None:
    loop, ours = made(rule), list[float]()
    loop.run(map(data, range(STEPS)), lambda step, lost: ours.append(lost))

    def begun() -> tuple[Net, torch.optim.Optimizer, SparseFromScratch]:
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, SparseFromScratch({"up": model.up, "down": model.down}, rule, optimizer, STEPS)

    model, optimizer, sparse = begun()
    theirs = []
    for step in range(STEPS):
        if step == 5:
            torch.save([each.state_dict() for each in (model, optimizer, sparse)], tmp_path / "state")
            model, optimizer, sparse = begun()
            for each, held in zip((model, optimizer, sparse), torch.load(tmp_path / "state"), strict=True):
                each.load_state_dict(held)
        found = loss(model, data(step))
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(found.detach()))
    assert theirs == ours
    assert sparse.history == loop.riders[0].history  # type: ignore[attr-defined]
    assert torch.equal(model(data(99)[0]), loop.model(data(99)[0]))
    sparse.finish()
    assert torch.equal(weights(model), weights(loop.model)) and "forward" not in vars(model.up)


@pytest.mark.parametrize("copied", [copy.deepcopy, torch.optim.swa_utils.AveragedModel], ids=["deepcopy", "average"])
@pytest.mark.parametrize("rule", [FST(every=2), SSTE(), SRSTE(mvue=True)], ids=lambda rule: type(rule).__name__)
def test_a_copy_of_the_model_computes_with_its_own_weights(rule: FromScratch, copied: Any) -> None:
    loop, x = made(rule), data(0)[0]
    loop.run(map(data, range(3)))
    twin, said = copied(loop.model), loop.model(x).detach()
    loop.run(map(data, range(3, 6)))
    assert not torch.equal(loop.model(x), said)
    assert torch.equal(twin(x), said)


@pytest.mark.parametrize("rule", [FST(every=2, decay=0.5, tail=0.0), SRSTE(decay=0.5)], ids=["gradient", "weight"])
def test_what_is_pruned_decays_where_an_objective_is_climbed_too(rule: FromScratch) -> None:
    ends = []
    for sign, up in ((1.0, False), (-1.0, True)):
        model = Net()
        inner = torch.optim.SGD(model.parameters(), lr=0.01, maximize=up)
        sparse = SparseFromScratch({"up": model.up, "down": model.down}, rule, inner, STEPS)
        descent = Loop(
            model,
            inner,
            loss=lambda m, batch, sign=sign: sign * loss(m, batch),
            projected=sparse.projections(),
            riders=[sparse],
        )
        descent.run(map(data, range(STEPS)))
        ends.append(weights(model))
    assert torch.equal(*ends)
