"""Sparse Cocktail: counts and turns by hand, unified masks, one set of weights, and networks that can be taken out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.tickets import build
from tests.models.zoo import ZOO
from torch import Tensor, nn

from lowdim.core.errors import CheckpointError, LowdimError, PatternError, RecipeError
from lowdim.core.masks import Masks
from lowdim.core.pattern.nm import NM
from lowdim.core.random import generator
from lowdim.models.load import load
from lowdim.models.subnets import Subnets, extract
from lowdim.train.tickets.cocktail import SparseCocktail
from lowdim.train.tickets.pivot import Pivot, Shown, classified, continued
from lowdim.train.tickets.unified import Unified, Unifier, chosen, grouped

X = torch.randn(48, 1, 8, 8, generator=generator(0, "x"))
Y = (X.mean((1, 2, 3)) > 0).long() + (X[:, 0, 0, 0] > 0).long()


class Small(nn.Module):
    """A convolution that stays dense, one that becomes sparse, a linear layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.middle = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        x = self.norm2(self.second(x)).relu().mean((2, 3))
        made: Tensor = self.head(self.middle(x).relu())
        return made


def made(seed: int = 0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(X), generator=generator(epoch, "order"))
    return [(X[part], Y[part]) for part in order.split(12)]


def accuracy(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).double().mean())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def run(model: nn.Module, **settings: Any) -> Subnets:
    given: dict[str, Any] = {"stages": 3, "groups": ("2:4",), "coefficients": (0.3, 0.7)}
    own = {key: settings.pop(key) for key in list(settings) if key in SparseCocktail.__dataclass_fields__}
    arguments: dict[str, Any] = {"epochs": 2, "rewind": 1, "answer": classified, "validate": accuracy}
    arguments |= {"refresh": [(X, Y)], **settings}
    return SparseCocktail(**(given | own)).train(model, batches, sgd, **arguments)


# ---------------------------------------------------------------- the card


def test_24_networks_with_the_sparsities_of_the_paper() -> None:
    settings = SparseCocktail()
    assert [settings.zeros(k) for k in (1, 2, 10)] == pytest.approx([1 - 0.8, 1 - 0.64, 1 - 0.8**10])
    drawn = settings.drawn_at()
    assert {stage: str(pattern) for stage, pattern in drawn.items()} == {2: "1:2", 5: "2:4", 8: "4:8"}
    patterns = [next((p for s, p in reversed(drawn.items()) if s <= k), None) for k in range(1, 11)]
    ones = {"w": torch.ones(1)}
    stages = {k: Unified(k, ones, ones, ones if p else None, p) for k, p in enumerate(patterns, 1)}
    names = settings.names(stages)
    assert len(names) + 1 == 24  # and the dense one
    assert {"element-20", "element-89", "channel-10", "channel-65", "1:2", "2:4", "4:8"} <= names.keys()


def test_every_other_step_is_dense_and_the_patterns_take_turns() -> None:
    pivot = Pivot({"element": {}, "channel": {}, "groups": {}}, 0.5, classified)
    turns = [pivot.turn(step) for step in range(12)]
    assert turns[::2] == ["dense"] * 6 and turns[1::2] == ["element", "channel", "groups"] * 2
    assert {Pivot({}, 0.5, classified).turn(step) for step in range(4)} == {"dense"}


def test_without_sparse_steps_it_is_dense_training() -> None:
    one, other, optimizer = made(), made(), None
    optimizer, pivot = sgd(other), Pivot({}, 0.5, classified)
    alone = sgd(one)
    for batch in batches(0):
        for model, held, loss in ((one, alone, pivot(one, batch)), (other, optimizer, None)):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1]) if loss is None else loss
            held.zero_grad()
            loss.backward()
            held.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_loss_of_a_sparse_step_has_the_gradient_of_the_paper() -> None:
    one, other = made(), made()
    mask = {"second.weight": torch.rand(8, 8, 3, 3, generator=generator(1, "m")) > 0.5}
    pivot, batch = Pivot({"element": mask}, 0.3, classified), batches(0)[0]
    pivot.step = 1
    pivot(one, batch).backward()
    with torch.no_grad():
        dense = other(batch[0]).softmax(1)
        other.second.weight *= mask["second.weight"]
    logits = other(batch[0])
    loss = 0.7 * nn.functional.cross_entropy(logits, batch[1]) + 0.3 * nn.functional.cross_entropy(logits, dense)
    loss.backward()
    assert torch.allclose(one.first.weight.grad, other.first.weight.grad, atol=1e-6)
    wanted = other.second.weight.grad * mask["second.weight"]
    assert torch.allclose(one.second.weight.grad, wanted, atol=1e-6)
    assert not one.second.weight.grad[~mask["second.weight"]].any()


def test_masks_are_exact_nested_and_channels_fill_what_the_others_left() -> None:
    model = made()
    unifier = Unifier(chosen(model, (NM(2, 4),)), 0.2, 0.1, 0.8)
    total = 8 * 8 * 9 + 16 * 8
    masks, seen = unifier.start(), []
    for stage, pattern in enumerate((None, NM(2, 4), None), start=1):
        masks = unifier.draw(masks, pattern)
        seen.append(masks)
        assert sum(int(m.sum()) for m in masks.element.values()) == round(total * 0.8**stage)
        for name, channel in masks.channel.items():
            rows = channel.flatten(1)
            assert bool((rows.all(1) | ~rows.any(1)).all())
            assert int(rows[:, 0].sum()) == round(len(rows) * 0.9**stage), name
    for before, after in pairwise(seen):
        assert all(not (after.element[name] & ~before.element[name]).any() for name in before.element)
    assert seen[0].groups is None and seen[1].groups is seen[2].groups
    weight = seen[1].groups["second.weight"].movedim(1, -1).reshape(-1, 4)
    assert bool((weight.sum(1) == 2).all())


def test_a_channel_is_scored_by_what_the_other_masks_keep_of_it() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0], [2.0, 2.0]])
    unifier = Unifier(chosen(layer, (NM(1, 2),), include=["*"]), 0.25, 0.5, 0.8)
    made_ = unifier.draw(unifier.start(), NM(1, 2))
    assert made_.element["weight"].tolist() == [[True, False], [True, True]]
    assert made_.groups["weight"].tolist() == [[True, False], [True, False]]
    # 0.8 * 3 + 0.2 * 3 = 3 against 0.8 * 4 + 0.2 * 2 = 3.6
    assert made_.channel["weight"].tolist() == [[False, False], [True, True]]


def test_groups_span_inputs_whichever_axis_they_are() -> None:
    model = ZOO["gpt2"]()
    weight = next(w for w in chosen(model, (NM(2, 4),)) if w.inputs_first)
    kept = grouped(weight, NM(2, 4))
    assert bool((kept.t().reshape(-1, 4).sum(1) == 2).all())


# ---------------------------------------------------------------- a run


def test_one_set_of_weights_holds_all_networks(tmp_path: Path) -> None:
    model, losses = made(), list[tuple[int, int, float]]()
    found = run(model, told=lambda *said: losses.append(said))
    assert [said[:2] for said in losses] == [(stage, epoch) for stage in range(4) for epoch in range(2)]
    assert list(found.nets) == [
        *("dense", "element-20", "channel-10", "element-36", "channel-19", "2:4", "element-49", "channel-27"),
    ]
    assert model.state_dict().keys() == found.state.keys()
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in model.state_dict().items())
    statistics = {name: net.buffers["norm2.running_mean"] for name, net in found.nets.items()}
    assert not torch.equal(statistics["dense"], statistics["2:4"])
    for name, net in found.nets.items():
        found.apply_(model, name)
        assert accuracy(model.eval()) == pytest.approx(net.score)
        assert set(net.masks) <= {"second.weight", "middle.weight"}
        assert torch.equal(model.first.weight, found.state["first.weight"])
        net.masks.check(model) if len(net.masks) else None
    out = found.save(tmp_path / "nets", model)
    again = Subnets.load(out)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in found.state.items())
    assert {name: net.masks for name, net in again.nets.items()} == {n: net.masks for n, net in found.nets.items()}
    alone = load_state(extract(out, "2:4", tmp_path / "alone"))
    found.apply_(model, "2:4")
    assert all(torch.equal(alone[name], tensor) for name, tensor in model.state_dict().items())
    assert [file.name for file in (tmp_path / "alone").iterdir()] == ["model.safetensors"]


def load_state(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_coefficient_one_leaves_the_weights_of_the_first_stage() -> None:
    """The networks of later stages are then masks of theta_1."""
    kept: list[Tensor] = []

    def watched(stage: int, epoch: int, loss: float) -> None:
        if (stage, epoch) == (1, 1):
            kept.append(model.middle.weight.detach().clone())

    model = made()
    found = run(model, coefficients=(1.0,), told=watched)
    assert torch.equal(found.state["middle.weight"], kept[0])


def test_it_is_the_same_every_time_and_rewinds() -> None:
    begun: list[Tensor] = []

    def answer(network: Any, batch: Any) -> tuple[Tensor, Tensor]:
        begun.append(model.middle.weight.detach().clone())
        return classified(network, batch)

    model = made()
    one, other = run(model, answer=answer), run(made())
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    rewound = begun[4]  # after four batches of the first epoch
    assert any(torch.equal(rewound, each) for each in begun[9:])


def test_no_channels_and_no_groups() -> None:
    found = run(made(), channel=0.0, groups=())
    assert list(found.nets) == ["dense", "element-20", "element-36", "element-49"]


def test_a_small_decoder(tmp_path: Path) -> None:
    model = ZOO["llama"]()
    ids = torch.randint(0, 96, (8, 10), generator=generator(0, "ids"))

    def loss(network: nn.Module) -> float:
        logits, labels = continued(network, ids)
        return -float(nn.functional.cross_entropy(logits, labels))

    found = SparseCocktail(stages=2, groups=("2:4",), coefficients=(0.5,)).train(
        model, lambda epoch: ids.split(2), sgd, epochs=2, rewind=1, answer=continued, validate=loss
    )
    assert list(found.nets) == ["dense", "element-20", "channel-10", "element-36", "channel-19", "2:4"]
    assert not any(net.buffers for net in found.nets.values())
    out = found.save(tmp_path / "nets", model)
    assert torch.equal(load(out)(ids).logits, model.eval()(ids).logits)  # stock, and dense
    for name in ("2:4", "channel-19"):
        alone = load(extract(out, name, tmp_path / name.replace(":", "-")))
        assert Masks.of(alone) == Masks.from_dict({key: found[name].masks[key] for key in found[name].masks})
        found.apply_(model, name)
        assert torch.equal(alone(ids).logits, model(ids).logits)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stages": 3}, "groups names 3 patterns, and with stages=3 there are 2 stages"),
        ({"groups": ("16x16",)}, "groups takes N:M patterns such as 2:4; got '16x16'"),
        ({"groups": ("4:2",)}, "did you mean 2:4"),
        ({"groups": ("2:4", "2:4")}, "names a pattern twice"),
        ({"element": 0.0}, "element must be above 0"),
        ({"channel": 1.0}, "channel must be"),
        ({"refill": 1.5}, "refill must be between 0 and 1"),
        ({"coefficients": ()}, "coefficients must be one or more numbers"),
        ({"coefficients": (1.5,)}, "coefficients must be one or more numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        SparseCocktail(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"rewind": 3}, RecipeError, "rewind must be"),
        ({"epochs": 0}, RecipeError, "epochs must be a whole number of at least 1"),
        ({"refresh": None}, LowdimError, "give refresh"),
        ({"refresh": []}, LowdimError, "give refresh"),
        ({"groups": ("1:3",)}, PatternError, "second.weight has 8 inputs"),
        ({"include": ["nowhere"]}, RecipeError, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    model = made()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=said):
        run(model, **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batches_that_are_used_up_are_told() -> None:
    once = iter(batches(0))
    settings = SparseCocktail(stages=1, groups=())
    with pytest.raises(LowdimError, match=r"batches\(1\) gave no batch"):
        settings.train(
            made(), lambda _: once, sgd, epochs=2, rewind=1, answer=classified, validate=accuracy, refresh=[(X, Y)]
        )


def test_experts_in_one_tensor_are_refused() -> None:
    model = ZOO["mixtral"]()
    if not any(p.ndim == 3 for p in model.parameters()):
        pytest.skip("experts are modules of their own here")
    with pytest.raises(RecipeError, match="a matrix per expert"):
        chosen(model, ())


def test_names_and_directories_that_are_not_there(tmp_path: Path) -> None:
    model = made()
    found = run(model, stages=1, groups=())
    out = found.save(tmp_path / "nets", model)
    with pytest.raises(LowdimError, match=r"no subnet is named 'element-21'\. Did you mean 'element-20'"):
        found["element-21"]
    with pytest.raises(CheckpointError, match=r"is named 'element-21'\. Did you mean 'element-20'"):
        extract(out, "element-21", tmp_path / "alone")
    extract(out, "element-20", tmp_path / "alone")
    with pytest.raises(CheckpointError, match="it is one network"):
        extract(tmp_path / "alone", "element-20", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "nets"]


def test_the_masked_network_is_the_one_with_masked_weights() -> None:
    model = build("mlp")
    name, weight = next((n, p) for n, p in model.named_parameters() if p.ndim == 2)
    mask = torch.rand(weight.shape, generator=generator(0, "shown")) > 0.5
    x = torch.randn(4, weight.shape[1], generator=generator(0, "input"))
    shown = Shown(model, {name: mask})(x)
    assert not torch.equal(shown, model(x))
    with torch.no_grad():
        weight *= mask
    assert torch.equal(shown, model(x))
