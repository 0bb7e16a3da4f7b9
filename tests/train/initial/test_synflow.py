import pytest
import torch
from tests.train.initial.nets import Transformer, bare, conv_net
from torch import nn

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.train import SNIP, SynFlow
from lowdim.train.initial.base import budget


def scores_of(model, example, masks=None):
    method = SynFlow()
    return method.scores(method.start(model, example, include=["*"]), masks)


def plain(depth=6, width=50, bias=False):
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width, bias=bias), nn.ReLU())])


def test_worked_example():
    found = scores_of(bare([[1.0, -2.0], [3.0, 4.0]], [[5.0, -6.0]]), (1, 2))
    assert found["0.weight"].tolist() == [[5, 10], [18, 24]]
    assert found["2.weight"].tolist() == [[15, 42]]
    assert float(found["0.weight"].sum()) == float(found["2.weight"].sum()) == 57


def test_the_flow_is_conserved():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(8, 8, 3, groups=4, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 7, bias=False),
        nn.LeakyReLU(),
        nn.Linear(7, 3, bias=False),
    )
    sums = [float(score.sum()) for score in scores_of(net, (1, 3, 8, 8)).values()]
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-12)
    masks = SynFlow().masks(net, (1, 3, 8, 8), sparsity=0.9, include=["*"])
    sums = [float(score.sum()) for score in scores_of(net, (1, 3, 8, 8), masks).values()]
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-12)
    assert sums[0] > 0


def test_conserved_at_every_hidden_unit():
    net = plain(depth=3, width=6)
    found = scores_of(net, (1, 6))
    assert torch.allclose(found["0.weight"].sum(1), found["2.weight"].sum(0), rtol=1e-12)
    assert torch.allclose(found["2.weight"].sum(1), found["4.weight"].sum(0), rtol=1e-12)


def test_no_layer_is_emptied_where_snip_empties_some():
    net = nn.Sequential(*plain(bias=True), nn.Linear(50, 4))
    with pytest.warns(UserWarning, match="SNIP left no weight"):
        SNIP().masks(net, (torch.randn(32, 50), torch.randint(4, (32,))), sparsity=0.999)
    masks = SynFlow().masks(net, (1, 50), sparsity=0.999)
    assert all(bool(m.any()) for m in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == 15


def test_one_round_may_empty_what_a_hundred_do_not():
    wide = nn.Sequential(nn.Linear(300, 300, bias=False), nn.ReLU(), nn.Linear(300, 1, bias=False))
    with pytest.warns(UserWarning, match=r"SynFlow left no weight in 0\.weight"):
        SynFlow(rounds=1).masks(wide, (1, 300), sparsity=0.9999, include=["*"])
    SynFlow().masks(wide, (1, 300), sparsity=0.9999, include=["*"])


def test_what_the_example_holds_does_not_matter():
    net = conv_net()
    by_shape = SynFlow(rounds=5).masks(net, (1, 3, 8, 8), sparsity=0.8)
    by_input = SynFlow(rounds=5).masks(net, torch.randn(1, 3, 8, 8), sparsity=0.8)
    assert all(torch.equal(by_shape[name], by_input[name]) for name in by_shape)


def test_token_inputs_stay_what_they_are():
    masks = SynFlow(rounds=3).masks(Transformer(), torch.tensor([[1, 2, 3]]), sparsity=0.5, include=["layer.*"])
    assert sum(int(m.sum()) for m in masks.values()) == budget(masks, 0.5)


def test_flows_beyond_float64_are_scaled():
    net = plain(depth=250, width=16, bias=True)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(30.0)
    found = scores_of(net, (1, 16))
    assert all(bool(score.isfinite().all()) for score in found.values())
    assert float(found["0.weight"].sum()) > 0
    small = plain(depth=250, width=16, bias=True)
    same = scores_of(small, (1, 16))
    first = found["0.weight"] / found["0.weight"].sum()
    assert torch.allclose(first, same["0.weight"] / same["0.weight"].sum(), rtol=1e-9)


def test_a_scaled_flow_has_the_same_order(monkeypatch):
    net = conv_net()
    before = scores_of(net, (1, 3, 8, 8))
    monkeypatch.setattr("lowdim.train.initial.flow._SCALES", (1e-150,))
    after = scores_of(net, (1, 3, 8, 8))
    for name, score in before.items():
        assert torch.allclose(after[name] * 1e150 * 1e150, score, rtol=1e-9)


def test_a_flow_that_cannot_be_scaled():
    net = plain(depth=250, width=16)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3e4)
    with pytest.raises(NumericalError, match="overflows float64, whatever"):
        SynFlow().masks(net, (1, 16), sparsity=0.5)


@pytest.mark.parametrize("rounds", [0, 1.5])
def test_bad_rounds(rounds):
    with pytest.raises(RecipeError, match="rounds must be a whole number of at least 1"):
        SynFlow(rounds=rounds)


def test_bad_example():
    with pytest.raises(RecipeError, match=r"or its shape such as \(1, 3, 32, 32\); got 'x'"):
        SynFlow().masks(conv_net(), "x", sparsity=0.5)
