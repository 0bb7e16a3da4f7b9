import pytest
import torch
from tests.train.initial.nets import bare

from lowdim.core.errors import RecipeError
from lowdim.train import Magnitude


def test_scopes():
    net = bare([[1.0, -5.0], [0.5, 6.0]], [[0.1, -5.5]])
    found = Magnitude().masks(net, sparsity=0.5, include=["*"])
    assert found["0.weight"].tolist() == [[False, True], [False, True]]
    assert found["2.weight"].tolist() == [[False, True]]
    layer = Magnitude("layer").masks(net, sparsity=2 / 3, include=["*"])
    assert layer["0.weight"].tolist() == [[False, False], [False, True]]
    assert layer["2.weight"].tolist() == [[False, True]]


def test_global_scope_warns_of_an_empty_layer():
    net = bare([[1.0, -5.0], [0.5, 6.0]], [[0.1, -0.4]])
    with pytest.warns(UserWarning, match=r"left no weight in 2\.weight") as caught:
        Magnitude().masks(net, sparsity=0.5, include=["*"])
    assert caught[0].filename == __file__


def test_ties_go_to_the_first():
    net = bare([[1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0]])
    with pytest.warns(UserWarning, match="left no weight"):
        found = Magnitude().masks(net, sparsity=0.5, include=["*"])
    assert torch.cat([m.flatten() for m in found.values()]).tolist() == [True] * 3 + [False] * 3


def test_unknown_scope():
    with pytest.raises(RecipeError, match=r"unknown scope 'layers'\. Did you mean 'layer'"):
        Magnitude("layers").masks(bare([[1.0]]), sparsity=0.5)
