"""Networks that do different things with channels, with random weights and norm statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual block, with a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 12), Block(12, 12))
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Joined(nn.Module):
    """Concatenation, a depth-wise convolution, PReLU, a transposed convolution and a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, padding=1)
        self.depth = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.norm = nn.BatchNorm2d(10)
        self.act = nn.PReLU(10)
        self.c = nn.Conv2d(10, 8, 1)
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).sigmoid()
        x = self.act(self.norm(self.depth(torch.cat([a, self.b(a)], 1))))
        up = self.up(F.max_pool2d(self.c(x), 2).tanh()) + self.up(self.c(x)[..., :4, :4].tanh())
        return self.fc(up.amax((2, 3)))


class Attention(nn.Module):
    """A transformer block with a gated feed-forward part."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.norm = nn.LayerNorm(8)
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        y = self.norm(x)
        q, k, v = (part(y).view(split).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2)).softmax(-1)
        x = x + self.o((scores @ v).transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(self.up(x) * F.silu(self.gate(x)))
        return self.head(x + self.narrow(F.gelu(self.wide(x))))


def vgg() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12), nn.Sigmoid()),
        *(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 4)),
    )


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 4))


NETS = {"vgg": vgg, "resnet": ResNet, "mlp": mlp, "joined": Joined}


def net(kind: str, seed: int = 0) -> nn.Module:
    """Build a network for inputs [batch, 1, 8, 8] and 4 classes."""
    return randomised(NETS[kind], seed)


def randomised(make: type[nn.Module] | object, seed: int = 0) -> nn.Module:
    """Build a network with weights and norm statistics that are not the usual ones and zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()  # type: ignore[operator]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.data.uniform_(0.5, 1.5)
    return model


def images(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
