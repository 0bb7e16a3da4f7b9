import pytest
import torch

from lowdim.core import statistics
from lowdim.core.errors import NumericalError
from lowdim.core.statistics import InputStatistics

ALL = frozenset({"square", "gram", "moments"})


def inputs(tokens=300, width=24, seed=0):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, width + 1)


def collect(chunks, needs=ALL, width=24):
    stats = InputStatistics(width, needs)
    for chunk in chunks:
        stats.add(chunk)
    return stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("needs", [{"square"}, {"gram"}, {"moments"}, ALL])
def test_sums_equal_fp64(dtype, needs):
    x = inputs().to(dtype)
    stats = collect([x], frozenset(needs))
    exact = x.double()
    assert stats.tokens == 300
    assert stats.square.dtype == torch.float32
    torch.testing.assert_close(stats.square.double(), exact.square().sum(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(stats.mean_square().double(), exact.square().mean(0), rtol=1e-6, atol=0)
    if "gram" in needs:
        assert stats.gram.dtype == torch.float32
        torch.testing.assert_close(stats.gram.double(), exact.T @ exact, rtol=1e-5, atol=1e-2)
    if "moments" in needs:
        torch.testing.assert_close(stats.total.double(), exact.sum(0), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(stats.variance().double(), exact.var(0, correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1, 7, 64, 299])
def test_the_size_of_the_chunks_does_not_matter(size):
    whole, parts = collect([inputs()]), collect(inputs().split(size))
    for a, b in zip(whole.tensors(), parts.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-2)


def test_batches_larger_than_the_cache_chunk():
    x = torch.randn(5000, 700, generator=torch.Generator().manual_seed(0)).bfloat16()
    stats = collect([x], frozenset({"square"}), 700)
    torch.testing.assert_close(stats.square.double(), x.double().square().sum(0), rtol=1e-6, atol=0)


def test_the_order_of_the_tokens_does_not_matter():
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    for a, b in zip(collect([inputs()]).tensors(), collect([inputs()[order]]).tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-2)


def test_merging_equals_the_concatenation():
    a, b = inputs(100, seed=1), inputs(57, seed=2)
    merged, together = collect([a]), collect([torch.cat([a, b])])
    merged.merge(collect([b]))
    assert merged.tokens == together.tokens == 157
    for x, y in zip(merged.tensors(), together.tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-2)


def test_the_tensors_are_the_state():
    mine, other = collect([inputs(10)]), collect([inputs(20, seed=3)])
    for x, y in zip(mine.tensors(), other.tensors(), strict=True):
        x += y
    assert mine.tokens == 30
    torch.testing.assert_close(mine.square, collect([inputs(10), inputs(20, seed=3)]).square)


def test_many_small_batches_lose_nothing():
    # 1 + 2^-20 added to itself 4096 times: an fp32 accumulator would drift, an fp64 one does not
    x = torch.full((1, 2), 1.0 + 2.0**-12)
    stats = collect([x] * 4096, frozenset({"square"}), 2)
    assert stats.square.tolist() == [float(torch.tensor((1 + 2.0**-12) ** 2).float() * 4096)] * 2


def test_a_large_mean_does_not_swallow_the_variance():
    x = 100 + torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
    variance = collect([x], frozenset({"moments"}), 3).variance().double()
    torch.testing.assert_close(variance, x.double().var(0, correction=0), rtol=1e-3, atol=0)


def test_the_input_is_not_changed():
    x = inputs()
    collect([x])
    assert torch.equal(x, inputs())


def test_no_token_seen():
    stats = collect([torch.empty(0, 24)])
    assert stats.tokens == 0
    assert not stats.mean_square().any()
    assert not stats.variance().any()


def test_what_was_not_collected_is_refused():
    stats = collect([inputs()], frozenset({"square"}))
    with pytest.raises(ValueError, match="not for 'gram'"):
        _ = stats.gram
    with pytest.raises(ValueError, match="not for 'moments'"):
        stats.variance()
    with pytest.raises(ValueError, match="cannot merge"):
        stats.merge(collect([inputs()]))
    assert not InputStatistics(4, frozenset()).tensors()[1:]


def test_bad_arguments():
    with pytest.raises(ValueError, match="squares"):
        InputStatistics(4, {"squares"})
    with pytest.raises(ValueError, match=r"\[tokens, 24\]"):
        collect([torch.ones(3, 5)])


def test_tf32_is_off_meanwhile_and_left_as_it_was():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with statistics._without_tf32():
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == before


def test_overflow_is_named():
    stats = collect([torch.full((2, 24), 3e38)])
    with pytest.raises(NumericalError, match=r"layer\.7"):
        stats.check("layer.7")
    collect([inputs()]).check("fine")


@pytest.mark.parametrize("width", [1, 3, 64, 130])
def test_gram_of_bf16_inputs_is_summed_in_fp32(width: int) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    x = torch.randn(700, width, generator=torch.Generator().manual_seed(width)).bfloat16()
    stats = InputStatistics(width, {"gram"})
    stats.add(x)
    exact = x.double().T @ x.double()
    assert torch.allclose(stats.gram.double(), exact, rtol=0, atol=1e-5 * float(exact.max()))
    assert torch.equal(stats.gram, stats.gram.T)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
