import pytest
import torch

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.core.pattern import Unstructured
from lowdim.core.score import OBS, Magnitude
from lowdim.core.score.obs import damped_cholesky
from lowdim.core.statistics import InputStatistics

GROUP = Unstructured("column-block")


def statistics(x):
    stats = InputStatistics(x.shape[1], OBS.needs)
    stats.add(x)
    return stats


def correlated(tokens=400, width=16):
    g = torch.Generator().manual_seed(0)
    return torch.randn(tokens, width, generator=g) @ torch.randn(width, width, generator=g)


def test_hessian_of_two_inputs_by_hand():
    # H = [[2, 1], [1, 2]], H^-1 has diagonal 2/3: scores of w = [1, 3] are [1.5, 13.5] squared
    root = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).T
    scale = OBS(damping=0.0).column_scale(statistics(root * 2**0.5))
    squared = OBS().scaled(torch.tensor([[1.0, 3.0]]), scale).square()
    torch.testing.assert_close(squared, torch.tensor([[1.5, 13.5]]))


def test_equals_the_error_after_an_exact_refit():
    x, weight = correlated().double(), torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    stats = statistics(x.float())
    scores = OBS(damping=0.0).scaled(weight, OBS(damping=0.0).column_scale(stats)).double().square()
    for j in range(16):
        others = [k for k in range(16) if k != j]
        target = x @ weight[0].double()
        refit = torch.linalg.lstsq(x[:, others], target).solution
        error = (x[:, others] @ refit - target).square().mean()
        assert float(scores[0, j]) == pytest.approx(float(error), rel=1e-3)


def test_white_inputs_make_it_magnitude():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    scale = OBS().column_scale(statistics(torch.eye(256) * 16))
    assert float(scale.max() - scale.min()) == 0
    magnitude = Magnitude().scaled(weight, None)
    assert torch.equal(GROUP.mask(OBS().scaled(weight, scale), 1000), GROUP.mask(magnitude, 1000))


def test_scaling_the_inputs_changes_no_mask():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    masks = [GROUP.mask(OBS().scaled(weight, OBS().column_scale(statistics(correlated() * c))), 64) for c in (1, 64)]
    assert torch.equal(*masks)


def test_dead_columns_score_zero_and_harm_nobody():
    x = correlated()
    x[:, 3] = 0
    scale = OBS(damping=0.0).column_scale(statistics(x))
    alive = [j for j in range(16) if j != 3]
    assert scale[3] == 0
    torch.testing.assert_close(scale[alive], OBS(damping=0.0).column_scale(statistics(x[:, alive])), rtol=1e-3, atol=0)


def test_no_token_gives_zeros():
    assert not OBS().column_scale(statistics(torch.empty(0, 4))).any()


def test_fewer_tokens_than_inputs_still_works():
    scale = OBS().column_scale(statistics(correlated(tokens=3)))
    assert bool(scale.isfinite().all())
    assert bool((scale > 0).all())


def test_damping_grows_until_the_factor_exists():
    singular = torch.ones(8, 8)
    singular[0, 0] -= 1e-3
    factor, used = damped_cholesky(singular, 0.0)
    assert used > 0
    damped = singular + used * singular.diagonal().mean() * torch.eye(8)
    torch.testing.assert_close(factor @ factor.T, damped.to(factor.dtype), rtol=1e-5, atol=1e-5)
    with pytest.warns(UserWarning, match="OBS needed damping"):
        OBS(damping=0.0).column_scale(statistics(torch.ones(5, 8)))


def test_hopeless_hessians_are_refused():
    with pytest.raises(NumericalError, match="not positive definite"):
        damped_cholesky(torch.tensor([[1.0, 1e9], [1e9, 1.0]]), 0.01)
    with pytest.raises(NumericalError, match="NaN or Inf"):
        damped_cholesky(torch.full((2, 2), float("nan")), 0.01)
    with pytest.raises(RecipeError, match="got -1"):
        OBS(damping=-1)
