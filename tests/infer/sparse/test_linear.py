from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import lowdim
from lowdim.core.errors import LowdimError
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.storage import KINDS, PACKABLE

FORMS = [(kind, packed) for kind in KINDS for packed in (True, False) if kind in PACKABLE or not packed]
X = torch.randn(3, 130, generator=torch.Generator().manual_seed(5))


def linear(seed: int = 0, bias: bool = True, density: float = 0.3) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(130, 21, bias=bias)
    with torch.no_grad():
        made.weight.mul_(torch.rand(21, 130) < density)
    return made


def sparse(kind: str = "int8", packed: bool = True, seed: int = 0, density: float = 0.3) -> SparseLinear:
    return lowdim.SparseLinear.from_linear(linear(seed, density=density), dtype=kind, packed=packed)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_from_linear(level: str, kind: str, packed: bool, bias: bool) -> None:
    dense = linear(bias=bias)
    before = dense.weight.clone()
    made = SparseLinear.from_linear(dense, kind, packed=packed)
    with torch.no_grad():
        wanted = dense(X)
    limit = {"fp32": 1e-6, "bf16": 1e-2, "int8": 3e-2, "int4": 0.2, "int3": 0.4}[kind]
    assert float((made(X) - wanted).abs().max() / wanted.abs().max()) < limit
    assert torch.equal(dense.weight, before)
    assert (made.in_features, made.out_features, made.dtype) == (130, 21, kind)
    assert (made.bias is not None) == bias
    assert made.kernel == f"{'packed' if packed else 'dense'} {kind}, {level}"
    assert not made.training


def test_from_conv1d() -> None:
    conv = Conv1D(21, 130)
    made = SparseLinear.from_linear(conv, "fp32")
    with torch.no_grad():
        assert torch.allclose(made(X), conv(X), atol=1e-5)
    with pytest.raises(LowdimError, match="takes a Linear or a Conv1D, got Embedding"):
        SparseLinear.from_linear(nn.Embedding(3, 4))


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_the_weight_can_be_read(kind: str, packed: bool) -> None:
    made = sparse(kind, packed)
    assert made.weight.shape == (21, 130)
    assert made.weight.dtype == (torch.float32 if kind == "fp32" else torch.bfloat16)
    assert made.weight.device.type == "cpu"
    assert torch.allclose(made.weight.float(), made.matrix.unpack(), rtol=1e-2)
    assert "weight" not in made.state_dict()


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_the_state_goes_through_safetensors(kind: str, packed: bool, tmp_path: Path) -> None:
    made, other = sparse(kind, packed), sparse(kind, packed, seed=1, density=0.6)
    names = {"values", "bias"} | ({"mask"} if packed else set()) | ({"scales"} if kind[0] == "i" else set())
    names |= {"table"} if kind in ("int4", "int3") else set()
    assert set(made.state_dict()) == names
    save_file(made.state_dict(), tmp_path / "layer.safetensors")
    assert other.load_state_dict(load_file(tmp_path / "layer.safetensors")).missing_keys == []
    assert torch.equal(other(X), made(X))
    assert other.sparsity == made.sparsity


def test_a_state_that_does_not_fit() -> None:
    made = sparse("int8")
    before = made(X)
    state = made.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*scales"):
        made.load_state_dict({k: v for k, v in state.items() if k != "scales"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight"):
        made.load_state_dict(state | {"weight": torch.ones(21, 130)})
    with pytest.raises(RuntimeError, match="codes must be"):
        made.load_state_dict(state | {"values": state["values"][:-1]})
    with pytest.raises(RuntimeError, match="got float32"):
        made.load_state_dict(sparse("fp32").state_dict() | {"scales": state["scales"]})
    assert torch.equal(made(X), before)
    holder = nn.ModuleDict({"one": made, "two": nn.Linear(2, 2)})
    assert holder.load_state_dict(holder.state_dict()).unexpected_keys == []


@pytest.mark.parametrize(("kind", "packed"), FORMS)
def test_copies(kind: str, packed: bool) -> None:
    made = sparse(kind, packed)
    wanted = made(X)
    for again in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(again(X), wanted)
    twin = copy.deepcopy(made)
    assert twin.values.data_ptr() != made.values.data_ptr()


CASTS: list[Callable[[nn.Module], nn.Module]] = [
    lambda m: m.to(torch.float32),
    lambda m: m.to(torch.bfloat16),
    lambda m: m.half(),
    lambda m: m.double(),
    lambda m: m.to("cpu", torch.float16),
    lambda m: m.to("cpu"),
    lambda m: m.cpu(),
    lambda m: m.share_memory(),
    lambda m: m.train(),
    lambda m: m.requires_grad_(False),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cast", CASTS)
def test_casts_leave_it_as_it_is(kind: str, cast: Callable[[nn.Module], nn.Module]) -> None:
    made = sparse(kind, kind in PACKABLE)
    wanted, types = made(X), {name: tensor.dtype for name, tensor in made.state_dict().items()}
    holder = cast(nn.Sequential(made))
    assert torch.equal(holder(X), wanted)
    assert {name: tensor.dtype for name, tensor in made.state_dict().items()} == types


def test_other_devices() -> None:
    made = sparse()

    class Accelerator(torch.Tensor):
        """Stands for a tensor on a device that this machine may lack."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda:0")

    with pytest.raises(LowdimError, match=r"cannot move to cuda:0.*lowdim\.load\(path, device='cuda:0'\)"):
        made._apply(lambda tensor: tensor.as_subclass(Accelerator))
    assert made(X).shape == (3, 21)
    assert made.to("meta").values.is_meta


def test_what_it_says_of_itself() -> None:
    made = sparse("int4")
    assert repr(made) == (
        f"SparseLinear(in_features=130, out_features=21, bias=True, dtype=int4, group=64, sparsity={made.sparsity:.2f})"
    )
    assert made.sparsity == pytest.approx(0.7, abs=0.05)
    assert made.nbytes == made.matrix.nbytes < 21 * 130
