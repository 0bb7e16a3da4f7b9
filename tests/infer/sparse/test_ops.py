from __future__ import annotations

import gc
import io
from collections.abc import Callable

import pytest
import torch
from tests.turns import turns
from torch import Tensor, nn

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.infer.sparse import ops
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.matrix import Matrix
from lowdim.infer.sparse.ops import GradientError, packed_linear
from lowdim.infer.sparse.storage import KINDS, PACKABLE

FORMS = [(kind, packed) for kind in KINDS for packed in (True, False) if kind in PACKABLE or not packed]


def layer(kind: str = "bf16", packed: bool = True, bias: bool = True, seed: int = 0) -> SparseLinear:
    torch.manual_seed(seed)
    linear = nn.Linear(96, 20, bias=bias)
    with torch.no_grad():
        linear.weight.mul_(torch.rand(20, 96) < 0.3)
    return SparseLinear.from_linear(linear, kind, packed=packed)


class Net(nn.Module):
    def __init__(self, kind: str, packed: bool) -> None:
        super().__init__()
        self.first, self.norm = layer(kind, packed), nn.LayerNorm(20)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.first(x)).relu().sum(-1)
        return out


def arguments(matrix: Matrix) -> tuple[Tensor | int | None, ...]:
    sizes = (KINDS.index(matrix.kind), matrix.group, matrix.rows)
    return (matrix.values, matrix.mask, matrix.scales, matrix.table, matrix.bias, *sizes)


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_the_operator_passes_torchs_own_checks(kind: str, packed: bool) -> None:
    matrix = layer(kind, packed).matrix
    for x in (torch.randn(2, 3, 96), torch.randn(96).bfloat16()):
        torch.library.opcheck(packed_linear, (x, *arguments(matrix)))


@pytest.mark.parametrize("form", turns(FORMS, of=3), ids=str)
def test_compiled_as_one_graph(form: tuple[str, bool]) -> None:
    kind, packed = form
    net = Net(kind, packed)
    compiled: Callable[[Tensor], Tensor] = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        for shape in ((1, 96), (2, 5, 96), (40, 96)):
            x = torch.randn(shape)
            assert torch.equal(compiled(x), net(x))
    torch._dynamo.reset()


@pytest.mark.parametrize(("kind", "packed", "strict"), [*((*form, False) for form in FORMS), ("int4", True, True)])
def test_exported_saved_and_read_again(kind: str, packed: bool, strict: bool) -> None:
    net = Net(kind, packed).requires_grad_(False)
    x = torch.randn(4, 96)
    tokens = torch.export.Dim("tokens", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: tokens},), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for count in (1, 4, 64):
        x = torch.randn(count, 96)
        assert torch.equal(again(x), net(x))


def test_shapes_without_data() -> None:
    fake = torch._subclasses.FakeTensorMode()
    net = layer()
    with fake:
        x = torch.empty(2, 7, 96, dtype=torch.bfloat16)
        held = [None if t is None else fake.from_tensor(t) for t in (net.values, net.mask, None, None, net.bias)]
        y = packed_linear(x, *held, 1, 0, 20)
    assert (y.shape, y.dtype) == ((2, 7, 20), torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_refused(kind: str) -> None:
    net = layer(kind, kind in PACKABLE)
    x = torch.randn(2, 96, requires_grad=True)
    with pytest.raises(GradientError, match=r"torch\.inference_mode.*keep the dense model"):
        net(x)
    with pytest.raises(GradientError):
        net(torch.randn(2, 96) * torch.ones(1, requires_grad=True))
    compiled: Callable[[Tensor], Tensor] = torch.compile(net, backend="aot_eager")
    with pytest.raises(LowdimError, match="no gradients"):
        compiled(x)
    torch._dynamo.reset()
    with torch.no_grad():
        assert net(x).requires_grad is False
    with torch.inference_mode():
        net(x)
    assert net(torch.randn(2, 96)).requires_grad is False


def test_under_vmap() -> None:
    net, x = layer(), torch.randn(3, 5, 96)
    assert torch.allclose(torch.vmap(net)(x), net(x))


def test_matrices_are_forgotten_with_their_tensors() -> None:
    gc.collect()
    before = len(ops._known)
    layers = [layer(seed=i) for i in range(5)]
    for one in layers:
        one(torch.randn(96))
    assert len(ops._known) == before + 5
    del layers, one
    gc.collect()
    assert len(ops._known) == before


def test_addresses_that_are_used_again() -> None:
    """A tensor at the address of one that is gone is another matrix."""
    x = torch.randn(96)
    for seed in range(30):
        one = layer("int8", seed=seed)
        fresh = Matrix.from_stored(
            "int8", (20, 96), {"values": one.values, "mask": one.mask, "scales": one.scales}, 64, one.bias
        )
        assert torch.equal(one(x), fresh.linear(x))


def test_the_operator_checks_what_it_is_given() -> None:
    good = layer("int8")
    with pytest.raises(CheckpointError, match="codes must be"):
        packed_linear(torch.randn(96), good.values[:-1].clone(), good.mask, good.scales, None, None, 2, 64, 20)
    with pytest.raises(CheckpointError, match="mask must be"):
        packed_linear(torch.randn(97), good.values, good.mask, good.scales, None, None, 2, 64, 200)
