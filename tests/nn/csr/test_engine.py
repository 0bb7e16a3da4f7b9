"""The engine over truly sparse layers makes the masks that it makes over masked dense ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam

from lowdim.nn.csr.linear import CSRLinear
from lowdim.train import SET, RigL, SparseTraining, sparse_
from lowdim.train.sparse.method import Method


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("method", [RigL(every=4, until=1.0), SET(every=3, drop=0.3)], ids=["rigl", "set"])
def test_both_executors_agree(method: Method, adam: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 5))
    masks = {f"{i}.weight": numbers(i, *dense[i].weight.shape) > 1 for i in (0, 2)}
    sparse = sparse_(copy.deepcopy(dense), masks)
    made = []
    for model, given in ((dense, masks), (sparse, None)):
        optimizer = Adam(model.parameters(), 0.01) if adam else SGD(model.parameters(), 0.05, momentum=0.9)
        made.append((model, optimizer, SparseTraining(model, optimizer, method=method, total_steps=20, masks=given)))
    x, labels = numbers(9, 32, 30), torch.randint(5, (32,), generator=torch.Generator().manual_seed(1))
    for model, optimizer, _ in made:
        for _ in range(20):
            optimizer.zero_grad()
            for part, wanted in zip(x.split(16), labels.split(16), strict=True):  # gradients of two passes add up
                functional.cross_entropy(model(part), wanted).backward()
            optimizer.step()
    theirs, ours = (training.masks for _, _, training in made)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
        assert not torch.equal(theirs[name], masks[name]), name
    for i in (0, 2):
        assert isinstance(sparse[i], CSRLinear)
        torch.testing.assert_close(sparse[i].dense(), dense[i].weight.detach(), rtol=1e-3, atol=1e-4)
