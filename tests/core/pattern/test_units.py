"""Units of every pattern, and training that keeps them whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.train.small import batch, conv_net, mlp, sgd, train
from torch import nn
from torch.nn import functional as F

from lowdim.core.errors import PatternError, RecipeError
from lowdim.core.pattern import parse
from lowdim.train import ITOP, SET, Method, RigL, SparseTraining, Static


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "fan-in", "2x4", "1x1", "gates:4"])
@pytest.mark.parametrize("shape", [(8, 12), (8, 4, 3, 3)])
def test_units_cover_every_weight_once(pattern: str, shape: tuple[int, ...]) -> None:
    units = parse(pattern).units("w", shape)
    covered = torch.zeros(shape)
    for unit in range(units.size):
        marked = torch.zeros(units.size, dtype=torch.bool)
        marked[unit] = True
        mask = units.spread(marked)
        assert int(mask.sum()) == units.weights
        covered += mask
        if units.weights == 1:
            weight = torch.randn(shape)
            assert units.values(weight)[unit].abs() == weight[mask].abs()
        else:
            weight = torch.randn(shape)
            assert units.values(weight)[unit] == pytest.approx(float(weight[mask].norm()), rel=1e-5)
    assert torch.equal(covered, torch.ones(shape))


METHODS: list[Method] = [Static(), SET(every=2, regrow="zero"), RigL(every=2), ITOP(every=2, grow="gradient")]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "fan-in", "4x2", "1x1"])
def test_masks_stay_legal(pattern: str, method: Method) -> None:
    model = conv_net()
    optimizer = sgd(model)
    sparsity = None if ":" in pattern else 0.75
    if pattern == "1:4":
        sparsity = 0.75
    training = SparseTraining(
        model, optimizer, sparsity=sparsity, method=method, total_steps=8, pattern=pattern, exclude=["0"]
    )
    before = training.masks
    for step in range(6):
        train(model, optimizer, range(step, step + 1))
        for name, mask in training.masks.items():
            if ":" in pattern:
                kept = mask.movedim(1, -1).reshape(-1, 4).sum(1)
                assert (kept == int(pattern[0])).all()
            elif pattern == "fan-in":
                assert len(mask.flatten(1).sum(1).unique()) == 1
            else:
                rows, cols = map(int, pattern.split("x"))
                out, inputs = mask.shape[:2]
                blocks = mask.reshape(out // rows, rows, inputs // cols, cols, -1)
                assert ((blocks.sum((1, 3, 4)) == 0) | blocks.all(4).all(3).all(1)).all(), name
    assert (training.masks == before) is isinstance(method, Static)


def test_groups_regain_what_they_lost() -> None:
    model = nn.Linear(4, 2, bias=False)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    method = RigL(every=1, drop=0.25, schedule="constant", until=1.0)
    training = SparseTraining(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        method=method,
        masks={"weight": mask},
        total_steps=4,
        pattern="2:4",
    )
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.1, 0, 0], [3, 4, 0, 0]]))
    model.weight.grad = torch.tensor([[0.0, 0, 1, 2], [9, 9, 9, 9]])
    training.optimizer.step()
    assert training.masks["weight"].int().tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]


def test_a_pattern_of_another_sparsity() -> None:
    model = mlp(8, 8, 2)
    with pytest.raises(RecipeError, match="2:4"):
        SparseTraining(model, sgd(model), sparsity=0.75, method=Static(), pattern="2:4")


@pytest.mark.parametrize(("pattern", "mask"), [("2:4", [[1, 1, 1, 0]] * 4), ("2x2", [[1, 0, 0, 0]] * 4)])
def test_a_mask_that_breaks_the_pattern(pattern: str, mask: Any) -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(RecipeError, match="mask of weight does not"):
        SparseTraining(model, sgd(model), method=Static(), pattern=pattern, masks={"weight": torch.tensor(mask).bool()})


@pytest.mark.parametrize(
    ("pattern", "match"), [("3x3", "blocks of 3"), ("1:3", "groups of 3"), ("gates:3", "gates of 3")]
)
def test_shapes_that_do_not_divide(pattern: str, match: str) -> None:
    with pytest.raises(PatternError, match=match):
        parse(pattern).units("w", (4, 4))


def test_blocks_learn() -> None:
    torch.manual_seed(0)
    model = mlp(64, 32, 4)
    optimizer = sgd(model)
    SparseTraining(model, optimizer, sparsity=0.5, method=RigL(every=5), total_steps=40, pattern="4x4")
    x, y = batch(0, 32)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(x.flatten(1)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
