"""What holds for every way of choosing masks."""

import pytest
import torch
from tests.train.initial.nets import Transformer, comes_back, conv_net, images, tokens
from torch import nn

from lowdim.core import registry
from lowdim.core.errors import NumericalError, RecipeError
from lowdim.train import SparseTraining, Static, select
from lowdim.train.initial.base import Initialisation

# A threshold over all layers may empty one, which is said and has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*left no weight in:UserWarning")

METHODS = [
    registry.find("initialisation", name).load()
    for name in registry.names("initialisation")
    if name != "lottery-tickets"
]
NETS = {"conv": (conv_net, images), "transformer": (Transformer, tokens)}


def data_for(method, batch):
    return {"nothing": None, "example": batch[0][:1], "batches": [batch, batch]}[method.needs]


@pytest.fixture(params=METHODS, ids=lambda cls: cls.__name__)
def method(request):
    return request.param(rounds=5) if request.param.__name__ == "SynFlow" else request.param()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.87])
def test_exact_count_and_the_network_as_it_was(method, net, sparsity):
    make, batch = NETS[net]
    model = make()
    weights = select(model)
    with comes_back(model):
        masks = method.masks(model, data_for(method, batch()), sparsity=sparsity)
    assert list(masks) == list(weights)
    assert all(m.dtype == torch.bool and m.shape == weights[name].shape for name, m in masks.items())
    total = sum(w.numel() for w in weights.values())
    assert sum(int(m.sum()) for m in masks.values()) == round((1 - sparsity) * total)


@pytest.mark.parametrize("net", NETS)
def test_the_same_seed_gives_the_same_masks(method, net):
    make, batch = NETS[net]
    found = []
    for global_seed in (1, 2):
        model = make()
        torch.manual_seed(global_seed)
        found.append(method.masks(model, data_for(method, batch()), sparsity=0.8, seed=3))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_one_row_and_frozen_weights_and_layers_left_out(method):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 9), nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 4)
    )
    model[3].weight.requires_grad_(False)
    batch = torch.randn(8, 5), torch.randint(4, (8,))
    masks = method.masks(model, data_for(method, batch), sparsity=0.5, exclude=["4"])
    assert list(masks) == ["0.weight", "2.weight"]
    assert sum(int(m.sum()) for m in masks.values()) == 7


def test_masks_are_handed_to_a_training(method):
    model = conv_net()
    masks = method.masks(model, data_for(method, images()), sparsity=0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = SparseTraining(model, optimizer, method=Static(), masks=masks)
    for _ in range(2):
        x, y = images()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in select(model).items():
        assert torch.equal(training.masks[name], masks[name])
        assert not bool(weight[~masks[name]].any())


def test_bad_input(method):
    model = conv_net()
    data = data_for(method, images())
    for sparsity, words in [(1.0, "below 1"), (90, "did you mean 0.9"), (-0.5, "at least 0")]:
        with pytest.raises(RecipeError, match=words):
            method.masks(model, data, sparsity=sparsity)
    with pytest.raises(RecipeError, match=r"include 'nothing\*' matches no weight"):
        method.masks(model, data, sparsity=0.5, include=["nothing*"])
    if method.needs != "nothing":
        with pytest.raises(RecipeError, match=r"needs (batches|an example)"):
            method.masks(model, sparsity=0.5)


def test_a_compiled_network_has_the_masks_of_the_plain_one(method):
    plain = method.masks(conv_net(), data_for(method, images()), sparsity=0.7)
    compiled = torch.compile(conv_net(), backend="eager")
    found = method.masks(compiled, data_for(method, images()), sparsity=0.7)
    assert list(found) == list(plain)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_a_sharded_network_is_refused(method, monkeypatch):
    monkeypatch.setattr(nn.Parameter, "device_mesh", "a mesh", raising=False)
    with pytest.raises(RecipeError, match=r"0\.weight is sharded over ranks"):
        method.masks(conv_net(), data_for(method, images()), sparsity=0.7)


@pytest.mark.parametrize("method", [cls() for cls in METHODS if cls.needs == "batches"], indirect=False)
def test_errors_leave_no_trace(method):
    model = conv_net()
    x, y = images()

    def fails(outputs, targets):
        raise KeyError("in the loss")

    with comes_back(model), pytest.raises(KeyError):
        method.masks(model, (x, y), sparsity=0.5, loss=fails)
    with comes_back(model), pytest.raises(NumericalError, match=r"gradient of 0\.weight holds NaN"):
        method.masks(model, (x * torch.nan, y), sparsity=0.5)
    with pytest.raises(RecipeError, match=r"must be a pair .* got Tensor"):
        method.masks(model, [x], sparsity=0.5)
    with pytest.raises(RecipeError, match="at least one batch"):
        method.masks(model, [], sparsity=0.5)


def test_what_a_model_returns_and_takes():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x, shift):
            logits = self.b(torch.relu(self.a(x + shift)))
            return type("Out", (), {"logits": logits})()

    x, shift, y = torch.randn(5, 4), torch.randn(4), torch.tensor([0, 1, 2, 0, 1])
    snip = registry.find("initialisation", "snip").load()()
    pair = snip.masks(Named(), [((x, shift), y)], sparsity=0.5)
    mapping = snip.masks(Named(), {"x": x, "shift": shift, "labels": y}, sparsity=0.5)
    assert torch.equal(pair["a.weight"], mapping["a.weight"])
    synflow = registry.find("initialisation", "synflow").load()(rounds=2)
    one = synflow.masks(Named(), (x, shift), sparsity=0.5)
    assert torch.equal(one["a.weight"], synflow.masks(Named(), {"x": x, "shift": shift}, sparsity=0.5)["a.weight"])


def test_all_are_initialisations():
    assert all(issubclass(cls, Initialisation) for cls in METHODS)
    assert registry.find("initialisation", "imp").name == "lottery-tickets"
