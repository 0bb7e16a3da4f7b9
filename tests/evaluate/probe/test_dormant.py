"""Dormant neurons: the card's example, modules and functions, channels, scores, nothing changed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.probe.dormant import Dormant


def neuron(*weights: float) -> nn.Module:
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data.copy_(torch.tensor([weights]))
    return nn.Sequential(layer, nn.ReLU())


def test_worked_example() -> None:
    x = torch.ones(1, 3)
    assert Dormant().measure(neuron(0.2, 0.3, -2.0), [x]).share == 1.0
    woken = neuron(0.2, 0.3, 0.0)
    assert woken(x).item() == pytest.approx(0.5)
    assert Dormant().measure(woken, [x]).share == 0.0


def test_a_neuron_that_speaks_once_is_awake() -> None:
    model = neuron(1.0, -1.0)
    quiet, loud = torch.tensor([[0.0, 1.0], [1.0, 2.0]]), torch.tensor([[2.0, 1.0]])
    assert Dormant().measure(model, [quiet]).share == 1.0
    assert Dormant().measure(model, [quiet, loud]).share == 0.0
    assert Dormant().measure(model, quiet).share == 1.0  # a tensor is one batch


class Block(nn.Module):
    """One activation module used twice, a function between, and a gate behind flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv1d(3, 2, 1)
        self.mix = nn.Linear(4, 6)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.norm(self.first(x)))
        h = F.relu(self.second(h.flatten(2)))
        return self.act(self.mix(h[:, :, :4]))


def silenced() -> Block:
    model = Block()
    for layer, dead in ((model.first, [1]), (model.second, []), (model.mix, [0, 4])):
        layer.weight.data.abs_()
        layer.bias.data.fill_(0.1)
        layer.weight.data[dead] = 0.0
        layer.bias.data[dead] = -1.0
    return model


def test_channels_features_modules_and_functions() -> None:
    found = Dormant().measure(silenced(), [torch.rand(2, 1, 4, 4)])
    assert {name: (layer.activation, layer.which.tolist()) for name, layer in found.layers.items()} == {
        "first": ("act", [False, True, False]),
        "second": ("relu", [False, False]),
        "mix": ("act", [True, False, False, False, True, False]),
    }
    assert found.share == pytest.approx(3 / 11)


def test_two_activations_behind_one_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.ReLU6())
    assert list(Dormant().measure(model, [torch.ones(1, 2)]).layers) == ["0", "0#2"]


def test_an_activation_before_any_layer_has_a_name_of_its_own_in_every_batch() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(3, 2), nn.PReLU(), nn.ReLU())
    found = Dormant().measure(model, [torch.tensor([[1.0, -1.0, -1.0]]), torch.tensor([[-1.0, 1.0, -1.0]])])
    assert list(found.layers) == ["0", "1"]
    assert found.layers["0"].which.tolist() == [False, False, True]


def test_a_single_example_without_a_batch() -> None:
    assert Dormant().measure(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), [torch.ones(3)]).layers["0"].neurons == 4


def test_scores_compare_with_the_mean_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU())
    model[0].weight.data.copy_(torch.tensor([[0.0], [0.1], [0.9], [3.0]]))  # mean 1
    x = [torch.ones(2, 1), 3 * torch.ones(5, 1)]
    for tau, count in ((0.0, 1), (0.05, 1), (0.2, 2), (0.95, 3)):
        assert Dormant(tau).measure(model, x).layers["0"].dormant == count


def test_smooth_activations_are_never_silent_but_may_be_quiet() -> None:
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.GELU())
    model[0].weight.data.copy_(torch.tensor([[-4.0], [2.0], [3.0]]))
    with pytest.raises(EvaluationError, match="ReLU kind"):
        Dormant().measure(model, [torch.ones(1, 1)])
    assert Dormant(0.1).measure(model, [torch.ones(1, 1)]).layers["0"].which.tolist() == [True, False, False]


def test_arguments_by_name_and_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.fc(a + b).relu()

    a, b = torch.randn(2, 1, 2)
    found = [Dormant().measure(Two(), [batch]).layers["fc"].activation for batch in ((a, b), {"a": a, "b": b})]
    assert found == ["relu", "relu"]


def test_nothing_of_the_model_changes() -> None:
    model = Block().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Dormant().measure(model, [torch.rand(2, 1, 4, 4)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.norm.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_gone_after_an_error() -> None:
    model = Block()
    with pytest.raises(RuntimeError):
        Dormant().measure(model, [torch.rand(2, 5, 4, 4)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_input() -> None:
    with pytest.raises(RecipeError, match="tau"):
        Dormant(1.0)
    with pytest.raises(EvaluationError, match="no batch"):
        Dormant().measure(neuron(1.0), [])
    with pytest.raises(NumericalError, match="'0'"):
        Dormant().measure(neuron(math.inf), [torch.ones(1, 1)])
