import pytest
import torch
from tests.train.initial.nets import conv_net, images
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.train import SNIP, RandomMasks, ratios_of, reinitialise_, shuffled

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
