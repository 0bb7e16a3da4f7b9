import torch

from lowdim.core.pattern import Unstructured
from lowdim.core.score import Magnitude


def test_the_sign_does_not_count():
    weight = torch.tensor([[1, -2, 0.5, 4], [0.1, 0.3, -5, 0.2]])
    score = Magnitude()
    assert score.column_scale(None) is None
    assert score.scaled(weight, None).tolist() == weight.abs().tolist()
    assert Unstructured().resolve(score.default_group) == Unstructured("matrix")
    # per row, magnitude keeps columns 1 and 3 of the first row, where Wanda keeps 0 and 1
    assert Unstructured("row").mask(score.scaled(weight, None), 4)[0].tolist() == [False, True, False, True]
