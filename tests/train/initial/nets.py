"""Small networks of every kind that masks are chosen for, and a check that they come back as they were."""

from contextlib import contextmanager

import torch
from torch import nn


class Block(nn.Module):
    """A residual block with batch norm, grouped and depthwise convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.n = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.m = nn.GroupNorm(2, channels)

    def forward(self, x):
        return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8),
        nn.AvgPool2d(2),
        nn.ConvTranspose2d(8, 12, 3),
        Block(12),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


class Transformer(nn.Module):
    """Embedding, attention, a recurrent layer, and two linear layers that share one weight."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
        self.recurrent = nn.LSTM(8, 6, batch_first=True)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.recurrent(self.layer(self.embed(x)))[0][:, -1]
        return self.head(self.two(torch.relu(self.one(x))))


def bare(*matrices):
    """A bias-free ReLU network with the given weights."""
    layers = []
    for matrix in matrices:
        weight = torch.tensor(matrix, dtype=torch.float32)
        layers += [nn.Linear(weight.shape[1], weight.shape[0], bias=False), nn.ReLU()]
        layers[-2].weight = nn.Parameter(weight)
    return nn.Sequential(*layers[:-1])


def images(count=6):
    source = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 8, 8, generator=source), torch.randint(4, (count,), generator=source)


def tokens(count=6):
    source = torch.Generator().manual_seed(0)
    return torch.randint(11, (count, 5), generator=source), torch.randint(4, (count,), generator=source)


@contextmanager
def comes_back(model):
    """Check that parameters, gradients, buffers, modes and the global random state are what they were."""
    first = next(model.parameters())
    first.grad = torch.full_like(first, 7.0)
    next(model.children()).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    identity = [(id(p), p.requires_grad, p.grad is first.grad) for p in model.parameters()]
    storage = [t.data_ptr() for t in (*model.parameters(), *model.buffers())]
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    try:
        yield
    finally:
        after = model.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(after[name], value) for name, value in state.items())
        assert [(id(p), p.requires_grad, p.grad is first.grad) for p in model.parameters()] == identity
        assert [t.data_ptr() for t in (*model.parameters(), *model.buffers())] == storage
        assert bool((first.grad == 7.0).all())
        assert all(p.grad is None for p in model.parameters() if p is not first)
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)
