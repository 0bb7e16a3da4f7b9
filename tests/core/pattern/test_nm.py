import pytest
import torch

from lowdim.core.errors import PatternError, RecipeError
from lowdim.core.pattern import NM, Unstructured

SCORES = torch.tensor([[4.0, 2.0, 1.0, 0.4], [0.4, 0.3, 10.0, 0.02]])


def test_hand_example_is_the_mask_of_rows_at_one_half():
    mask = NM(2, 4).mask(SCORES, 4)
    assert mask.tolist() == [[True, True, False, False], [True, False, True, False]]
    assert torch.equal(mask, Unstructured("row").mask(SCORES, 4))


@pytest.mark.parametrize(("keep", "group"), [(1, 2), (2, 4), (3, 8), (5, 8), (1, 3), (8, 8)])
def test_every_group_keeps_its_number(keep, group):
    scores = torch.rand(6, group * 5, generator=torch.Generator().manual_seed(0))
    pattern = NM(keep, group)
    mask = pattern.mask(scores, 30 * keep)
    assert bool((mask.reshape(-1, group).sum(1) == keep).all())
    worst_kept = torch.where(mask, scores, torch.inf).reshape(-1, group).amin(1)
    best_pruned = torch.where(mask, -torch.inf, scores).reshape(-1, group).amax(1)
    assert bool((worst_kept > best_pruned).all())


def test_ties_keep_the_leftmost():
    assert NM(2, 4).mask(torch.zeros(1, 8), 4).tolist() == [[True, True, False, False] * 2]


def test_recipe_sparsity_is_the_patterns_own():
    assert NM(2, 4).check_recipe(None) == 0.5
    assert NM(2, 3).check_recipe(0.333) == 1 - 2 / 3
    with pytest.raises(RecipeError, match=r"2:4 is sparsity 0\.5.*0\.7.*1:4 \(sparsity 0\.75\)"):
        NM(2, 4).check_recipe(0.7)
    with pytest.raises(RecipeError, match=r"keep 2:4.*unstructured for exactly 0\.55"):
        NM(2, 4).check_recipe(0.55)
    with pytest.raises(RecipeError, match=r"did you mean 0\.5"):
        NM(2, 4).check_recipe(50)


def test_another_sparsity_is_another_count():
    assert NM(4, 8).at(1 - 3 / 8) == NM(3, 8)
    assert NM(4, 8).at(0.99) == NM(1, 8)
    assert NM(4, 8).at(0.0) == NM(8, 8)


def test_widths_that_do_not_fit():
    NM(2, 4).check_shape("layer", 3, 8)
    with pytest.raises(PatternError, match=r"mlp\.up_proj has 10 inputs, not a multiple of 4.*\(2\)"):
        NM(2, 4).check_shape("mlp.up_proj", 3, 10)
    with pytest.raises(PatternError, match="unstructured"):
        NM(2, 4).check_shape("mlp.up_proj", 3, 7)
    with pytest.raises(PatternError, match="not a multiple"):
        NM(2, 4).mask(torch.ones(2, 6), 6)


def test_a_count_of_another_n_is_refused():
    with pytest.raises(ValueError, match="keeps 4 of 8"):
        NM(2, 4).mask(SCORES, 8)
