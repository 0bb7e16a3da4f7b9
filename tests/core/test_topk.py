import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowdim.core.errors import NumericalError
from lowdim.core.topk import _rows_torch, keep_top, keep_top_across, keep_top_rows


def reference(scores: torch.Tensor, keep: int) -> torch.Tensor:
    order = scores.flatten().double().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.view(scores.shape)


@st.composite
def matrices(draw):
    rows, cols = draw(st.integers(0, 7)), draw(st.integers(0, 20))
    # few distinct values, so that ties are the rule
    values = draw(
        st.lists(st.sampled_from([-1.0, 0.0, -0.0, 0.5, 1.0, 2.0]), min_size=rows * cols, max_size=rows * cols)
    )
    return torch.tensor(values).view(rows, cols)


@given(matrices(), st.data())
def test_whole_tensor_equals_a_stable_sort(scores, data):
    keep = data.draw(st.integers(0, scores.numel()))
    mask = keep_top(scores, keep)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, reference(scores, keep))


@given(matrices(), st.data())
def test_rows_equal_a_stable_sort_of_each(scores, data):
    rows, cols = scores.shape
    keep = torch.tensor(data.draw(st.lists(st.integers(0, cols), min_size=rows, max_size=rows)), dtype=torch.int64)
    mask = keep_top_rows(scores, keep)
    assert mask.shape == scores.shape
    for i in range(rows):
        assert torch.equal(mask[i], reference(scores[i], int(keep[i])))


@given(matrices(), st.data())
def test_the_path_of_accelerators_agrees_with_that_of_the_cpu(scores, data):
    if scores.numel():
        keep = data.draw(st.integers(1, scores.shape[1] - 1)) if scores.shape[1] > 1 else 1
        assert torch.equal(_rows_torch(scores, keep), keep_top_rows(scores, keep))


@pytest.mark.parametrize("cols", [2, 4, 16, 17])
def test_many_rows_narrow_or_not(cols):
    scores = torch.randint(0, 5, (40_000, cols), generator=torch.Generator().manual_seed(0)).float()
    mask = keep_top_rows(scores, cols // 2)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(mask, torch.zeros_like(mask).scatter_(1, order[:, : cols // 2], True))


def test_one_number_serves_all_rows():
    scores = torch.tensor([[4.0, 2, 1, 0.4], [0.4, 0.3, 10, 0.02]])
    assert keep_top_rows(scores, 2).tolist() == [[True, True, False, False], [True, False, True, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(64, 48), (1, 300), (300, 1)])
def test_large_random_in_every_dtype(dtype, shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for keep in (0, 1, scores.numel() // 3, scores.numel() - 1, scores.numel()):
        assert torch.equal(keep_top(scores, keep), reference(scores, keep))


def test_infinite_scores_are_kept_first():
    scores = torch.tensor([1.0, float("inf"), -float("inf"), float("inf")])
    assert keep_top(scores, 1).tolist() == [False, True, False, False]
    assert keep_top(scores, 3).tolist() == [True, True, False, True]


def test_fp64_is_not_rounded_to_fp32():
    scores = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert keep_top(scores, 1).tolist() == [False, True]


def test_non_contiguous_ties_follow_the_logical_order():
    scores = torch.ones(3, 4).t()
    assert keep_top(scores, 4).tolist() == [[True] * 3, [True, False, False], [False] * 3, [False] * 3]


def test_scores_with_gradients_and_tie_heavy_matrix():
    scores = torch.zeros(200, 300, requires_grad=True)
    mask = keep_top(scores, 31)
    assert mask.flatten().nonzero().flatten().tolist() == list(range(31))
    rows = keep_top_rows(scores, 7)
    assert bool(rows[:, :7].all())
    assert int(rows.sum()) == 1400


@pytest.mark.parametrize("call", [lambda s: keep_top(s, 1), lambda s: keep_top_rows(s, 1)])
def test_nan_is_refused(call):
    scores = torch.ones(4, 4)
    scores[2, 3] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        call(scores)


@pytest.mark.parametrize("keep", [-1, 7])
def test_keep_out_of_range(keep):
    with pytest.raises(ValueError, match=f"got {keep}"):
        keep_top(torch.ones(2, 3), keep)
    with pytest.raises(ValueError, match=f"got {keep}"):
        keep_top_rows(torch.ones(2, 3), keep)


def test_keep_of_the_wrong_length_and_scores_of_the_wrong_rank():
    with pytest.raises(ValueError, match="one per row"):
        keep_top_rows(torch.ones(2, 3), torch.tensor([1]))
    with pytest.raises(ValueError, match="matrix"):
        keep_top_rows(torch.ones(3), 1)


def test_the_scores_are_left_alone():
    scores = torch.tensor([[3.0, 1.0, 2.0]])
    keep_top(scores, 1)
    keep_top_rows(scores, 1)
    assert scores.tolist() == [[3.0, 1.0, 2.0]]


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "zeros", "periodic"])
@pytest.mark.parametrize("keep", [1, 1000, 60_000])
def test_a_long_row_is_selected_as_a_short_one(kind: str, keep: int) -> None:
    size = 1 << 18
    source = torch.Generator().manual_seed(0)
    scores = {
        "normal": torch.randn(size, generator=source),
        "ties": torch.randint(50, (size,), generator=source).float(),
        "sorted": torch.arange(float(size)),
        "zeros": torch.zeros(size),
        "periodic": (torch.arange(size) % 4 == 0).float(),
    }[kind]
    expected = torch.zeros(size, dtype=torch.bool)
    expected[scores.sort(descending=True, stable=True).indices[:keep]] = True
    assert torch.equal(keep_top(scores, keep), expected)


def test_across_tensors_the_earliest_of_equal_scores_is_kept():
    scores = {"a": torch.ones(2, 2), "b": torch.tensor([1.0, 2.0])}
    kept = keep_top_across(scores, 3)
    assert kept["a"].tolist() == [[True, True], [False, False]]
    assert kept["b"].tolist() == [False, True]


def test_across_tensors_the_one_with_nan_is_named():
    with pytest.raises(NumericalError, match="the scores of b hold NaN"):
        keep_top_across({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, 1)
