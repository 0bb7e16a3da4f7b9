from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.models.zoo import ZOO
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from lowdim.core.errors import NumericalError
from lowdim.models.structure.layers import Layer, find_layers
from lowdim.models.walk.stream import Stream


def conv(rows: int = 3, cols: int = 5) -> Layer:
    module = Conv1D(rows, cols)
    return Layer("h.0.c", module, "h.0.c.weight", module.weight.data)


def test_a_conv1d_is_seen_as_out_by_in() -> None:
    layer = conv()
    assert layer.shape == (3, 5)
    assert torch.equal(layer.weight(), layer.module.weight.t())
    made = torch.arange(15.0).reshape(3, 5)
    layer.write(made)
    assert torch.equal(layer.module.weight, made.t())
    x = torch.randn(2, 5)
    assert torch.allclose(layer.module(x), x @ made.t() + layer.module.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weight_is_a_copy_in_fp32(dtype: torch.dtype) -> None:
    module = nn.Linear(4, 3, dtype=dtype)
    layer = Layer("a", module, "a.weight", module.weight.data)
    before = module.weight.detach().clone()
    weight = layer.weight()
    assert (weight.dtype, weight.is_contiguous()) == (torch.float32, True)
    weight.zero_()
    assert torch.equal(module.weight, before)


def test_writing_rounds_to_the_masters_dtype_and_hands_the_module_the_rounded_value() -> None:
    module = nn.Linear(1, 1, bias=False)
    layer = Layer("a", module, "a.weight", torch.zeros(1, 1, dtype=torch.bfloat16))
    layer.write(torch.tensor([[1.00390625]]))
    assert float(layer.master) == module.weight.item() == 1.0


def test_zeros_are_written_as_plus_zero() -> None:
    layer = conv(1, 2)
    layer.write(torch.tensor([[-0.0, 1.0]]))
    assert not torch.signbit(layer.module.weight).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_name_the_layer(value: float) -> None:
    layer = conv()
    layer.master[1, 1] = value
    with pytest.raises(NumericalError, match=r"weight of 'h\.0\.c' holds NaN or Inf\. Repair"):
        layer.weight()


class Adapted(nn.Linear):
    pass


def test_subclasses_of_linear_are_left_alone_and_listed() -> None:
    block = nn.ModuleDict({"a": nn.Linear(2, 2), "b": Adapted(2, 2), "norm": nn.LayerNorm(2)})
    prunable, skipped = find_layers(block)
    assert [name for name, _ in prunable] == ["a"]
    assert skipped == [("b", "Adapted is neither a plain Linear nor a Conv1D")]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("hook", "held"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "weight_orig"),
        (nn.utils.weight_norm, "weight_g, weight_v"),
        (nn.utils.spectral_norm, "weight_orig"),
    ],
)
def test_weights_that_a_hook_computes_are_left_alone_and_listed(hook: Callable[[nn.Module], object], held: str) -> None:
    block = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    hook(block["b"])
    prunable, skipped = find_layers(block)
    assert [name for name, _ in prunable] == ["a"]
    [(name, why)] = skipped
    assert name == "b"
    assert why.startswith(f"its weight is computed from {held} by a hook")


@pytest.mark.parametrize("kind", ZOO)
def test_every_matrix_of_a_block_is_either_prunable_or_listed(kind: str) -> None:
    stream = Stream(ZOO[kind]())
    layers, skipped = stream.describe(1)
    left = {name for name, _ in skipped}
    covered = {layer.parameter for layer in layers}
    for name, parameter in stream.blocks[1].named_parameters():
        full = f"{stream.block_name(1)}.{name}"
        if parameter.dim() > 1:
            assert full in covered or full.rpartition(".")[0] in left, full
