import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.quantize import (
    Grid,
    decode,
    encode,
    fit_table,
    indices,
    least_scale,
    scales_of,
    to_levels,
)

GRIDS = [Grid(8, 64), Grid(8, 128), Grid(4, 64), Grid(4, 128), Grid(3, 64), Grid(3, 128)]


@st.composite
def matrices(draw):
    rows, cols, seed = draw(st.integers(0, 5)), draw(st.integers(1, 200)), draw(st.integers(0, 2**32))
    g = torch.Generator().manual_seed(seed)
    spread = torch.randn(rows, 1, generator=g).mul(draw(st.sampled_from([0.0, 3.0, 8.0]))).exp()
    weight = torch.randn(rows, cols, generator=g) * spread * draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e20]))
    mask = torch.rand(rows, cols, generator=g) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return weight.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))), mask


def error(weight, table, importance):
    distance = (weight[:, None] - table.float()[None]).abs().min(1).values
    return float((distance.double().square() * importance).sum())


def test_by_hand():
    # two groups; scales 254 / 127 = 2 and 0.5, both exact in bf16
    weight = torch.zeros(1, 66)
    weight[0, 0], weight[0, 1], weight[0, 2], weight[0, 64], weight[0, 65] = 254.0, -3.0, 0.4, -63.5, 1.25
    made = encode(weight, weight != 0, Grid(8, 64))
    assert made.scales.tolist() == [[2.0, 0.5]]
    # -1.5 and 2.5 are ties, which go to the even number; 0.2 must not become 0
    assert made.levels[0, [0, 1, 2, 64, 65]].tolist() == [127, -2, 1, -127, 2]
    assert decode(made.levels, made.scales, Grid(8, 64))[0, [0, 1, 2, 64, 65]].tolist() == [
        254.0,
        -4.0,
        2.0,
        -63.5,
        1.0,
    ]
    assert made.table is None


def test_scales_are_rounded_up():
    largest = torch.linspace(0.5, 300.0, 5001)[:, None]
    scales = scales_of(largest, None, Grid(8)).float()
    assert bool((scales * 127 >= largest).all())
    assert bool((scales * 127 <= largest * (1 + 2**-7)).all())


def test_a_group_that_keeps_nothing_has_no_scale():
    weight, mask = torch.ones(2, 128), torch.zeros(2, 128, dtype=torch.bool)
    mask[0, :64] = True
    assert (scales_of(weight, mask, Grid(8, 64)) > 0).tolist() == [[True, False], [False, False]]
    for grid in GRIDS:
        made = encode(weight, mask, grid)
        assert torch.equal(decode(made.levels, made.scales, grid) != 0, mask)


def test_kept_zeros_and_tiny_weights_stay_nonzero_in_the_model():
    weight = torch.tensor([[0.0, -0.0, 1e-30, -1e-7]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for some in (weight, weight[:, :2]):
            for grid in GRIDS:
                made = encode(some, mask[:, : some.shape[1]], grid, least_scale(dtype))
                assert bool((decode(made.levels, made.scales, grid).to(dtype) != 0).all())


@settings(deadline=None)
@given(matrices(), st.sampled_from(GRIDS))
def test_zero_stays_zero_and_kept_stays_kept(case, grid):
    weight, mask = case
    made = encode(weight, mask, grid)
    assert made.levels.dtype == torch.int8
    assert made.scales.shape == (len(weight), grid.groups(weight.shape[1]))
    assert bool(made.scales.isfinite().all())
    assert int(made.levels.int().abs().max()) <= 127 if made.levels.numel() else True
    back = decode(made.levels, made.scales, grid)
    assert torch.equal(back != 0, mask)
    assert bool((back * weight >= 0)[mask].all()) or grid.bits < 8


@settings(deadline=None)
@given(matrices(), st.sampled_from(GRIDS[:2]), st.booleans())
def test_eight_bits_are_off_by_half_a_step_at_most(case, grid, masked):
    weight, mask = case
    mask = mask if masked else None
    made = encode(weight, mask, grid)
    step = made.scales.float().repeat_interleave(grid.group, 1)[:, : weight.shape[1]]
    off = (weight.float() - decode(made.levels, made.scales, grid)).abs()
    large = weight.float().abs() >= step / 2
    checked = large & mask if masked else torch.ones_like(large)
    assert bool((off <= step / 2 * (1 + 1e-6))[checked].all())
    assert bool((off <= step)[mask].all()) if masked else True


@settings(deadline=None)
@given(matrices(), st.sampled_from(GRIDS[2:]), st.booleans())
def test_few_bits_take_the_nearest_level_of_a_table(case, grid, masked):
    weight, mask = case
    made = encode(weight, mask if masked else None, grid)
    assert made.table.shape == ({4: 16, 3: 8}[grid.bits],)
    assert made.table.tolist() == sorted(set(made.table.tolist()))
    assert (0 in made.table.tolist()) is not masked
    codes = indices(made.levels, made.table)
    counted = mask if masked else torch.ones_like(mask)
    assert torch.equal(made.table[codes.long()][counted], made.levels[counted])
    step = made.scales.float().repeat_interleave(grid.group, 1)[:, : weight.shape[1]]
    units = torch.where(step > 0, weight.float() / step, 0.0)
    nearest = (units[..., None] - made.table.float()).abs().min(-1).values
    torch.testing.assert_close((units - made.levels.float()).abs()[counted], nearest[counted])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([4, 3]))
def test_no_other_table_loses_less(seed, masked, bits):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 400, generator=g) ** 3
    weight = weight / weight.abs().max() * 127
    mask = torch.ones_like(weight, dtype=torch.bool) if masked else None
    importance = torch.rand(400, generator=g)
    table = fit_table(weight, mask, torch.ones(1, 7, dtype=torch.bfloat16), Grid(bits), importance)
    least = error(weight[0], table, importance)
    for _ in range(20):
        other = table.int() + torch.randint(-3, 4, (1 << bits,), generator=g)
        other = torch.where((table == 0) | (other == 0), table.int(), other).clamp(-127, 127)
        assert error(weight[0], other, importance) >= least * (1 - 1e-9)


def test_sixteen_values_are_met_exactly():
    levels = torch.tensor([-127, -90, -60, -33, -20, -9, -4, -1, 2, 5, 11, 23, 47, 70, 99, 127])
    weight = levels.float().repeat(4, 8)
    made = encode(weight, torch.ones_like(weight, dtype=torch.bool), Grid(4, 128))
    assert made.table.tolist() == levels.tolist()
    assert torch.equal(decode(made.levels, made.scales, Grid(4, 128)), weight)


def test_eight_values_are_met_exactly_with_a_zero_among_them():
    levels = torch.tensor([-127, -80, -31, 0, 3, 44, 90, 127])
    weight = levels.float().repeat(4, 16)
    made = encode(weight, None, Grid(3, 128))
    assert made.table.tolist() == levels.tolist()
    assert torch.equal(decode(made.levels, made.scales, Grid(3, 128)), weight)


def test_groups_count_by_their_scales():
    # errors in a group of larger weights weigh more: the levels go where those weights are
    weight = torch.cat([torch.linspace(100, 127, 64) * 1000, torch.linspace(1, 127, 64)])[None]
    mask = torch.ones(1, 128, dtype=torch.bool)
    table = encode(weight, mask, Grid(4, 64), importance=torch.ones(128)).table
    assert int((table >= 100).sum()) >= 12


def test_columns_count_by_their_importance():
    # as after Wanda: one column with large inputs keeps its small weights, the others only large ones
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 64, generator=g)
    weight[:, 5] *= 0.05
    norms = torch.ones(64)
    norms[5] = 100.0
    mask = (weight * norms).abs() > 0.7
    off = {}
    for name, importance in (("flat", torch.ones(64)), ("guessed", None), ("known", norms**2)):
        made = encode(weight, mask, Grid(4), importance=importance)
        change = (decode(made.levels, made.scales, Grid(4)) - weight * mask) * norms
        off[name] = float(change.square().sum())
    assert off["guessed"] < off["flat"] / 4
    assert off["known"] <= off["guessed"]


def test_a_big_matrix_is_sampled_and_its_table_is_as_good():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(4200, 4200, generator=g)
    scales = scales_of(weight, None, Grid(4))
    part, sampled = weight[:500], fit_table(weight, None, scales, Grid(4))
    units = part / scales[:500].float().repeat_interleave(64, 1)[:, :4200]
    losses = [
        float((units - to_levels(units, None, table)).square().mean())
        for table in (sampled, fit_table(part, None, scales[:500], Grid(4)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_levels_beyond_the_scale_are_clamped():
    assert to_levels(torch.tensor([500.0, -500.0]), None, None).tolist() == [127, -127]
    table = torch.arange(-8, 8, dtype=torch.int8)
    assert to_levels(torch.tensor([500.0, -500.0, 3.4]), None, table).tolist() == [7, -8, 3]


def test_refusals():
    with pytest.raises(LowdimError, match="bits must be 8, 4 or 3, got 5"):
        Grid(5)
    with pytest.raises(LowdimError, match="group must be 64 or 128 columns, got 32"):
        Grid(8, 32)
    with pytest.raises(LowdimError, match="Did you mean 'int8'"):
        Grid.of("int88")
    with pytest.raises(NumericalError, match="NaN or Inf"):
        encode(torch.tensor([[1.0, float("nan")]]), None, Grid(8))
    with pytest.raises(NumericalError, match="NaN or Inf"):
        encode(torch.tensor([[1.0, float("-inf")]]), torch.ones(1, 2, dtype=torch.bool), Grid(4))
    with pytest.raises(ValueError, match="mask must be bool"):
        encode(torch.ones(2, 2), torch.ones(2, 3, dtype=torch.bool), Grid(8))
    with pytest.raises(ValueError, match="floating-point matrix"):
        encode(torch.ones(2, 2, dtype=torch.int32), None, Grid(8))
