import pytest
import torch

from lowdim.core.pattern import Block, Unstructured
from lowdim.core.score import Evidence, Saliency, Taylor

WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
GRADIENT = torch.tensor([[-3.0, 0.5, 4.0, 0.0]])


def test_the_product_of_weight_and_gradient_by_hand():
    seen = Evidence(gradient=GRADIENT)
    assert Saliency().scores(WEIGHT, seen).tolist() == [[3.0, 1.0, 2.0, 0.0]]
    assert Taylor().scores(WEIGHT, seen).tolist() == [[9.0, 1.0, 4.0, 0.0]]


def test_it_is_the_slope_of_the_loss_in_a_factor_on_the_weight():
    weight, x = WEIGHT.clone().requires_grad_(), torch.tensor([0.3, -1.0, 2.0, 0.7])
    factor = torch.ones_like(weight).requires_grad_()
    [gradient] = torch.autograd.grad(((weight * x).sum() - 1) ** 2, weight)
    [slope] = torch.autograd.grad(((factor * weight.detach() * x).sum() - 1) ** 2, factor)
    assert torch.allclose(Saliency().scores(WEIGHT, Evidence(gradient=gradient)), slope.abs())


def test_single_weights_rank_alike_and_blocks_may_not():
    weight, gradient = torch.ones(1, 4), torch.tensor([[4.0, 0.0, 2.5, 2.5]])
    masks = [
        [
            pattern.mask(score.scores(weight, Evidence(gradient=gradient)), 2).tolist()
            for score in (Saliency(), Taylor())
        ]
        for pattern in (Unstructured("matrix"), Block(1, 2))
    ]
    assert masks[0][0] == masks[0][1]
    assert masks[1][0] != masks[1][1]


def test_small_gradients_do_not_vanish_when_they_are_squared():
    seen = Evidence(gradient=torch.tensor([[1e-30, 2e-30]]))
    assert Taylor().scores(torch.ones(1, 2), seen).diff().item() > 0


def test_without_a_gradient_it_says_so():
    with pytest.raises(ValueError, match="Saliency needs the gradient of the loss"):
        Saliency().scores(WEIGHT, Evidence())
