"""Allocations that are measured on the network that is to be trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowdim.core.allocation import OWL, Allocation, AlphaPruning
from lowdim.core.errors import RecipeError
from lowdim.train import SparseTraining, Static
from lowdim.train.sparse.measured import measured


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 3)
    )
    with torch.no_grad():
        made[2].weight[:, :4] *= 12
    return made


@pytest.mark.parametrize("allocation", [OWL(m=2), AlphaPruning()], ids=str)
def test_the_shares_differ_and_their_mean_is_exact(allocation: Allocation) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measured(allocation, model, (torch.randn(50, 20), torch.zeros(50)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = SparseTraining(model, optimizer, sparsity=0.7, allocation=found, method=Static()).masks
    shares = [1 - float(mask.float().mean()) for mask in masks.values()]
    assert max(shares) - min(shares) > 0.05
    numel = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * numel)


def test_inputs_must_have_been_seen() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match="looks at the inputs of every layer"):
        SparseTraining(model, optimizer, sparsity=0.7, allocation=OWL(), method=Static())
