"""Effective paths: the card's example, products of matrices, counting by hand through branches and pooling."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.probe.paths import EffectivePaths

probe = EffectivePaths()


def random_masks(model: nn.Module, density: float, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=generator) < density
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


def mlp(*widths: int) -> nn.Sequential:
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.GELU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers)


def test_worked_example() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    masks = {"0.weight": torch.ones(2, 2).bool(), "2.weight": torch.tensor([[True, False]])}
    found = probe.measure(model, masks, torch.zeros(1, 2))
    assert (found.paths, found.log10) == (2.0, pytest.approx(math.log10(2)))
    hidden, output = found.layers.values()
    assert hidden.outputs == (1, 2)
    assert hidden.inputs == (2, 2)
    assert (hidden.weights, hidden.kept, hidden.effective) == (4, 4, 2)
    assert (output.inputs, output.outputs, output.effective) == ((1, 2), (1, 1), 1)
    assert found.ineffective == 2
    assert found.nodes == 2 + 1 + 1


def test_a_chain_is_the_product_of_its_masks() -> None:
    model = mlp(7, 9, 8, 5)
    masks = random_masks(model, 0.4)
    a, b, c = (mask.double() for mask in masks.values())
    found = probe.measure(model, masks, torch.zeros(1, 7))
    assert found.paths == float((c @ b @ a).sum())
    # a weight is effective where paths reach it from below and leave it above
    below = [torch.ones(7).double(), a.sum(1), b @ a.sum(1)]
    above = [c.sum(0) @ b, c.sum(0), torch.ones(5).double()]
    for layer, mask, x, y in zip(found.layers.values(), masks.values(), below, above, strict=True):
        on = mask & (y[:, None] > 0) & (x[None, :] > 0)
        assert layer.effective == int(on.sum())
        assert layer.inputs == (int(on.any(0).sum()), mask.shape[1])
        assert layer.outputs == (int(on.any(1).sum()), mask.shape[0])


class Branches(nn.Module):
    """A residual network with whatever stands between layers in practice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.a = nn.Conv2d(4, 4, 1, bias=False)
        self.b = nn.Conv2d(4, 4, 1, groups=2)
        self.scale = nn.Parameter(torch.tensor([0.0, -2.0]))
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu_(self.norm(self.stem(x)))
        h = h + 0.1 * self.b(torch.tanh(self.a(h)))
        h += 3.0
        h = F.group_norm(h, 2).mean((2, 3)) * self.scale.repeat(2)
        return F.log_softmax(self.head(h), dim=-1)


def test_branches_by_hand() -> None:
    model = Branches()
    masks = {
        "stem.weight": torch.zeros(4, 2, 3, 3).bool(),
        "a.weight": torch.eye(4).bool()[:, :, None, None],
        "b.weight": torch.tensor([[1, 1], [0, 0], [0, 0], [0, 1]]).bool()[:, :, None, None],
        "head.weight": torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool(),
        "unused.weight": torch.ones(2, 2).bool(),
    }
    masks["stem.weight"][:3, 0, 1, 1] = True  # channels 0, 1, 2 read channel 0 in place
    found = probe.measure(model, masks, torch.zeros(1, 2, 5, 5))
    # after the stem (1, 1, 1, 0) at 25 places; b adds (2, 0, 0, 0); so (3, 1, 1, 0), and the head reads 3 + 1 + 1
    assert found.paths == 25 * 5
    assert found.layers["stem.weight"].outputs == (2, 4)
    assert found.layers["stem.weight"].inputs == (1, 2)
    assert found.layers["a.weight"].effective == 2
    assert found.layers["b.weight"].effective == 2
    assert found.layers["b.weight"].inputs == (2, 4)
    assert found.layers["b.weight"].outputs == (1, 4)
    assert found.layers["head.weight"].effective == 3
    assert found.layers["unused.weight"].effective == 0


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(2), (1, 1, 6, 4)),
        (nn.AvgPool2d(3, stride=1, padding=1), (1, 1, 6, 4)),
        (nn.MaxPool1d(2, 1), (1, 1, 5)),
        (nn.AvgPool1d(2), (1, 1, 6)),
        (nn.AvgPool3d(2), (1, 1, 4, 2, 2)),
        (nn.AdaptiveAvgPool2d((2, 3)), (1, 1, 5, 7)),
        (nn.AdaptiveMaxPool1d(3), (1, 1, 7)),
    ],
    ids=str,
)
def test_pooling_sums_the_places_it_reads(pool: nn.Module, shape: tuple[int, ...]) -> None:
    dims = len(shape) - 2
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](1, 1, 1)
    masks = {"0.weight": torch.ones(1, 1, *[1] * dims).bool()}
    found = probe.measure(nn.Sequential(conv, pool), masks, torch.zeros(shape))
    x = torch.ones(shape)
    if hasattr(pool, "output_size"):
        windows = sum_of_bins(shape[2:], pool(x).shape[2:])
    else:
        kernel = torch.ones(1, 1, *_each(pool.kernel_size, dims))
        sums = [F.conv1d, F.conv2d, F.conv3d][dims - 1]
        windows = int(sums(x, kernel, stride=pool.stride, padding=pool.padding).sum())
    assert found.paths == windows


def _each(value, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def sum_of_bins(sizes, counts) -> int:
    return math.prod(
        sum(math.ceil((i + 1) * n / c) - math.floor(i * n / c) for i in range(c))
        for n, c in zip(sizes, counts, strict=True)
    )


class Joined(nn.Module):
    """Two inputs, a constant token, branches put side by side and on top of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1))
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(3, 2, bias=False)
        self.head = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        a, b = self.a(x), self.b(y)
        a += b
        both = torch.cat([a, 1.0 - b, self.token * 3], dim=1)
        return {"logits": self.head(both), "spread": torch.zeros(1)}


def test_inputs_and_branches_that_are_joined() -> None:
    masks = {"a.weight": torch.eye(2).bool(), "b.weight": torch.tensor([[1, 1, 1], [0, 0, 0]]).bool()}
    found = probe.measure(Joined(), masks, (torch.zeros(1, 2), torch.zeros(1, 3)))
    # a + b = (1 + 3, 1), b = (3, 0), nothing from the token
    assert found.paths == 4 + 1 + 3
    assert [layer.effective for layer in found.layers.values()] == [2, 3]


class Deaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.ones(1, 2, dtype=torch.float64))


def test_transposed_convolutions_count_inputs_first() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 2, 2))
    masks = {"0.weight": torch.zeros(3, 2, 2, 2).bool()}
    masks["0.weight"][0] = True
    layer = probe.measure(model, masks, torch.zeros(1, 3, 4, 4)).layers["0.weight"]
    assert (layer.inputs, layer.outputs, layer.effective) == ((1, 3), (2, 2), 8)


class Residual(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(F.relu(x))
        return x


def test_counts_do_not_overflow() -> None:
    depth, width = 250, 100
    chain = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])
    masks = {f"{i}.weight": torch.ones(width, width).bool() for i in range(depth)}
    found = probe.measure(chain, masks, torch.zeros(1, width))
    assert found.paths == math.inf
    assert found.log10 == pytest.approx((depth + 1) * math.log10(width), rel=1e-12)
    assert found.ineffective == 0
    # each layer multiplies by 1 + width
    model = Residual(width, depth)
    masks = {f"layers.{name}": mask for name, mask in masks.items()}
    found = probe.measure(model, masks, torch.zeros(1, width))
    assert found.log10 == pytest.approx(depth * math.log10(1 + width) + math.log10(width), rel=1e-12)
    assert found.ineffective == 0


def test_a_dead_layer_leaves_no_path() -> None:
    model = mlp(3, 4, 2)
    masks = {"0.weight": torch.ones(4, 3).bool(), "4.weight": torch.zeros(2, 4).bool()}
    found = probe.measure(model, masks, torch.zeros(1, 3))
    assert (found.paths, found.log10) == (0.0, -math.inf)
    assert found.ineffective == 12


def test_nothing_of_the_model_changes() -> None:
    model = Branches().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = [id(p) for p in model.parameters()]
    random = torch.get_rng_state()
    masks = random_masks(model, 0.5)
    probe.measure(model, masks, torch.zeros(1, 2, 5, 5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [id(p) for p in model.parameters()] == objects
    assert model.training
    assert model.a.training
    assert not model.norm.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * torch.sigmoid(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.fc(x)[None])[0]


@pytest.mark.parametrize(
    ("model", "masks", "example", "message"),
    [
        (mlp(4, 2), {}, torch.zeros(1, 4), "got none"),
        (mlp(4, 2), {"0.wight": torch.ones(2, 4)}, torch.zeros(1, 4), "Did you mean '0.weight'"),
        (mlp(4, 2), {"0.weight": torch.ones(2, 2)}, torch.zeros(1, 4), r"\[2, 2\]"),
        (mlp(4, 2), {"0.weight": torch.ones(2, 4)}, torch.zeros(1, 4).long(), "int64"),
        (Deaf(), {"fc.weight": torch.ones(2, 2)}, torch.zeros(1, 2), "no output"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2, dilation=2)),
            {"0.weight": torch.ones(1, 1, 1, 1)},
            torch.zeros(1, 1, 4, 4),
            "'max_pool2d'",
        ),
        (Gate(), {"fc.weight": torch.ones(4, 4)}, torch.zeros(1, 4), "'mul'"),
        (Recurrent(), {"fc.weight": torch.ones(4, 4)}, torch.zeros(1, 4), "'lstm'"),
    ],
)
def test_what_has_no_paths(model, masks, example, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        probe.measure(model, {name: mask.bool() for name, mask in masks.items()}, example)
