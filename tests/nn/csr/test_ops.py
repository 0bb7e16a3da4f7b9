from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from torch import Tensor

from lowdim.core.errors import LowdimError
from lowdim.nn.csr.linear import CSRLinear

BATCHES = (0, 1, 2, 3, 5, 8, 9, 16, 17, 40, 64, 100, 128, 129, 300)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(seed: int, rows: int, cols: int, density: float) -> Tensor:
    keep = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < density
    if rows > 2:
        keep[rows // 2] = False  # an empty row
    return torch.where(keep, numbers(seed, rows, cols), 0.0)


def layer_of(dense: Tensor, bias: Tensor | None) -> CSRLinear:
    positions = dense.flatten().nonzero().flatten()
    values = dense.flatten()[positions]
    return CSRLinear(dense.shape[1], dense.shape[0], positions, values, False if bias is None else bias)


def close(found: Tensor | None, wanted: Tensor, depth: int) -> None:
    assert found is not None
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6 * max(1, depth) ** 0.5)


def compare(rows: int, cols: int, batch: int, density: float, seed: int, bias: bool = True) -> None:
    """Outputs and all gradients against dense float64."""
    dense, offset = weight(seed, rows, cols, density), numbers(seed + 1, rows) if bias else None
    layer = layer_of(dense, offset)
    x, g = numbers(seed + 2, batch, cols).requires_grad_(), numbers(seed + 3, batch, rows)
    y = layer(x)
    y.backward(g)
    wide_x, wide_g, wide = x.detach().double(), g.double(), dense.double()
    product = wide_x @ wide.t()
    close(y.detach(), product if offset is None else product + offset, cols)
    close(x.grad, wide_g @ wide, rows)
    close(layer.values.grad, (wide_g.t() @ wide_x)[dense != 0], batch)
    if layer.bias is not None:
        close(layer.bias.grad, wide_g.sum(0), batch)


@pytest.mark.parametrize("batch", BATCHES)
def test_products_equal_dense_ones(batch: int) -> None:
    compare(rows=37, cols=150, batch=batch, density=0.2, seed=batch)


@pytest.mark.parametrize(
    ("rows", "cols"), [(0, 5), (5, 0), (0, 0), (1, 1), (1, 70), (70, 1), (16, 64), (17, 65), (3, 1200)]
)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_odd_shapes(rows: int, cols: int, density: float) -> None:
    compare(rows, cols, batch=7, density=density, seed=1)


def test_wide_enough_for_all_panels_and_threads() -> None:
    compare(rows=200, cols=1500, batch=128, density=0.1, seed=3)
    compare(rows=200, cols=1500, batch=2, density=0.3, seed=4, bias=False)


@given(
    rows=some.integers(0, 40),
    cols=some.integers(0, 140),
    batch=some.integers(0, 40),
    density=some.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=some.integers(0, 1000),
)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_small_weight(rows: int, cols: int, batch: int, density: float, seed: int) -> None:
    compare(rows, cols, batch, density, seed)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6), (2, 0, 6), (1, 1, 1, 6)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    layer = layer_of(weight(0, 4, 6, 0.5), numbers(1, 4))
    x = numbers(2, *shape).requires_grad_()
    y = layer(x)
    assert y.shape == (*shape[:-1], 4)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, layer.dense(), layer.bias))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_inputs_and_gradients_that_are_not_contiguous() -> None:
    layer = layer_of(weight(0, 4, 6, 0.5), None)
    x = numbers(2, 6, 5).t().requires_grad_()
    layer(x).t().mul(numbers(3, 4, 5)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, numbers(3, 4, 5).t() @ layer.dense())


def test_only_the_gradients_that_are_needed() -> None:
    layer = layer_of(weight(0, 4, 6, 0.5), numbers(1, 4))
    x = numbers(2, 3, 6)
    layer(x).sum().backward()
    assert x.grad is None
    assert layer.values.grad is not None
    layer.values.grad = None
    layer.values.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert layer.values.grad is None
    assert x.grad is not None


def test_gradients_add_up_over_backward_passes() -> None:
    layer = layer_of(weight(0, 4, 6, 0.5), numbers(1, 4))
    x = numbers(2, 8, 6)
    layer(x).sum().backward()
    whole = layer.values.grad
    layer.values.grad = None
    for part in x.split(4):
        layer(part).sum().backward()
    torch.testing.assert_close(layer.values.grad, whole)


def test_gradients_agree_with_finite_differences() -> None:
    layer = layer_of(weight(0, 3, 5, 0.6), numbers(1, 3))
    x, g = numbers(2, 2, 5), numbers(3, 2, 3)
    (layer(x) * g).sum().backward()
    assert layer.values.grad is not None
    for k in range(layer.kept):
        changed = []
        for step in (0.5, -0.5):  # the function is linear, so any step will do
            other = layer_of(layer.dense(), None)
            with torch.no_grad():
                other.values[k] += step
                changed.append(float((other(x) * g).sum()))
        assert changed[0] - changed[1] == pytest.approx(float(layer.values.grad[k]), rel=1e-4, abs=1e-5)


def test_a_gradient_of_gradients_is_refused() -> None:
    layer = layer_of(weight(0, 4, 6, 0.5), numbers(1, 4))
    x = numbers(2, 3, 6).requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(LowdimError, match="first derivatives only"):
        first.sum().backward()


@pytest.mark.parametrize("batch", [2, 128])
def test_results_do_not_depend_on_the_threads(batch: int, level: str) -> None:
    if level == "torch":
        pytest.skip("the order of torch's own sums is torch's")
    layer = layer_of(weight(0, 300, 1100, 0.1), numbers(1, 300))
    x, g = numbers(2, batch, 1100).requires_grad_(), numbers(3, batch, 300)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = layer(x)
            found.append((y.detach(), *torch.autograd.grad(y, (x, layer.values), g)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_a_nan_stays_in_its_sample_and_its_weights() -> None:
    layer = layer_of(torch.eye(4), None)
    x = torch.zeros(3, 4)
    x[1, 2] = float("nan")
    y = layer(x)
    assert y.isnan().nonzero().tolist() == [[1, 2]]


def test_the_operators_keep_to_their_contract(level: str) -> None:
    if level != "portable":
        pytest.skip("one level is enough")
    layer = layer_of(weight(0, 4, 6, 0.5), numbers(1, 4))
    x = numbers(2, 3, 6).requires_grad_()
    arguments = (x, layer.values, layer.bias, layer.row_ptr, layer.col, layer.cuts)
    torch.library.opcheck(
        torch.ops.lowdim.csr_linear.default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
