from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.models import packed
from lowdim.models.shard import write_file

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn]


def sparse(
    rows: int, cols: int, density: float, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight[torch.rand(rows, cols, generator=generator) >= density] = 0.0
    return weight.to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(packed.bits_of(a), packed.bits_of(b))


def test_worked_example_of_the_format_page() -> None:
    weight = torch.zeros(2, 70, dtype=torch.bfloat16)
    weight[0, 0], weight[0, 65], weight[1, 69] = 1.0, 2.0, -0.5
    mask, values = packed.pack(weight)
    assert mask.tolist() == [[1, 1 << 1], [0, 1 << 5]]
    assert values.tolist() == [1.0, 2.0, -0.5]
    layout = packed.encode(weight)
    assert layout["mask"].tolist() == [[1, 2], [0, 32]]
    assert layout["row_ptr"].tolist() == [0, 4, 6]
    assert layout["values"].tolist() == [1.0, 2.0, -0.5] + [0.0] * 64


def test_a_column_63_sets_the_sign_bit() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 63] = 3.0
    mask, values = packed.pack(weight)
    assert mask.tolist() == [[-(1 << 63)]]
    assert same_bits(packed.unpack(mask, values, (1, 64)), weight)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 63), (5, 64), (7, 65), (2, 128), (3, 129), (6, 576)])
def test_round_trip_is_exact(rows: int, cols: int, density: float, dtype: torch.dtype) -> None:
    weight = sparse(rows, cols, density, dtype)
    assert same_bits(packed.unpack(*packed.pack(weight), weight.shape), weight)
    assert same_bits(packed.decode(packed.encode(weight), cols), weight)


@given(
    st.integers(0, 9),
    st.integers(1, 200),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.sampled_from(FLOATS[:3]),
)
@settings(max_examples=60, deadline=None)
def test_any_bit_pattern_survives(
    rows: int, cols: int, density: float, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    limits = torch.iinfo(integers)
    bits = torch.randint(limits.min, limits.max, (rows, cols), generator=generator).to(integers)
    bits[torch.rand(rows, cols, generator=generator) >= density] = 0
    weight = bits.view(dtype)  # NaN with payloads, infinities, subnormals, -0.0
    assert same_bits(packed.unpack(*packed.pack(weight), weight.shape), weight)
    assert same_bits(packed.decode(packed.encode(weight), cols), weight)


@pytest.mark.parametrize("dtype", FLOATS)
def test_only_plus_zero_is_zero(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    weight = torch.tensor([[0.0, -0.0, float("nan"), smallest]], dtype=torch.float64).to(dtype)
    assert packed.kept(weight).tolist() == [[False, True, True, True]]
    mask, values = packed.pack(weight)
    assert (mask.tolist(), len(values)) == ([[0b1110]], 3)


@pytest.mark.parametrize("column", [0, 127, 128, 575])
def test_layout_of_the_kernels(column: int) -> None:
    weight = torch.zeros(5, 576, dtype=torch.bfloat16)
    weight[1, column], weight[4, :] = 7.0, 1.0
    layout = packed.encode(weight)
    assert layout["mask"].shape == (5, 10)  # 576 columns padded to 640
    assert layout["row_ptr"].tolist() == [0, 0, 2, 2, 2, 2 + 2 * 576]
    assert layout["values"].nbytes == 2 * 577 + packed.TAIL_BYTES
    assert not layout["values"][577:].any()
    words = [word % 2**64 for word in layout["mask"][1].tolist()]
    assert [64 * c + j for c, word in enumerate(words) for j in range(64) if word >> j & 1] == [column]


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sparse(37, 100, 0.3)
    whole = packed.pack(weight)
    monkeypatch.setattr(packed, "_CHUNK", 250)
    chunked = packed.pack(weight)
    assert torch.equal(whole[0], chunked[0])
    assert torch.equal(whole[1], chunked[1])
    assert same_bits(packed.unpack(*chunked, weight.shape), weight)


def test_three_dimensions_and_strides() -> None:
    experts = sparse(12, 70, 0.4).reshape(3, 4, 70)
    assert same_bits(packed.unpack(*packed.pack(experts), experts.shape), experts)
    transposed = sparse(70, 12, 0.4).T
    assert same_bits(packed.unpack(*packed.pack(transposed), transposed.shape), transposed.contiguous())


@pytest.mark.parametrize("shape", [(576, 576), (192, 576), (1536, 576), (576, 1536)])
def test_bits_per_weight_on_disk(shape: tuple[int, int], tmp_path: Path) -> None:
    """Everything in the file counts: mask, values, header and metadata."""
    rows, cols = shape
    weight = torch.ones(shape, dtype=torch.bfloat16).reshape(-1)
    weight[
        torch.randperm(rows * cols, generator=torch.Generator().manual_seed(0))[: round(0.7 * rows * cols)]
    ] = 0
    stored, metadata = packed.pack_shard({"layer.weight": weight.reshape(shape)}, {"layer.weight"})
    file = tmp_path / "x.safetensors"
    with file.open("wb") as stream:
        write_file(stream, stored, metadata)
    assert packed.packed_bytes(weight.reshape(shape)) == sum(part.nbytes for part in stored.values())
    assert 8 * file.stat().st_size / weight.numel() <= 5.9


@pytest.mark.parametrize(
    ("mask", "values", "words"),
    [
        (torch.tensor([[3]]), torch.ones(1), "2 bits set, but there are 1 values"),
        (torch.tensor([[1]]), torch.ones(2), "1 bits set, but there are 2 values"),
        (torch.tensor([[1 << 5]]), torch.ones(1), "beyond column 5"),
        (torch.tensor([[1, 0]]), torch.ones(1), "must be int64"),
        (torch.tensor([[1]], dtype=torch.int32), torch.ones(1), "must be int64"),
        (torch.tensor([[1], [0]]), torch.ones(1), "must be int64"),
    ],
)
def test_parts_that_do_not_fit_are_refused(mask: Tensor, values: Tensor, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        packed.unpack(mask, values, (1, 5))


@pytest.mark.parametrize("weight", [torch.zeros(2, 2, dtype=torch.int32), torch.tensor(1.0)])
def test_what_cannot_be_packed(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="floating point with at least one dimension"):
        packed.pack(weight)


def test_encode_wants_a_matrix() -> None:
    with pytest.raises(ValueError, match="2-D"):
        packed.encode(torch.zeros(2, 2, 2))


def test_shard_packs_the_named_and_keeps_the_rest() -> None:
    weight, norm = sparse(4, 64, 0.3), torch.ones(64)
    stored, metadata = packed.pack_shard({"a.weight": weight, "norm": norm, "e": weight}, {"a.weight", "e"})
    assert sorted(stored) == ["a.mask", "a.values", "e.mask", "e.values", "norm"]
    assert stored["norm"] is norm
    assert metadata == {"lowdim.format": "1", "lowdim.packed": '{"a.weight":[4,64],"e":[4,64]}'}


def test_taken_names_are_refused() -> None:
    tensors = {"a.weight": torch.zeros(1, 64), "a.mask": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"a tensor named 'a\.mask' already"):
        packed.pack_shard(tensors, {"a.weight"})


def test_two_weights_that_would_share_names_are_refused() -> None:
    tensors = {"a.weight": torch.zeros(1, 64), "a": torch.zeros(1, 64)}
    with pytest.raises(CheckpointError, match="already"):
        packed.pack_shard(tensors, {"a.weight", "a"})


def test_a_zero_row_matrix() -> None:
    weight = torch.zeros(0, 64)
    mask, values = packed.pack(weight)
    assert (mask.shape, values.shape) == ((0, 1), (0,))
    assert packed.unpack(mask, values, (0, 64)).shape == (0, 64)
    assert math.isclose(packed.packed_bytes(weight), 0)
