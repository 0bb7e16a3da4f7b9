from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.infer.conftest import without_kernels
from torch import Tensor

from lowdim.core.errors import CheckpointError, LowdimError, NumericalError
from lowdim.core.quantize import Grid
from lowdim.infer.sparse import fallback
from lowdim.infer.sparse import matrix as matrices
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.storage import KINDS, PACKABLE, QUANTISED, VALUES, kind_of
from lowdim.models.disk.packed import Form, Packed, pack

# Largest error over the largest output: rounding of the weights and, for few tokens, of the activations.
ROUNDING = {"fp32": 1e-6, "bf16": 1e-2, "int8": 3e-2, "int4": 0.25, "int3": 0.5}
SHAPES = [(1, 1), (5, 63), (6, 64), (7, 65), (33, 200), (64, 576), (3, 1000)]
FORMS = [(kind, packed) for kind in KINDS for packed in (True, False) if kind in PACKABLE or not packed]


def holed(rows: int, cols: int, density: float = 0.4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    return weight * (torch.rand(rows, cols, generator=generator) < density)


def quantised(x: Tensor, group: int) -> Tensor:
    """Activations as int8 per token and group, in fp64: written apart from the package."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for start in range(0, x.shape[1], group):
            part = x[token, start : start + group].float()
            scale = float(part.abs().max()) / 127
            if scale > 0:
                out[token, start : start + group] = torch.round(part / scale).double() * scale
    return out


def exact(matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product that a kernel means, in fp64."""
    seen = {"fp32": x.double(), "bf16": x.bfloat16().double()}.get(matrix.kind)
    product = (quantised(x, matrix.group) if seen is None else seen) @ matrix.unpack().double().t()
    return product if bias is None else product + bias


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3))


@pytest.mark.parametrize(("kind", "packed"), FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [64, 128])
def test_few_tokens(level: str, kind: str, packed: bool, shape: tuple[int, int], group: int) -> None:
    weight, bias = holed(*shape), torch.randn(shape[0])
    matrix = Matrix.from_dense(weight, kind, group, bias=bias, packed=packed)
    x = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(1))
    got = matrix.linear(x)
    # A code on the edge between two may fall either way: 1/254 of an activation. All else is summation in fp32.
    assert apart(got, exact(matrix, x, bias)) < (2e-5 if kind in ("fp32", "bf16") else 4e-3)
    wanted = x.double() @ weight.double().t() + bias
    assert apart(got, wanted) < ROUNDING[kind]


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_many_tokens_and_tiles(level: str, kind: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "TILE_BYTES", 1)  # 16 rows to a tile
    weight, bias = holed(70, 130), torch.randn(70)
    matrix = Matrix.from_dense(weight, kind, bias=bias, packed=packed)
    few = matrices.DIRECT_FP32 if (kind, level) == ("fp32", "avx512") else matrices.DIRECT_TOKENS
    tiles: list[int] = []
    real = Matrix._tiled
    monkeypatch.setattr(Matrix, "_tiled", lambda self, x: (tiles.append(len(x)), real(self, x))[1])
    matrix.linear(torch.randn(few, 130))
    x = torch.randn(few + 1, 130)
    wanted = x.double() @ matrix.unpack().double().t() + bias
    assert apart(matrix.linear(x), wanted) < (1e-6 if kind == "fp32" else 1.5e-2)
    assert tiles == [few + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_tokens_does_not_matter(level: str, kind: str) -> None:
    matrix = Matrix.from_dense(holed(40, 192), kind, packed=kind in PACKABLE)
    x = torch.randn(24, 192)
    together = matrix.linear(x)
    for token in range(24):
        assert apart(matrix.linear(x[token]), together[token].double()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_leading_dimensions(level: str, kind: str, dtype: torch.dtype) -> None:
    matrix = Matrix.from_dense(holed(20, 100), kind, packed=kind in PACKABLE)
    x = torch.randn(2, 3, 100).to(dtype)
    got = matrix.linear(x)
    assert got.dtype == dtype
    assert got.shape == (2, 3, 20)
    flat = matrix.linear(x.float().reshape(6, 100)).reshape(2, 3, 20)
    assert torch.allclose(got.float(), flat.to(dtype).float(), rtol=1e-2, atol=1e-3)
    assert matrix.linear(x[0, 0]).shape == (20,)
    assert matrix.linear(x[:0]).shape == (0, 3, 20)
    many = matrix.linear(torch.randn(100, 1, 100).to(dtype))
    assert (many.shape, many.dtype) == ((100, 1, 20), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_activations(level: str, kind: str) -> None:
    matrix = Matrix.from_dense(holed(20, 100), kind, packed=kind in PACKABLE)
    wide = torch.randn(4, 200)
    for x in (
        wide[:, ::2],
        wide[:, :100],
        wide[:, 100:],
        torch.randn(100, 4).t(),
        torch.randn(1, 100).expand(3, 100),
    ):
        one, other = matrix.linear(x), matrix.linear(x.contiguous())
        # torch multiplies by strides in another order on some processors
        assert torch.allclose(one, other, atol=1e-5) if level == "torch" else torch.equal(one, other)


@pytest.mark.parametrize(("kind", "packed"), FORMS)
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_empty_and_full(level: str, kind: str, packed: bool, density: float) -> None:
    weight = holed(9, 150, density)
    matrix = Matrix.from_dense(weight, kind, packed=packed)
    x = torch.randn(3, 150)
    assert apart(matrix.linear(x), x.double() @ weight.double().t()) < ROUNDING[kind]
    # a dense int4 rounds small weights to zero, an int3 more of them
    assert matrix.sparsity == pytest.approx(1 - density, abs=0.3 if kind == "int3" else 0.15)


@pytest.mark.parametrize(("kind", "packed"), FORMS)
@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0)])
def test_nothing_to_multiply(level: str, kind: str, packed: bool, shape: tuple[int, int]) -> None:
    matrix = Matrix.from_dense(torch.zeros(shape), kind, bias=torch.ones(shape[0]), packed=packed)
    assert torch.equal(matrix.linear(torch.ones(2, shape[1])), torch.ones(2, shape[0]))
    assert matrix.unpack().shape == shape


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(FORMS),
    rows=st.integers(1, 40),
    cols=st.integers(1, 300),
    tokens=st.integers(1, 12),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_torch_and_the_kernels_agree(
    form: tuple[str, bool], rows: int, cols: int, tokens: int, density: float, seed: int
) -> None:
    kind, packed = form
    matrix = Matrix.from_dense(holed(rows, cols, density, seed), kind, packed=packed)
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(matrix.unpack(), fallback.unpack(matrix, 0, rows, torch.float32))
    begin = seed % rows
    assert torch.equal(matrix.unpack(begin, rows), matrix.unpack()[begin:])
    reference = fallback.multiply(matrix, x)
    largest = float((x.abs() @ matrix.unpack().abs().t()).max().clamp_min(1e-6))
    assert float((matrix.linear(x) - reference).abs().max()) / largest < 1e-5


def test_nan_and_infinity_stay_in_their_token(level: str) -> None:
    for kind in KINDS:
        matrix = Matrix.from_dense(holed(8, 200, 1.0), kind, packed=kind in PACKABLE)
        x = torch.randn(3, 200)
        clean = matrix.linear(x)
        x[1, 70] = torch.nan
        got = matrix.linear(x)
        assert torch.equal(got[[0, 2]], clean[[0, 2]])
        assert got[1].isnan().all()
        x[1, 70] = torch.inf
        assert not matrix.linear(x)[1].isfinite().any()


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_unpacking(level: str, kind: str, packed: bool) -> None:
    weight = holed(31, 100)
    matrix = Matrix.from_dense(weight, kind, packed=packed)
    whole = matrix.unpack()
    assert torch.equal(whole != 0, weight != 0) or not packed
    assert apart(whole, weight.double()) < ROUNDING[kind]
    if kind in ("fp32", "bf16"):
        assert torch.equal(whole, weight.to(VALUES[kind]).float())
    assert torch.equal(matrix.unpack(3, 20), whole[3:20])
    assert torch.equal(matrix.unpack(4, 9, torch.bfloat16), whole[4:9].bfloat16())
    with pytest.raises(LowdimError, match=r"rows must lie in \[0, 31\]"):
        matrix.unpack(3, 32)


def test_a_mask_of_ones_own(level: str) -> None:
    weight = holed(10, 70, 1.0)
    mask = torch.rand(10, 70) < 0.5
    for kind in PACKABLE:
        assert torch.equal(Matrix.from_dense(weight, kind, mask=mask).unpack() != 0, mask)


def test_pruned_to_minus_zero(level: str) -> None:
    """``weight * mask`` leaves -0.0 where the weight was negative."""
    weight = -torch.rand(4, 64) * (torch.arange(64) % 2)
    assert Matrix.from_dense(weight).sparsity == 0.5


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_sizes(kind: str, packed: bool) -> None:
    matrix = Matrix.from_dense(holed(64, 128, 0.25), kind, packed=packed)
    assert matrix.sparsity == pytest.approx(0.75, abs=0.1 if kind == "int3" else 0.05)
    assert matrix.nbytes == sum(tensor.nbytes for tensor in matrix.tensors().values())
    per_weight = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 0.5, "int3": 0.375}[kind]
    expected = 8192 * (per_weight * 0.25 + 1 / 8 if packed else per_weight)
    assert matrix.nbytes == pytest.approx(expected, rel=0.35)
    assert matrix.kernel.startswith(f"{'packed' if packed else 'dense'} {kind}, ")
    for name in ("mask", "values") if packed else ():
        assert matrix.tensors()[name].data_ptr() % 64 == 0


def test_dense_values_are_shared() -> None:
    weight = torch.randn(8, 64).bfloat16()
    assert Matrix.from_dense(weight, packed=False).values.data_ptr() == weight.data_ptr()


def test_stored_weights(level: str) -> None:
    weight = holed(12, 70).bfloat16()
    x = torch.randn(2, 70)
    made = Matrix.from_packed(pack(weight))
    assert torch.equal(made.unpack(), weight.float())
    half = Matrix.from_packed(pack(weight.half()))
    assert half.kind == "fp32"
    assert torch.equal(half.unpack(), weight.half().float())
    for kind in KINDS:
        matrix = Matrix.from_dense(weight, kind, packed=kind in PACKABLE)
        parts = {k: v for k, v in matrix.tensors().items() if k not in ("row_ptr", "bias")}
        again = Matrix.from_stored(kind, (12, 70), parts)
        assert torch.equal(again.linear(x), matrix.linear(x))


def damaged(kind: str, packed: bool) -> list[tuple[dict[str, Tensor], str]]:
    matrix = Matrix.from_dense(holed(6, 70), kind, packed=packed)
    good = {k: v for k, v in matrix.tensors().items() if k not in ("row_ptr", "bias")}
    cases = [
        ({**good, "values": good["values"][:-1]}, "values|codes"),
        ({"values": good["values"][:0]}, "has|must"),
    ]
    if packed:
        beyond, more = good["mask"].clone(), good["mask"].clone()
        beyond[2, 1] |= 1 << 40
        more[2, 0] = -1
        cases += [
            ({**good, "mask": beyond}, "beyond column 70"),
            ({**good, "mask": more}, "must be"),
            ({**good, "mask": good["mask"].int()}, "mask must be int64"),
            ({**good, "mask": good["mask"][:, :1]}, "mask must be int64"),
        ]
    if kind in QUANTISED:
        cases += [
            ({**good, "scales": good["scales"][:, :1]}, "scales must be"),
            ({**good, "scales": good["scales"].float()}, "scales must be"),
        ]
    if kind in ("int4", "int3"):
        cases += [({**good, "table": good["table"][:4]}, "table must be")]
    return cases


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_damage_is_found_before_any_product(level: str, kind: str, packed: bool) -> None:
    for tensors, message in damaged(kind, packed):
        with pytest.raises(CheckpointError, match=message):
            Matrix.from_stored(kind, (6, 70), tensors)


def test_a_transposed_store() -> None:
    form = Form((70, 6), torch.float32, Grid(8), transposed=True)
    matrix = Matrix.from_dense(holed(6, 70), "int8")
    assert matrix.scales is not None and matrix.mask is not None
    stored = Packed(form, matrix.mask, matrix.values, matrix.scales)
    assert torch.equal(Matrix.from_packed(stored).unpack(), matrix.unpack())


def test_refusals() -> None:
    weight = torch.randn(4, 64)
    matrix = Matrix.from_dense(weight)
    with pytest.raises(LowdimError, match=r"dtype must be one of .*'int9'.*Did you mean"):
        Matrix.from_dense(weight, "int9")
    with pytest.raises(LowdimError, match="dtype must be one of"):
        Matrix.from_dense(weight, torch.int8)
    with pytest.raises(LowdimError, match="group must be 64 or 128"):
        Matrix.from_dense(weight, "int8", group=32)
    with pytest.raises(LowdimError, match="floating-point matrix"):
        Matrix.from_dense(weight[0])
    with pytest.raises(LowdimError, match="floating-point matrix"):
        Matrix.from_dense(weight.int())
    with pytest.raises(LowdimError, match="mask must be bool"):
        Matrix.from_dense(weight, mask=weight)
    with pytest.raises(LowdimError, match="packed=False"):
        Matrix.from_dense(weight, mask=weight > 0, packed=False)
    with pytest.raises(LowdimError, match=r"int3 weights have no mask.*packed=False"):
        Matrix.from_dense(weight, "int3")
    with pytest.raises(LowdimError, match="int3 weights have no mask"):
        Matrix.from_dense(torch.zeros(0, 64), "int3", mask=torch.zeros(0, 64, dtype=torch.bool))
    with pytest.raises(LowdimError, match="on meta"):
        Matrix.from_dense(weight.to("meta"))
    with pytest.raises(CheckpointError, match=r"bias must be fp32 \[4\]"):
        Matrix.from_dense(weight, bias=torch.ones(5))
    with pytest.raises(NumericalError, match="NaN"):
        Matrix.from_dense(weight / 0, "int8")
    with pytest.raises(LowdimError, match="fp32, bf16 or fp16 activations"):
        matrix.linear(torch.ones(64, dtype=torch.float64))
    with pytest.raises(LowdimError, match=r"\[\.\.\., 64\], got \[2, 63\]"):
        matrix.linear(torch.ones(2, 63))
    with pytest.raises(LowdimError, match=r"got \[\]"):
        matrix.linear(torch.tensor(1.0))
    with pytest.raises(LowdimError, match="activations on meta"):
        matrix.linear(torch.ones(2, 64, device="meta"))


def test_names_of_kinds() -> None:
    assert [kind_of(kind) for kind in KINDS] == list(KINDS)
    assert kind_of(torch.float32) == "fp32"


def test_threads_do_not_share_their_scratch() -> None:
    matrix = Matrix.from_dense(holed(300, 300), "fp32")
    inputs = [torch.randn(100, 300) for _ in range(4)]
    wanted = [matrix.linear(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(matrix.linear(inputs[index]), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inference_mode_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch made in inference mode serves outside of it."""
    without_kernels(monkeypatch)
    matrix = Matrix.from_dense(holed(10, 2000), "bf16")
    with torch.inference_mode():
        inside = matrix.linear(torch.ones(100, 2000))
    assert torch.equal(matrix.linear(torch.ones(100, 2000)), inside)
