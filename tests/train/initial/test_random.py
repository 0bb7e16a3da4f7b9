import pytest
import torch
from tests.train.initial.nets import conv_net, images
from torch import nn
from torch.optim import SGD

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.models.structure.selection import ends
from lowdim.train import SNIP, RandomMasks, SparseTraining, Static, ratios_of, reinitialise_, shuffled

SHAPES = {"a": (60, 40), "b": (30, 10, 3, 3), "empty": (0, 4)}


def test_positions_are_uniform_and_depend_on_the_name_alone():
    masks = RandomMasks("uniform").draw(SHAPES, 0.7)
    assert int(masks["a"].sum()) == 720
    assert masks["empty"].shape == (0, 4)
    alone = RandomMasks("uniform").draw({"a": (60, 40)}, 0.7)
    assert torch.equal(masks["a"], alone["a"])
    other = RandomMasks("uniform").draw(SHAPES, 0.7, seed=1)
    overlap = int((masks["a"] & other["a"]).sum()) / 720
    assert 0.24 < overlap < 0.36  # two seeds share the density, 0.3


def test_every_position_is_as_likely_as_another():
    seen = sum(RandomMasks().draw({"a": (4, 5)}, 0.75, seed=s)["a"].int() for s in range(400))
    assert 70 <= int(seen.min()) <= int(seen.max()) <= 135  # 100 expected, within four deviations


def test_ratios_are_kept_and_positions_are_not():
    model = conv_net()
    scored = SNIP().masks(model, images(), sparsity=0.8)
    drawn = RandomMasks(ratios_of(scored)).masks(model, sparsity=0.8)
    mixed = shuffled(scored)
    for name, mask in scored.items():
        assert int(drawn[name].sum()) == int(mask.sum()) == int(mixed[name].sum())
    assert any(not torch.equal(mixed[name], scored[name]) for name in scored)
    assert all(torch.equal(mixed[name], shuffled(scored)[name]) for name in scored)


def test_reinitialise():
    model = conv_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    reinitialise_(model, seed=1)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    reinitialise_(model, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(once[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(once["0.weight"], before["0.weight"])

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(RecipeError, match=r"1 \(Own\) has no reset_parameters"):
        reinitialise_(nn.Sequential(nn.Linear(2, 2), Own()))


def late_head() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 64, 3),
        nn.Conv2d(64, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class EarlyHead(nn.Module):
    """A network whose classifier is not the last weight: convolutions are defined after it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 5)
        self.blocks = nn.ModuleList([nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)])


TAKING = [n for n in registry.names("allocation") if registry.find("allocation", n).load().takes_classifier]
"""Allocations that count the classifier."""


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 8))


@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize(
    ("net", "head", "last"),
    [
        (late_head(), "5.weight", "2.weight"),
        (EarlyHead(), "head.weight", "blocks.1.weight"),
        (mlp(), "4.weight", "2.weight"),
    ],
    ids=("conv", "first", "mlp"),
)
def test_an_allocation_that_counts_the_classifier_means_that_of_the_network(name, net, head, last):
    sparsity = 0.3 if name != "uniform-plus" or head == "4.weight" else 0.85
    masks = RandomMasks(name).masks(net, sparsity=sparsity)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(sparsity * total)
    training = SparseTraining(net, SGD(net.parameters()), sparsity=sparsity, allocation=name, method=Static())
    assert {layer.name: layer.kept for layer in training.layers} == {n: int(mask.sum()) for n, mask in masks.items()}
    training.remove()
    first = ends(net)[0]
    dense = head if name != "uniform-plus" else first if first != head else ""
    assert not dense or bool(masks[dense].all())
    assert 0 < int(masks[last].sum()) < masks[last].numel()
    if dense != head:
        share = 0.2 if sparsity > 0.8 else float(masks[last].float().mean())
        assert float(masks[head].float().mean()) == pytest.approx(share, abs=0.01)
    with pytest.raises(RecipeError, match=f"classifier, {head}, a density of its own, and exclude leaves it out"):
        RandomMasks(name).masks(net, sparsity=sparsity, exclude=[head])


def test_others_leave_the_classifier_out():
    assert {"er-plus", "erk-plus", "uniform-plus"} <= set(TAKING)
    for name in ("uniform", "er", "erk", "alpha", "global"):
        net = late_head()
        training = SparseTraining(net, SGD(net.parameters()), sparsity=0.5, allocation=name, method=Static())
        assert [layer.name for layer in training.layers] == ["0.weight", "1.weight", "2.weight"]


@pytest.mark.parametrize(
    ("net", "head", "last"),
    [(late_head(), "5.weight", "2.weight"), (EarlyHead(), "head.weight", "blocks.1.weight")],
    ids=("last", "first"),
)
def test_erk_plus_spares_the_classifier_of_the_network_and_counts_it(net, head, last):
    masks = RandomMasks("erk-plus").masks(net, sparsity=0.3)
    assert bool(masks[head].all())
    assert 0 < int(masks[last].sum()) < masks[last].numel()
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.3 * total)
    some = RandomMasks("erk-plus").masks(net, sparsity=0.3, include=[last])
    assert list(some) == [name for name in masks if name in (head, last)]
    with pytest.raises(RecipeError, match=f"classifier, {head}, a density of its own, and exclude leaves it out"):
        RandomMasks("erk-plus").masks(net, sparsity=0.3, exclude=[head])


def test_a_classifier_that_is_not_clear_is_not_guessed():
    blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
    with pytest.raises(RecipeError, match=r"not clear: blocks\.1\.weight is the last, inside of an nn\.ModuleList"):
        RandomMasks("erk-plus").masks(nn.ModuleDict({"first": nn.Linear(16, 5), "blocks": blocks}), sparsity=0.3)


def test_uniform_plus_spares_the_first_layer_of_the_network_alone():
    masks = RandomMasks("uniform-plus").masks(late_head(), sparsity=0.9)
    assert bool(masks["0.weight"].all())
    assert int(masks["5.weight"].sum()) == 32  # a fifth of 160
    rest = 14200 - 216 - 160
    assert int(masks["2.weight"].sum()) == pytest.approx(9216 * (1420 - 216 - 32) / rest, abs=1)
    others = RandomMasks("uniform-plus").masks(late_head(), sparsity=0.7, exclude=["0.weight"])
    assert [round(float(mask.float().mean()), 1) for mask in others.values()] == [0.3, 0.3, 0.3]
