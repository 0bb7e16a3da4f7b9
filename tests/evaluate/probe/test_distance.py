"""NNSTD: the card's examples, permutations undone, blocks of a wide layer."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from lowdim.core.errors import RecipeError
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.probe.distance import NNSTD, differences


def sets(*neurons: set[int], inputs: int = 4) -> torch.Tensor:
    """Masks [out, in] of neurons given by their inputs."""
    mask = torch.zeros(len(neurons), inputs, dtype=torch.bool)
    for row, members in zip(mask, neurons, strict=True):
        row[list(members)] = True
    return mask


def random_masks(seed: int, *shapes: tuple[int, ...], density: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {str(i): torch.rand(shape, generator=generator) < density for i, shape in enumerate(shapes)}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (sets({2, 3}, {0, 1}, inputs=8), 0.0),
        (sets({0, 2}, {1, 3}, inputs=8), 2 / 3),
        (sets({4, 5}, {6, 7}, inputs=8), 1.0),
        (sets(set(), set(), inputs=8), 1.0),
        (sets({0, 1}, set(), inputs=8), 0.5),
        (sets({0, 1, 2}, {2, 3}, inputs=8), 1 / 6),
    ],
)
def test_worked_examples(other: torch.Tensor, expected: float) -> None:
    first = sets({0, 1}, {2, 3}, inputs=8)
    assert NNSTD().distance({"a": first}, {"a": other}).mean == pytest.approx(expected)
    assert NNSTD().distance({"a": other}, {"a": first}).mean == pytest.approx(expected)


def test_two_empty_neurons_are_equal() -> None:
    nothing = sets(set(), set())
    assert NNSTD().distance({"a": nothing}, {"a": nothing}).mean == 0.0


def test_the_match_is_the_best_of_all_permutations() -> None:
    a, b = random_masks(0, (5, 9))["0"], random_masks(1, (5, 9))["0"]
    costs = np.array([[int((x ^ y).sum()) / max(int((x | y).sum()), 1) for y in b] for x in a])
    assert differences(a.numpy(), b.numpy()) == pytest.approx(costs)
    best = min(sum(costs[i, j] for i, j in enumerate(order)) for order in permutations(range(5)))
    assert NNSTD().distance({"a": a}, {"a": b}).mean == pytest.approx(best / 5)


def permuted(masks: dict[str, torch.Tensor], spread: int = 1) -> dict[str, torch.Tensor]:
    """The same network with its hidden neurons in another order."""
    first, second = masks.values()
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(9))
    inputs = (order[:, None] * spread + torch.arange(spread)).flatten()
    return {"0": first[order], "1": second[:, inputs]}


@pytest.mark.parametrize(
    ("shapes", "spread"),
    [
        (((12, 30), (7, 12)), 1),
        (((8, 3, 3, 3), (5, 8, 3, 3)), 1),
        (((8, 3, 3, 3), (10, 32)), 4),
    ],
    ids=["linear", "convolutions", "flattened"],
)
def test_a_permuted_network_is_the_same_network(shapes, spread: int) -> None:
    masks = random_masks(0, *shapes)
    found = NNSTD().distance(masks, permuted(masks, spread))
    assert found.mean == 0.0
    assert found.carried == ("1",)
    assert not found.blocks
    alone = NNSTD().distance(masks, permuted(masks, spread), follows={})
    assert alone.carried == ()
    assert alone.layers["0"] == 0.0
    assert alone.layers["1"] > 0.1


def test_follows_names_the_layer_that_is_read() -> None:
    a, b = random_masks(0, (6, 6), (6, 6)).values()
    skip = random_masks(3, (4, 6))["0"]
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    first = {"a": a, "b": b, "skip": skip}
    second = {"a": a[order], "b": b, "skip": skip[:, order]}
    assert NNSTD().distance(first, second, follows={"skip": "a"}).mean == 0.0
    assert NNSTD().distance(first, second, follows={"skip": "b"}).layers["skip"] > 0
    with pytest.raises(EvaluationError, match="no earlier layer"):
        NNSTD().distance(first, second, follows={"a": "skip"})


def test_widths_that_do_not_fit_carry_nothing() -> None:
    masks = random_masks(0, (4, 6), (4, 1, 3, 3))
    assert NNSTD().distance(masks, masks).carried == ()


def test_neurons_with_the_same_inputs_leave_the_next_layer_open() -> None:
    a = torch.tensor([[1, 0], [1, 0], [0, 1]]).bool()
    b = torch.tensor([[1, 0, 0], [0, 1, 1]]).bool()
    swapped = {"a": a[[1, 0, 2]], "b": b[:, [1, 0, 2]]}
    found = NNSTD().distance({"a": a, "b": b}, swapped)
    assert found.layers == {"a": 0.0, "b": 0.5}  # {0}, {1, 2} with {1}, {0, 2}: twice a half
    told_apart = torch.tensor([[1, 0], [1, 1], [0, 1]]).bool()
    swapped["a"] = told_apart[[1, 0, 2]]
    assert NNSTD().distance({"a": told_apart, "b": b}, swapped).mean == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_blocks_bound_the_distance_of_a_layer_and_undo_permutations_of_unlike_neurons(seed: int) -> None:
    first, second = random_masks(seed, (30, 40)), random_masks(seed + 9, (30, 40))
    for limit in (1, 4, 29):
        assert NNSTD(limit=limit).distance(first, second).mean >= NNSTD().distance(first, second).mean
        masks = random_masks(seed, (30, 40), (20, 30))
        assert len({tuple(row.tolist()) for row in masks["0"]}) == 30
        assert NNSTD(limit=limit).distance(masks, permuted(masks)).mean == 0.0


def test_blocks_bound_the_distance_from_above_and_undo_permutations() -> None:
    a, b = random_masks(0, (60, 40)), random_masks(1, (60, 40))
    exact, blocks = NNSTD().distance(a, b), NNSTD(limit=16).distance(a, b)
    assert blocks.blocks == {"0": 4}
    assert exact.mean <= blocks.mean < exact.mean + 0.2
    assert sorted(blocks.matched["0"].tolist()) == list(range(60))
    masks = random_masks(2, (60, 40), (5, 60))
    assert NNSTD(limit=16).distance(masks, permuted(masks)).mean == 0.0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {}, "got none"),
        ({"a": sets({0})}, {"b": sets({0})}, "'a'"),
        ({"a": sets({0})}, {"a": sets({0}, {1})}, r"\[1, 4\] and \[2, 4\]"),
        ({"a": torch.ones(3).bool()}, {"a": torch.ones(3).bool()}, r"\[3\]"),
    ],
)
def test_what_cannot_be_compared(first, second, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        NNSTD().distance(first, second)


def test_a_limit_of_nothing() -> None:
    with pytest.raises(RecipeError, match="limit"):
        NNSTD(limit=0)
