from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from torch import Tensor

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.topk import keep_top
from lowdim.nn.csr.index import Index

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def source_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_positions(size: int, share: float, seed: int) -> Tensor:
    return (torch.rand(size, generator=source_of(seed)) < share).nonzero().flatten()


def test_a_hand_made_index() -> None:
    index = Index.of(torch.tensor([1, 5, 6, 11]), (4, 3))
    assert index.row_ptr.tolist() == [0, 1, 2, 3, 4]
    assert index.col.tolist() == [1, 2, 0, 2]
    assert index.positions().tolist() == [1, 5, 6, 11]


@given(rows=some.integers(0, 30), cols=some.integers(0, 200), share=some.floats(0, 1), seed=some.integers(0, 99))
@quick
def test_positions_come_back(rows: int, cols: int, share: float, seed: int) -> None:
    positions = some_positions(rows * cols, share, seed)
    index = Index.of(positions, (rows, cols))
    assert torch.equal(index.positions(), positions)
    again = Index.stored((rows, cols), index.row_ptr, index.col)
    assert torch.equal(again.cuts, index.cuts)


def test_cuts_count_the_columns_before_each_panel(level: str) -> None:
    index = Index.of(some_positions(9 * 256, 0.4, 0), (9, 256))
    panels = len(index.cuts) + 1
    assert panels == (1 if level == "torch" else 8)
    for p in range(1, panels):
        for r in range(9):
            columns = index.col[index.row_ptr[r] : index.row_ptr[r + 1]]
            assert int(index.cuts[p - 1, r]) == int((columns < 256 * p // panels).sum())


def test_a_weight_far_beyond_memory() -> None:
    size = 10**6
    positions = torch.tensor([0, size + 3, size * size - 1])
    index = Index.of(positions, (size, size))
    assert torch.equal(index.positions(), positions)
    new, source = index.move(torch.tensor([True, False, True]), torch.tensor([size * 500_000 + 7]))
    assert new.positions().tolist() == [0, size * 500_000 + 7, size * size - 1]
    assert source.tolist() == [0, -1, 2]


@pytest.mark.parametrize("positions", [[1, 1], [2, 1], [-1], [12], [0, 11, 12]])
def test_unsound_positions_are_refused(positions: list[int]) -> None:
    with pytest.raises(LowdimError, match="ascend"):
        Index.of(torch.tensor(positions), (4, 3))


def test_other_tensors_are_refused() -> None:
    with pytest.raises(LowdimError, match="int64"):
        Index.of(torch.tensor([1], dtype=torch.int32), (4, 3))
    with pytest.raises(LowdimError, match="more than a layer can hold"):
        Index.of(torch.tensor([1]), (2, 2**31))


@pytest.mark.parametrize(
    ("row_ptr", "col"),
    [
        ([0, 1], [1]),
        ([1, 1, 2], [0, 0]),
        ([0, 1, 1], [1, 2]),
        ([0, 2, 1], [1]),
        ([0, 1, 2], [3, 0]),
        ([0, 2, 2], [1, 0]),
    ],
)
def test_an_unsound_stored_index_is_refused(row_ptr: list[int], col: list[int]) -> None:
    with pytest.raises(LowdimError):
        Index.stored((2, 3), torch.tensor(row_ptr), torch.tensor(col, dtype=torch.int32))


# ---------------------------------------------------------------- moves


def test_a_hand_made_move() -> None:
    index = Index.of(torch.tensor([0, 2, 4]), (2, 3))
    new, source = index.move(torch.tensor([True, False, True]), torch.tensor([1, 5]))
    assert new.positions().tolist() == [0, 1, 4, 5]
    assert source.tolist() == [0, -1, 2, -1]


def test_what_is_dropped_and_grown_at_once_is_known() -> None:
    index = Index.of(torch.tensor([0, 2, 4]), (2, 3))
    new, source = index.move(torch.tensor([True, False, True]), torch.tensor([2]))
    assert new.positions().tolist() == [0, 2, 4]
    assert source.tolist() == [0, 1, 2]


@given(rows=some.integers(0, 20), cols=some.integers(0, 80), seed=some.integers(0, 200))
@quick
def test_moves_equal_those_of_masks(rows: int, cols: int, seed: int) -> None:
    old = some_positions(rows * cols, 0.3, seed)
    keep = torch.rand(len(old), generator=source_of(seed + 1)) < 0.6
    grown = some_positions(rows * cols, 0.2, seed + 2)
    grown = grown[~torch.isin(grown, old[keep])]
    new, source = Index.of(old, (rows, cols)).move(keep, grown)
    mask = torch.zeros(rows * cols, dtype=torch.bool)
    mask[old[keep]] = mask[grown] = True
    assert torch.equal(new.positions(), mask.nonzero().flatten())
    rank = torch.full((rows * cols,), -1, dtype=torch.int32)
    rank[old] = torch.arange(len(old), dtype=torch.int32)
    assert torch.equal(source, rank[mask])


@pytest.mark.parametrize("grown", [[0], [5, 5], [5, 3], [6], [-1]])
def test_unsound_growth_is_refused(grown: list[int]) -> None:
    index = Index.of(torch.tensor([0, 2]), (2, 3))
    with pytest.raises(LowdimError):
        index.move(torch.tensor([True, True]), torch.tensor(grown))


# ---------------------------------------------------------------- the largest gradients


def wanted_top(x: Tensor, g: Tensor, excluded: Tensor, count: int) -> Tensor:
    scores = (g.t() @ x).abs().flatten()
    scores[excluded] = -1.0
    return keep_top(scores, count).nonzero().flatten()


@given(
    rows=some.integers(1, 40),
    cols=some.integers(1, 200),
    batch=some.integers(0, 9),
    share=some.floats(0, 1),
    seed=some.integers(0, 200),
)
@quick
def test_the_largest_gradients_with_many_ties(rows: int, cols: int, batch: int, share: float, seed: int) -> None:
    x, g = (torch.randint(-2, 3, (batch, n), generator=source_of(seed)).float() for n in (cols, rows))
    excluded = some_positions(rows * cols, 0.3, seed)
    index = Index.of(excluded, (rows, cols))
    count = int(share * (rows * cols - len(excluded)))
    assert torch.equal(index.top_gradient(x, g, excluded, count), wanted_top(x, g, excluded, count))


def test_a_weight_large_enough_to_be_sampled_first() -> None:
    # whole numbers, so that sums do not depend on their order
    rows, cols = 700, 900
    x, g = (torch.randint(-50, 50, (6, n), generator=source_of(n)).float() for n in (cols, rows))
    excluded = some_positions(rows * cols, 0.1, 0)
    index = Index.of(excluded, (rows, cols))
    assert torch.equal(index.top_gradient(x, g, excluded, 20_000), wanted_top(x, g, excluded, 20_000))


def test_a_sample_that_misleads() -> None:
    rows, cols = 600, 640
    x, g = torch.ones(1, cols), torch.ones(1, rows)
    x[:, ::64] = 100.0  # the sampled tiles look like all others, but only few entries are large
    g[:, 0] = 1000.0
    nothing = torch.empty(0, dtype=torch.int64)
    index = Index.of(nothing, (rows, cols))
    assert torch.equal(index.top_gradient(x, g, nothing, 9000), wanted_top(x, g, nothing, 9000))


def test_too_few_free_positions() -> None:
    index = Index.of(torch.tensor([0, 1]), (1, 3))
    with pytest.raises(LowdimError, match="1 are free"):
        index.top_gradient(torch.ones(1, 3), torch.ones(1, 1), torch.tensor([0, 1]), 2)


def test_nan_cannot_be_compared() -> None:
    x = torch.tensor([[1.0, float("nan"), 2.0]])
    index = Index.of(torch.tensor([0]), (1, 3))
    with pytest.raises(NumericalError, match="NaN"):
        index.top_gradient(x, torch.ones(1, 1), torch.tensor([0]), 1)
    assert index.top_gradient(x, torch.ones(1, 1), torch.tensor([0, 1]), 1).tolist() == [2]
