"""The layers' contestants: what each multiplies with, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from lowdim.infer.bench import layers, timing
from lowdim.infer.bench.layers import Product


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "STREAMED", 2**16)


def weight(rows: int = 96, cols: int = 128, zeros: float = 0.0) -> torch.Tensor:
    made = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).bfloat16()
    return layers.drop(made, zeros) if zeros else made


def test_every_form_is_measured_against_torch_and_against_its_own_dense_kernel():
    rows = layers.measure(Product(("q",), 2, weight()), ("fp32", "int8"), (0.5, 0.9), 1e9, rounds=3)
    assert [(r.engine, r.dtype, r.sparsity) for r in rows] == [
        ("torch", "bf16", 0.0),
        ("torch", "fp32", 0.0),
        ("lowdim", "fp32", 0.0),
        ("lowdim", "fp32", 0.5),
        ("lowdim", "fp32", 0.9),
        ("lowdim", "int8", 0.0),
        ("lowdim", "int8", 0.5),
        ("lowdim", "int8", 0.9),
    ]
    base, dense, half = rows[0], rows[5], rows[6]
    assert base.over_torch == 1.0
    assert base.over_dense is None
    assert base.bytes == 96 * 128 * 2
    assert dense.over_dense == 1.0
    assert half.over_dense == pytest.approx(dense.microseconds / half.microseconds, rel=0.05)
    assert half.over_torch == pytest.approx(base.microseconds / half.microseconds, rel=0.05)
    assert half.bandwidth_share == pytest.approx(half.bytes / half.microseconds * 1e6 / 1e9, rel=0.05)
    assert half.bytes < 0.8 * dense.bytes
    assert half.kernel.startswith("packed int8")
    assert dense.kernel.startswith("dense int8")


def test_a_layers_own_zeros_are_measured_and_others_are_drawn_without_them():
    own = weight(zeros=0.6)
    forms = layers._matrices(Product(("q",), 1, own), ["bf16"], [0.3])
    by_share = {round(who.sparsity, 2): matrix for who, matrix in forms.items()}
    assert torch.equal(by_share[round(1 - own.count_nonzero().item() / own.numel(), 2)].unpack().bfloat16(), own)
    assert by_share[0.3].sparsity == pytest.approx(0.3, abs=0.03)
    assert by_share[0.0].mask is None


def test_three_bits_are_measured_dense_alone():
    forms = layers._matrices(Product(("q",), 1, weight(zeros=0.6)), ["int4", "int3"], [0.3])
    assert [(who.dtype, round(who.sparsity, 1)) for who in forms] == [
        ("int4", 0.0),
        ("int4", 0.3),
        ("int4", 0.6),
        ("int3", 0.0),
    ]


def test_a_layer_lies_as_loading_would_have_it(monkeypatch):
    own = weight(zeros=0.6)
    drawn = layers._matrices(Product(("q",), 1, weight()), ["int8"], [0.2, 0.3])
    assert [matrix.form for matrix in drawn.values()] == ["dense", "dense", "packed"]
    monkeypatch.setenv("LOWDIM_FORM", "dense")
    for coded, kind in (("int4", "int8"), (None, "int4")):  # codes of a file have no zero in four bits
        _, sparse = layers._matrices(Product(("q",), 1, own, coded=coded), ["int4"], []).values()
        assert (sparse.form, sparse.kind) == ("dense", kind)


def test_the_head_is_dense():
    forms = layers._matrices(Product(("lm_head",), 1, weight(zeros=0.5), prunable=False), ["bf16"], [])
    assert [who.sparsity for who in forms] == [0.0]


def test_copies_share_no_memory():
    form = next(iter(layers._matrices(Product(("q",), 1, weight()), ["int4"], [0.5]).values()))
    x = torch.randn(1, 128)
    copies = [run.__defaults__[0] for run in layers.runs(form, x, 2)]
    for part in zip(*(each.tensors().values() for each in (form, *copies)), strict=True):
        assert len({tensor.data_ptr() for tensor in part}) == 3
    assert all(torch.equal(form.linear(x), other.linear(x)) for other in copies)


def test_the_curve_is_of_the_largest_moderate_layer():
    big, small = Product(("up",), 1, torch.empty(2**13, 2**12)), Product(("q",), 1, weight())
    head = Product(("lm_head",), 1, torch.empty(4096, 4096), prunable=False)
    assert layers.curve_of([head, big, small]) is small
    assert layers.curve_of([head, big]) is big
    assert layers.curve_of([head]) is None
