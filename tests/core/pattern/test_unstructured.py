import pytest
import torch

from lowdim.core.errors import RecipeError
from lowdim.core.pattern import Unstructured

SCORES = torch.tensor([[4.0, 2.0, 1.0, 0.4], [0.4, 0.3, 10.0, 0.02]])


def test_rows_differ_by_one_weight_at_most_and_the_first_get_it():
    scores = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    assert Unstructured("row").mask(scores, 17).sum(1).tolist() == [4, 4, 3, 3, 3]


def test_matrix_and_global_share_one_threshold():
    for group in ("matrix", "global"):
        assert Unstructured(group).mask(SCORES, 3).tolist() == [
            [True, True, False, False],
            [False, False, True, False],
        ]


def test_column_blocks_keep_in_proportion():
    scores = torch.ones(2, 300)
    scores[:, 200:] = 9
    mask = Unstructured("column-block").mask(scores, 300)
    assert [int(part.sum()) for part in mask.split(128, dim=1)] == [128, 128, 44]
    whole = Unstructured("column-block", block=300).mask(scores, 200)
    assert bool(whole[:, 200:].all())


def test_auto_takes_the_groups_of_the_score():
    assert Unstructured().resolve("row") == Unstructured("row")
    assert Unstructured("matrix").resolve("row") == Unstructured("matrix")
    with pytest.raises(ValueError, match="resolved"):
        Unstructured().mask(SCORES, 1)


def test_recipe():
    assert Unstructured().check_recipe(0.7) == 0.7
    assert Unstructured().check_recipe(0) == 0
    with pytest.raises(RecipeError, match="needs a sparsity"):
        Unstructured().check_recipe(None)
    with pytest.raises(RecipeError, match=r"did you mean 0\.7"):
        Unstructured().check_recipe(70)
    with pytest.raises(RecipeError, match=r"got -0\.1"):
        Unstructured().check_recipe(-0.1)
    with pytest.raises(RecipeError, match="Did you mean 'matrix'"):
        Unstructured("matrx")
    with pytest.raises(RecipeError, match="block must be a whole number of at least 1; got 0"):
        Unstructured("column-block", block=0)
