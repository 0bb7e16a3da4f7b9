from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.core.quantize import Grid, encode
from lowdim.models.disk import packed
from lowdim.models.disk.packed import Form, Packed, pack, pack_levels
from lowdim.models.disk.packed_header import lay_out, metadata_of, read_forms, united
from lowdim.models.disk.shard import read_header, read_tensor, write_file

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn]


def sparse(rows: int, cols: int, density: float, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight[torch.rand(rows, cols, generator=generator) >= density] = 0.0
    return weight.to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(packed.bits_of(a), packed.bits_of(b))


def rounded(weight: Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> Packed:
    made = encode(weight, weight != 0, grid)
    return pack_levels(made.levels, made.scales, Form(tuple(weight.shape), dtype, grid))


def all_rounded(weight: Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> Packed:
    made = encode(weight, None, grid)
    return pack_levels(made.levels, made.scales, Form(tuple(weight.shape), dtype, grid, masked=False))


def test_worked_example_of_the_format_page() -> None:
    weight = torch.zeros(2, 70, dtype=torch.bfloat16)
    weight[0, 0], weight[0, 65], weight[1, 69] = 1.0, 2.0, -0.5
    made = pack(weight)
    assert made.mask.tolist() == [[1, 1 << 1], [0, 1 << 5]]
    assert made.values.tolist() == [1.0, 2.0, -0.5]
    assert (made.form, made.nbytes) == (Form((2, 70), torch.bfloat16), 38)
    assert sorted(made.tensors()) == ["mask", "values"]


def test_worked_example_rounded() -> None:
    weight = torch.zeros(3, 70)
    weight[0, 0], weight[0, 1], weight[0, 65], weight[2, 69] = 127.0, -3.2, 63.5, -63.5
    eight = rounded(weight, Grid(8))
    assert eight.mask.tolist() == [[3, 1 << 1], [0, 0], [0, 1 << 5]]
    assert eight.values.tolist() == [127, -3, 127, -127]
    assert eight.scales is not None
    assert (eight.scales > 0).tolist() == [[True, True], [False, False], [False, True]]
    assert eight.weight()[0, 1] == -3
    assert eight.table is None
    four = rounded(weight, Grid(4))
    assert four.table is not None
    # rows 0 and 1 share three bytes, row 2 has no partner
    low = [code & 15 for code in four.values.tolist()]
    assert four.table[torch.tensor(low)].tolist() == [127, -3, 127, -127]
    assert [code >> 4 for code in four.values.tolist()] == [0, 0, 0, 0]
    assert torch.equal(four.levels(), eight.levels())


def test_a_column_63_sets_the_sign_bit() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 63] = 3.0
    made = pack(weight)
    assert made.mask.tolist() == [[-(1 << 63)]]
    assert same_bits(made.weight(), weight)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 63), (5, 64), (7, 65), (2, 128), (3, 129), (6, 576)])
def test_round_trip_is_exact(rows: int, cols: int, density: float, dtype: torch.dtype) -> None:
    weight = sparse(rows, cols, density, dtype)
    assert same_bits(pack(weight).weight(), weight)


@given(
    st.integers(0, 9),
    st.integers(1, 200),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.sampled_from(FLOATS[:3]),
)
@settings(max_examples=60, deadline=None)
def test_any_bit_pattern_survives(rows: int, cols: int, density: float, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    limits = torch.iinfo(integers)
    bits = torch.randint(limits.min, limits.max, (rows, cols), generator=generator).to(integers)
    bits[torch.rand(rows, cols, generator=generator) >= density] = 0
    weight = bits.view(dtype)  # NaN with payloads, infinities, subnormals, -0.0
    assert same_bits(pack(weight).weight(), weight)


@pytest.mark.parametrize("dtype", FLOATS)
def test_only_plus_zero_is_zero(dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).smallest_normal
    weight = torch.tensor([[0.0, -0.0, float("nan"), smallest]], dtype=torch.float64).to(dtype)
    assert packed.kept(weight).tolist() == [[False, True, True, True]]
    made = pack(weight)
    assert (made.mask.tolist(), len(made.values)) == ([[0b1110]], 3)


@given(
    st.integers(0, 9),
    st.integers(1, 200),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.sampled_from([Grid(8, 64), Grid(8, 128), Grid(4, 64), Grid(4, 128)]),
    st.sampled_from(FLOATS[:3]),
)
@settings(max_examples=60, deadline=None)
def test_codes_survive(rows: int, cols: int, density: float, seed: int, grid: Grid, dtype: torch.dtype) -> None:
    weight = sparse(rows, cols, density, torch.float32, seed)
    made = rounded(weight, grid, dtype)
    assert torch.equal(made.levels(), encode(weight, weight != 0, grid).levels)
    assert made.weight().dtype == dtype
    assert torch.equal(packed.kept(made.weight()), weight != 0)
    assert made.scales is not None
    again = pack_levels(made.levels(), made.scales, made.form)
    for part, tensor in made.tensors().items():
        assert same_bits(tensor, again.tensors()[part]) if tensor.is_floating_point() else True
        assert torch.equal(tensor, again.tensors()[part])


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sparse(37, 100, 0.3)
    whole, eight = pack(weight), rounded(weight, Grid(8)).weight()
    monkeypatch.setattr(packed, "_CHUNK", 250)
    chunked = pack(weight)
    assert torch.equal(whole.mask, chunked.mask)
    assert torch.equal(whole.values, chunked.values)
    assert same_bits(chunked.weight(), weight)
    assert torch.equal(rounded(weight, Grid(8)).weight(), eight)


def test_three_dimensions_and_strides() -> None:
    experts = sparse(12, 70, 0.4).reshape(3, 4, 70)
    assert same_bits(pack(experts).weight(), experts)
    transposed = sparse(70, 12, 0.4).T
    assert same_bits(pack(transposed).weight(), transposed.contiguous())


FORMS = [(8, True), (4, True), (8, False), (4, False), (3, False)]


@pytest.mark.parametrize(("bits", "masked"), FORMS)
def test_three_dimensions_have_a_table_each(bits: int, masked: bool) -> None:
    grid, experts = Grid(bits), sparse(12, 70, 0.4, torch.float32).reshape(3, 4, 70)
    each = [encode(expert, expert != 0 if masked else None, grid) for expert in experts]
    form = Form((3, 4, 70), torch.float32, grid, masked=masked)
    made = pack_levels(torch.cat([e.levels for e in each]), torch.cat([e.scales for e in each]), form)
    assert (made.table is None) if bits == 8 else (made.table is not None and made.table.shape == (3, 1 << bits))
    for expert, weight in zip(experts, made.weight(), strict=True):
        assert torch.equal(weight, (rounded if masked else all_rounded)(expert, grid).weight())


@pytest.mark.parametrize(("bits", "masked"), FORMS)
def test_a_transposed_weight_has_its_scales_along_the_inputs(bits: int, masked: bool) -> None:
    weight = sparse(12, 70, 0.4, torch.float32)  # [out, in], held as [in, out]
    made = encode(weight, weight != 0 if masked else None, Grid(bits))
    turned = pack_levels(made.levels, made.scales, Form((70, 12), torch.float32, Grid(bits), True, masked))
    assert turned.scales is not None
    assert (turned.form.rows, turned.form.cols, turned.scales.shape) == (12, 70, (12, 2))
    assert torch.equal(turned.weight(), (rounded if masked else all_rounded)(weight, Grid(bits)).weight().T)


@pytest.mark.parametrize("shape", [(576, 576), (192, 576), (1536, 576), (576, 1536)])
def test_bits_per_weight_on_disk(shape: tuple[int, int], tmp_path: Path) -> None:
    """Everything in the file counts: mask, values, header and metadata."""
    rows, cols = shape
    weight = torch.ones(shape, dtype=torch.bfloat16).reshape(-1)
    weight[torch.randperm(rows * cols, generator=torch.Generator().manual_seed(0))[: round(0.7 * rows * cols)]] = 0
    stored, metadata = lay_out({"layer.weight": pack(weight.reshape(shape))})
    file = tmp_path / "x.safetensors"
    with file.open("wb") as stream:
        write_file(stream, stored, metadata)
    assert packed.packed_bytes(weight.reshape(shape)) == sum(part.nbytes for part in stored.values())
    assert 8 * file.stat().st_size / weight.numel() <= 5.9


@pytest.mark.parametrize(("grid", "bits"), [(Grid(8, 64), 5.25), (Grid(8, 128), 5.125), (Grid(4, 64), 3.26)])
def test_bits_per_weight_rounded(grid: Grid, bits: float) -> None:
    """At 50%: a bit of mask, half a code, and 16 bits of scale per group; rows pair up imperfectly in 4 bits."""
    weight = sparse(512, 1536, 0.5, torch.float32)
    made = rounded(weight, grid)
    assert 8 * made.nbytes / weight.numel() == pytest.approx(bits, abs=0.03)


@pytest.mark.parametrize(
    ("mask", "values", "words"),
    [
        (torch.tensor([[3]]), torch.ones(1), "the mask has 2 bits set"),
        (torch.tensor([[1]]), torch.ones(2), "the mask has 1 bits set"),
        (torch.tensor([[1 << 5]]), torch.ones(1), "beyond column 5"),
        (torch.tensor([[1, 0]]), torch.ones(1), "must be int64"),
        (torch.tensor([[1]], dtype=torch.int32), torch.ones(1), "must be int64"),
        (torch.tensor([[1], [0]]), torch.ones(1), "must be int64"),
        (torch.tensor([[1]]), torch.ones(1).bfloat16(), "values must be float32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(mask: Tensor, values: Tensor, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        Packed(Form((1, 5), torch.float32), mask, values).weight()


def swapped(table: Tensor) -> Tensor:
    return table[[1, 0, *range(2, len(table))]]


def test_worked_example_without_a_mask() -> None:
    levels = torch.tensor([[127, 0, -3], [-127, 5, 0], [1, 0, 2]], dtype=torch.int8)
    scales = torch.tensor([[1.0], [0.5], [2.0]]).bfloat16()
    wanted = [[127.0, 0.0, -3.0], [-63.5, 2.5, 0.0], [2.0, 0.0, 4.0]]
    eight, four, three = (
        pack_levels(levels, scales, Form((3, 3), torch.float32, Grid(bits), masked=False)) for bits in (8, 4, 3)
    )
    for made in (eight, four, three):
        assert made.mask is None
        assert torch.equal(made.levels(), levels)
        assert made.weight().tolist() == wanted
    assert torch.equal(eight.values, levels)
    assert sorted(eight.tensors()) == ["scales", "values"]
    assert four.table is not None
    # the seven levels that occur and the nine smallest others; rows 0 and 1 share bytes, row 2 has no partner
    assert four.table.tolist() == [-127, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 127]
    assert four.values.tolist() == [[0x0F, 0xD8, 0x85], [9, 8, 10]]
    assert three.table is not None
    assert three.table.tolist() == [-127, -3, -1, 0, 1, 2, 5, 127]
    # rows 0 and 1 in the bits 0-2 and 3-5 of the first 64 bytes, row 2 in the bits 0-2 of the next
    assert three.values.shape == (1, 192)
    assert three.values[0, :3].tolist() == [7 | 0 << 3, 3 | 6 << 3, 1 | 3 << 3]
    assert three.values[0, 64:67].tolist() == [4, 3, 5]


@given(
    st.integers(0, 19),
    st.integers(1, 200),
    st.integers(0, 2**31),
    st.sampled_from([Grid(8, 64), Grid(8, 128), Grid(4, 64), Grid(4, 128), Grid(3, 64), Grid(3, 128)]),
    st.sampled_from(FLOATS[:3]),
)
@settings(max_examples=60, deadline=None)
def test_codes_of_all_weights_survive(rows: int, cols: int, seed: int, grid: Grid, dtype: torch.dtype) -> None:
    weight = sparse(rows, cols, 0.8, torch.float32, seed)
    levels = encode(weight, None, grid).levels
    made = all_rounded(weight, grid, dtype)
    assert made.check().tolist() == [cols] * rows
    assert torch.equal(made.levels(), levels)
    assert made.weight().dtype == dtype
    assert not made.weight()[weight == 0].any()
    assert made.values.shape == made.form.codes_shape


@pytest.mark.parametrize(("bits", "size"), [(8, 8.25), (4, 4.25), (3, 3.25)])
def test_bits_per_weight_without_a_mask(bits: int, size: float) -> None:
    made = all_rounded(torch.randn(512, 576), Grid(bits))
    assert 8 * made.nbytes / (512 * 576) == pytest.approx(size, abs=1e-3)


@pytest.mark.parametrize(
    ("bits", "part", "change", "words"),
    [
        (8, "values", lambda v: v[1:], r"codes must be int8 \[5, 70\]"),
        (8, "values", lambda v: v.index_fill(0, torch.tensor(3), -128), "a code is -128"),
        (4, "values", lambda v: v[:, 1:], r"codes must be uint8 \[3, 70\]"),
        (4, "values", lambda v: v | 240, "beyond the last row"),
        (4, "table", swapped, "16 ascending levels from -127 to 127"),
        (3, "values", lambda v: v[:, 1:], r"codes must be uint8 \[1, 384\]"),
        (3, "values", lambda v: v | 64, "beyond the last row or column"),
        (3, "table", lambda t: t[:7], r"table must be int8 \[8\]"),
        (3, "table", swapped, "8 ascending levels from -127 to 127"),
        (3, "scales", lambda s: -s, "negative, NaN or Inf"),
        (3, "scales", lambda s: s.float(), "scales must be bfloat16"),
    ],
)
def test_damaged_codes_of_all_weights_are_refused(bits: int, part: str, change: Any, words: str) -> None:
    made = all_rounded(torch.randn(5, 70), Grid(bits))
    made.weight()
    with pytest.raises(CheckpointError, match=words):
        replace(made, **{part: change(getattr(made, part))}).weight()


def test_what_is_stored_without_a_mask() -> None:
    with pytest.raises(CheckpointError, match="3 bits are stored without a mask only"):
        Form((1, 3), torch.float32, Grid(3))
    with pytest.raises(CheckpointError, match="only a rounded weight"):
        Form((1, 3), torch.float32, masked=False)
    form = Form((1, 9), torch.float32, Grid(3), masked=False)
    with pytest.raises(ValueError, match="at most 8, got 9"):
        pack_levels(torch.arange(9, dtype=torch.int8)[None], torch.ones(1, 1).bfloat16(), form)


@pytest.mark.parametrize(
    ("bits", "part", "change", "words"),
    [
        (8, "values", lambda v: v[1:], "codes must be int8"),
        (8, "values", lambda v: v.view(torch.uint8), "codes must be int8"),
        (8, "values", lambda v: v.index_fill(0, torch.tensor(3), 0), "a code is 0 or -128"),
        (8, "values", lambda v: v.index_fill(0, torch.tensor(3), -128), "a code is 0 or -128"),
        (8, "scales", lambda s: s[:, 1:], "scales must be bfloat16"),
        (8, "scales", lambda s: s.float(), "scales must be bfloat16"),
        (8, "scales", lambda s: s * float("nan"), "negative, NaN or Inf"),
        (8, "scales", lambda s: -s, "negative, NaN or Inf"),
        (8, "scales", lambda s: s * 0, "zero though its group keeps a weight"),
        (8, "scales", lambda s: s + 1, "or the other way round"),
        (4, "values", lambda v: torch.cat([v, v[:1]]), "codes must be uint8"),
        (4, "values", lambda v: v | 240, "where there is no weight"),
        (4, "table", lambda t: t[:15], "table must be int8"),
        (4, "table", swapped, "16 ascending levels"),
        (4, "table", lambda t: t.index_fill(0, torch.tensor(0), -128), "16 ascending levels"),
    ],
)
def test_damaged_codes_are_refused(bits: int, part: str, change: Any, words: str) -> None:
    weight = sparse(5, 70, 0.5, torch.float32)
    weight[0, :64] = 0
    made = rounded(weight, Grid(bits))
    made.weight()
    with pytest.raises(CheckpointError, match=words):
        replace(made, **{part: change(getattr(made, part))}).weight()


def test_a_table_with_a_zero_is_refused() -> None:
    made = rounded(sparse(4, 64, 0.5, torch.float32), Grid(4))
    with pytest.raises(CheckpointError, match="no 0"):
        replace(made, table=torch.arange(-8, 8, dtype=torch.int8)).weight()


@pytest.mark.parametrize("weight", [torch.zeros(2, 2, dtype=torch.int32), torch.tensor(1.0)])
def test_what_cannot_be_packed(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="floating point with at least one dimension"):
        pack(weight)


def test_a_file_packs_the_packed_and_keeps_the_rest() -> None:
    weight, norm = sparse(4, 64, 0.3), torch.ones(64)
    stored, metadata = lay_out({"a.weight": pack(weight), "norm": norm, "e": pack(weight)})
    assert sorted(stored) == ["a.mask", "a.values", "e.mask", "e.values", "norm"]
    assert stored["norm"] is norm
    assert metadata == {"lowdim.format": "1", "lowdim.packed": '{"a.weight":[4,64],"e":[4,64]}'}
    assert lay_out({"norm": norm}) == ({"norm": norm}, {})


def test_a_file_says_how_weights_were_rounded(tmp_path: Path) -> None:
    weight = sparse(4, 64, 0.3, torch.float32)
    whole = {"a.weight": rounded(weight, Grid(4, 128), torch.bfloat16), "b.weight": pack(weight)}
    stored, metadata = lay_out(whole)
    assert sorted(stored) == ["a.mask", "a.scales", "a.table", "a.values", "b.mask", "b.values"]
    assert metadata["lowdim.format"] == "2"
    assert metadata["lowdim.quantized"] == '{"a.weight":{"bits":4,"group":128,"dtype":"BF16"}}'
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_file(file, stored, metadata)
    header = read_header(tmp_path / "x.safetensors")
    forms = read_forms("x", header)
    assert forms == {name: made.form for name, made in whole.items()}
    turned = Form((3, 5), torch.float16, Grid(8), True)
    assert '"transposed":true' in metadata_of({"t": turned})["lowdim.quantized"]
    assert united([header, header]) == header.metadata
    for part, tensor in whole["a.weight"].tensors().items():
        assert torch.equal(read_tensor(header.tensors[f"a.{part}"]), tensor)


def test_a_file_says_what_has_no_mask(tmp_path: Path) -> None:
    weight = sparse(9, 70, 0.3, torch.float32)
    whole = {
        "a.weight": all_rounded(weight, Grid(3, 128), torch.bfloat16),
        "b.weight": rounded(weight, Grid(4)),
        "c.weight": all_rounded(weight, Grid(8)),
    }
    stored, metadata = lay_out(whole)
    assert [name for name in sorted(stored) if name[0] != "b"] == [
        *("a.scales", "a.table", "a.values"),
        *("c.scales", "c.values"),
    ]
    assert metadata["lowdim.format"] == "3"
    assert '"a.weight":{"bits":3,"group":128,"dtype":"BF16","dense":true}' in metadata["lowdim.quantized"]
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_file(file, stored, metadata)
    header = read_header(tmp_path / "x.safetensors")
    assert read_forms("x", header) == {name: made.form for name, made in whole.items()}
    assert united([header, header]) == header.metadata
    for name in ("a", "c"):
        short = replace(header, tensors={n: t for n, t in header.tensors.items() if n != f"{name}.scales"})
        with pytest.raises(CheckpointError, match="lacks its scales"):
            read_forms("x", short)
    other = replace(header, tensors=header.tensors | {"c.values": header.tensors["c.scales"]})
    with pytest.raises(CheckpointError, match=r"codes of 'c\.weight' do not fit"):
        read_forms("x", other)
    newer = replace(header, metadata=header.metadata | {"lowdim.format": "5"})
    with pytest.raises(CheckpointError, match=r"format '5'; this lowdim reads 1 to 4\. Upgrade"):
        read_forms("x", newer)


def test_taken_names_are_refused() -> None:
    tensors = {"a.weight": pack(torch.zeros(1, 64)), "a.mask": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"a tensor named 'a\.mask' already"):
        lay_out(tensors)


def test_two_weights_that_would_share_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match="already"):
        lay_out({"a.weight": pack(torch.zeros(1, 64)), "a": pack(torch.zeros(1, 64))})


@pytest.mark.parametrize("grid", [None, Grid(8), Grid(4)])
def test_a_zero_row_matrix(grid: Grid | None) -> None:
    weight = torch.zeros(0, 64)
    made = pack(weight) if grid is None else rounded(weight, grid)
    assert (made.mask.shape, made.values.shape) == ((0, 1), (0,))
    assert made.weight().shape == (0, 64)
    assert packed.packed_bytes(weight) == 0
    if grid is not None:
        form = Form((0, 4, 64), torch.float32, grid)
        none = pack_levels(torch.zeros(0, 64, dtype=torch.int8), torch.zeros(0, 1, dtype=torch.bfloat16), form)
        assert none.weight().shape == (0, 4, 64)
