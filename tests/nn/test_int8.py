"""Weights in 8 bits: codes, what keeps them, what reads them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowdim.core.errors import LowdimError
from lowdim.nn.grouped import dequantise, pack, quantise, unpack
from lowdim.nn.int8 import Int8Weight, floats_, int8_


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- codes


def test_a_group_of_one_sign_keeps_its_values() -> None:
    values = torch.tensor([2.0, 2.1, 2.2, 2.3])
    for sign in (1.0, -1.0):
        codes, scales, zeros = quantise(sign * values, 8, 256)
        assert float(scales) == pytest.approx(2.3 / 255)
        assert int(zeros) == (0 if sign > 0 else 255)
        assert torch.allclose(dequantise(codes, scales, zeros, 256), sign * values, atol=2.3 / 510 + 1e-6)


def test_every_value_is_within_half_a_step_but_at_the_edges() -> None:
    values = torch.randn(7, 100, generator=draw())  # 700 values: the last group is a short one
    for bits in (4, 8):
        codes, scales, zeros = quantise(values, bits, 256)
        assert codes.shape == values.shape and len(scales) == len(zeros) == 3
        steps = scales.repeat_interleave(256)[:700].view(7, 100)
        assert ((dequantise(codes, scales, zeros, 256) - values).abs() <= 1.001 * steps).all()
        inner = (codes > 0) & (codes < 2**bits - 1)
        assert ((dequantise(codes, scales, zeros, 256) - values).abs() <= 0.501 * steps)[inner].all()
    assert dequantise(*quantise(torch.zeros(3), 8, 256), 256).tolist() == [0.0] * 3


def test_rounding_by_chance_is_right_on_average() -> None:
    values = torch.full((10_000,), 10.3)
    values[0] = 255.0
    codes, scales, zeros = quantise(values, 8, 10_000, draw())
    found = dequantise(codes, scales, zeros, 10_000)[1:]
    assert float(found.mean()) == pytest.approx(10.3, abs=0.015)
    assert set(found.tolist()) == {10.0, 11.0}
    assert torch.equal(codes, quantise(values, 8, 10_000, draw())[0])
    assert not torch.equal(codes, quantise(values, 8, 10_000, draw(1))[0])


@pytest.mark.parametrize("shape", [(3, 5), (4, 6), (1, 1)])
def test_two_codes_share_a_byte(shape: tuple[int, int]) -> None:
    codes = torch.randint(16, shape, generator=draw(), dtype=torch.uint8)
    assert len(pack(codes)) == -(-codes.numel() // 2)
    assert torch.equal(unpack(pack(codes), shape), codes)


# ---------------------------------------------------------------- the weight


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(40, 30).to(dtype)
    made.weight = nn.Parameter(Int8Weight.of(made.weight.detach()))
    return made


def twin(of: nn.Linear) -> nn.Linear:
    made = nn.Linear(40, 30).to(of.weight.dtype)
    made.weight, made.bias = nn.Parameter(of.weight.floats()), of.bias  # type: ignore[operator]
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_layer_computes_with_what_the_codes_stand_for(dtype: torch.dtype, checkpointed: bool) -> None:
    packed, x = layer(dtype), torch.randn(2, 3, 40, generator=draw()).to(dtype)
    found = []
    for each in (packed, twin(packed)):
        given = x.clone().requires_grad_()
        y = checkpoint(each, given, use_reentrant=False) if checkpointed else each(given)
        each.bias.grad = None
        (y * y).sum().backward()
        found.append((y.detach(), given.grad, each.weight.grad.clone(), each.bias.grad))
    for mine, its in zip(*found, strict=True):
        assert mine.dtype == its.dtype == dtype
        assert torch.allclose(mine, its)
    packed(x).sum().backward()
    assert torch.allclose(packed.weight.grad, found[0][2] + x.reshape(-1, 40).sum(0), rtol=1e-2, atol=0.1)


def test_autocast_narrows_the_product() -> None:
    packed = layer()
    with torch.autocast("cpu", torch.bfloat16):
        y = packed(torch.ones(2, 40))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert packed.weight.grad is not None and packed.weight.grad.dtype == torch.float32


def test_the_codes_survive_whatever_carries_a_model(tmp_path: Path) -> None:
    packed = layer()
    packed.weight.move_(torch.full((30, 40), 1e-3), draw())  # type: ignore[operator]
    torch.save(packed.state_dict(), tmp_path / "model")
    read = layer()
    read.load_state_dict(torch.load(tmp_path / "model", weights_only=True))
    for other in (read, deepcopy(packed), deepcopy(packed).to(torch.float64).to("cpu").float()):
        assert isinstance(other.weight, Int8Weight) and isinstance(other.weight, nn.Parameter)
        assert other.weight.requires_grad and other.weight.dtype == torch.float32
        assert torch.equal(other.weight.codes, packed.weight.codes)  # type: ignore[arg-type]
        assert torch.equal(other.weight.scales, packed.weight.scales)  # type: ignore[arg-type]
    assert packed.to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert packed.weight.codes.dtype == torch.uint8
    bytes_ = sum(t.nbytes for t in (packed.weight.codes, packed.weight.scales, packed.weight.zeros))  # type: ignore[union-attr]
    assert bytes_ == pytest.approx(1200 * (1 + 5 / 256), rel=0.01)


def test_floats_are_read_as_the_nearest_codes() -> None:
    packed, plain = layer(), nn.Linear(40, 30)
    packed.load_state_dict(plain.state_dict())
    assert torch.equal(packed.weight.codes, quantise(plain.weight, 8, 256)[0])  # type: ignore[arg-type]
    assert float((packed.weight - plain.weight).detach().abs().max()) < 0.002
    floats_(packed)
    assert type(packed.weight) is nn.Parameter and packed.weight.dtype == torch.float32


def test_a_change_smaller_than_half_a_step_counts_only_by_chance() -> None:
    start = torch.zeros(16, 16)
    start[0, 0], start[0, 1] = 1.0, -1.0
    for stochastic in (False, True):
        weight = Int8Weight.of(start, stochastic=stochastic)
        step = float(weight.scales)
        before = weight.floats()
        for seed in range(40):
            change = torch.full((16, 16), 0.2 * step)
            change[0] = 0.0  # what decides the grid stands still
            weight.move_(change, draw(seed))
        moved = (weight.floats() - before)[1:].mean() / (40 * 0.2 * step)
        assert float(moved) == pytest.approx(1.0, abs=0.1) if stochastic else float(moved) == 0.0


def test_what_writes_into_it_or_cuts_it_is_refused() -> None:
    weight = layer().weight.detach()
    with pytest.raises(LowdimError, match="writes into an INT8 weight"):
        weight.add_(1.0)
    with pytest.raises(LowdimError, match="cut a group of 256 codes"):
        weight.chunk(2)
    with pytest.raises(LowdimError, match="shards by rows"):
        weight.chunk(2, dim=1)
    with pytest.raises(LowdimError, match="as many for each process"):
        weight.chunk(4)
    with pytest.raises(LowdimError, match=r"finite matrices; got one of shape \(3,\)"):
        Int8Weight.of(torch.ones(3))
    with pytest.raises(LowdimError, match="NaN or Inf"):
        Int8Weight.of(torch.full((2, 2), float("nan")))


def test_rows_of_whole_groups_share_the_memory_and_round_as_the_whole() -> None:
    whole = Int8Weight.of(torch.randn(32, 16, generator=draw()))
    change = torch.randn(32, 16, generator=draw(1)) * 0.01
    parts = [part.clone() for part in whole.chunk(2)]
    assert all(isinstance(part, Int8Weight) and part.shape == (16, 16) for part in parts)
    whole.chunk(2)[1].codes.zero_()
    assert int(whole.codes[16:].sum()) == 0
    whole.copy_(torch.cat([part.floats() for part in parts]))
    for index, part in enumerate(parts):
        part.move_(change.chunk(2)[index], draw(2), before=index)
    whole.move_(change, draw(2))
    assert torch.equal(torch.cat([part.floats() for part in parts]), whole.floats())


def test_a_tied_weight_stays_one() -> None:
    a, b, other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(4, 4)
    b.weight = a.weight
    first, second = int8_(nn.ModuleList([a, b, other]), [a.weight, other.weight])
    assert a.weight is b.weight is first
    assert second is other.weight
    assert isinstance(first, Int8Weight) and not isinstance(second, Int8Weight)
