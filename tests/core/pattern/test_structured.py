import pytest
import torch

from lowdim.core.errors import PatternError, RecipeError
from lowdim.core.pattern import BlockRoles, Structured, structured_masks

HIDDEN, GROUPS, QUERIES, SIZE, CHANNELS = 12, 3, 2, 4, 40
ROLES = BlockRoles(("q", "k", "v"), ("o",), ("gate", "up"), ("down",), GROUPS)


def block(seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "q": (GROUPS * QUERIES * SIZE, HIDDEN),
        "k": (GROUPS * SIZE, HIDDEN),
        "v": (GROUPS * SIZE, HIDDEN),
        "o": (HIDDEN, GROUPS * QUERIES * SIZE),
        "gate": (CHANNELS, HIDDEN),
        "up": (CHANNELS, HIDDEN),
        "down": (HIDDEN, CHANNELS),
    }
    return {name: torch.rand(shape, generator=g) for name, shape in shapes.items()}


def kept_units(masks):
    heads = masks["k"].reshape(GROUPS, -1)
    return heads.all(1), masks["up"].all(1)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_masks_can_be_cut_out(sparsity):
    masks = structured_masks(block(), ROLES, sparsity)
    heads, channels = kept_units(masks)
    assert torch.equal(masks["q"], heads.repeat_interleave(QUERIES * SIZE)[:, None].expand(-1, HIDDEN))
    assert torch.equal(masks["o"], heads.repeat_interleave(QUERIES * SIZE).expand(HIDDEN, -1))
    assert torch.equal(masks["v"], heads.repeat_interleave(SIZE)[:, None].expand(-1, HIDDEN))
    assert torch.equal(masks["gate"], masks["up"])
    assert torch.equal(masks["down"], channels.expand(HIDDEN, -1))
    assert bool(heads.any())
    assert bool(channels.any())
    assert all(mask.is_contiguous() for mask in masks.values())


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.6])
def test_the_total_is_the_nearest_whole_channels_allow(sparsity):
    masks = structured_masks(block(), ROLES, sparsity)
    total = sum(mask.numel() for mask in masks.values())
    zeros = total - sum(int(mask.sum()) for mask in masks.values())
    assert abs(zeros - sparsity * total) <= 3 * HIDDEN / 2


def test_the_weakest_units_fall():
    scores = block()
    scores["q"][SIZE * QUERIES : 2 * SIZE * QUERIES] = 0
    scores["o"][:, SIZE * QUERIES : 2 * SIZE * QUERIES] = 0
    scores["down"][:, 7] = -9
    masks = structured_masks(scores, ROLES, 0.34)
    heads, channels = kept_units(masks)
    assert heads.tolist() == [True, False, True]
    assert not channels[7]


def test_a_single_head_stays_and_channels_make_up():
    roles = BlockRoles(("q", "k", "v"), ("o",), ("gate", "up"), ("down",), 1)
    masks = structured_masks(block(), roles, 0.25)
    assert bool(masks["q"].all())
    total = sum(mask.numel() for mask in masks.values())
    assert abs(total * 0.25 - int((~masks["up"]).sum()) * 3) <= 3 * HIDDEN / 2


@pytest.mark.parametrize(("heads", "channels"), [(True, False), (False, True)])
def test_one_kind_carries_the_whole_budget(heads, channels):
    masks = Structured(heads, channels).masks(block(), ROLES, 0.2)
    assert set(masks) == set(ROLES.names())
    assert bool(masks["q"].all()) != heads
    assert bool(masks["up"].all()) != channels
    total = sum(mask.numel() for mask in masks.values())
    zeros = total - sum(int(mask.sum()) for mask in masks.values())
    unit = 24 * HIDDEN if heads else 3 * HIDDEN
    assert abs(zeros - 0.2 * total) <= unit / 2


def test_a_block_without_attention():
    masks = structured_masks(block(), BlockRoles((), (), ("up",), ("down",)), 0.5)
    assert set(masks) == {"up", "down"}
    assert int(masks["up"].all(1).sum()) == CHANNELS // 2


def test_ties_keep_the_first_units():
    masks = structured_masks({k: torch.ones_like(v) for k, v in block().items()}, ROLES, 0.5)
    heads, channels = kept_units(masks)
    assert heads.tolist() == [True, False, False]
    assert channels.tolist() == sorted(channels.tolist(), reverse=True)


def test_refusals():
    with pytest.raises(PatternError, match="no scores for up"):
        structured_masks({"down": torch.ones(2, 2)}, BlockRoles(channel_rows=("up",), channel_cols=("down",)), 0.5)
    with pytest.raises(PatternError, match="5 equal units"):
        structured_masks(block(), BlockRoles(("q",), num_kv_groups=5), 0.5)
    with pytest.raises(PatternError, match="disagree"):
        structured_masks(block(), BlockRoles((), (), ("up", "q"), ("down",)), 0.5)
    with pytest.raises(RecipeError, match="both are switched off"):
        Structured(False, False)
    with pytest.raises(PatternError, match="whole decoder block"):
        Structured().mask(torch.ones(2, 2), 2)
    with pytest.raises(RecipeError, match="cannot be trained"):
        Structured().units("w", (2, 2))
