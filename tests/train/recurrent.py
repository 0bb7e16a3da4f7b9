"""A small LSTM, its training, and what each of its gates keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowdim.train import SparseTraining

X = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(3))


def lstm() -> nn.LSTM:
    net = nn.LSTM(8, 12, num_layers=2, batch_first=True)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
    return net


def train(net: nn.Module, method: Any, steps: int, **settings: Any) -> SparseTraining:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    training = SparseTraining(net, optimizer, method=method, total_steps=steps, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        net(X)[0].square().sum().backward()
        optimizer.step()
    return training


def per_gate(mask: Tensor, gates: int = 4) -> list[int]:
    return mask.reshape(gates, -1).sum(1).tolist()
