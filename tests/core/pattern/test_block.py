import pytest
import torch

from lowdim.core.errors import PatternError
from lowdim.core.pattern import Block


def test_tiles_stand_or_fall_together():
    scores = torch.zeros(4, 6)
    scores[0, 1], scores[3, 5], scores[2, 0] = 5, 3, 1
    mask = Block(2, 3).mask(scores, 12)
    assert mask.tolist() == [[True] * 3 + [False] * 3] * 2 + [[False] * 3 + [True] * 3] * 2


def test_the_sum_decides_not_the_largest():
    assert Block(1, 2).mask(torch.tensor([[4.0, 0.0, 3.0, 3.0]]), 2).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (1, 0), (2, 4), (5, 4), (6, 8), (8, 8)])
def test_counts_round_to_whole_tiles(keep, kept):
    assert int(Block(2, 2).mask(torch.rand(2, 4), keep).sum()) == kept


def test_one_by_one_is_the_matrix():
    scores = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    best = scores.flatten().topk(11).indices.sort().values
    assert torch.equal(Block(1, 1).mask(scores, 11).flatten().nonzero().flatten(), best)


def test_shapes_that_do_not_fit():
    Block(16, 8).check_shape("layer", 32, 24)
    with pytest.raises(PatternError, match=r"mlp\.up is 33 x 24.*16x8"):
        Block(16, 8).check_shape("mlp.up", 33, 24)
    with pytest.raises(PatternError, match="does not fall into blocks"):
        Block(2, 2).mask(torch.ones(2, 3), 2)
