import pytest
import torch

from lowdim.core.pattern import NM, Unstructured
from lowdim.core.score import Magnitude, Wanda
from lowdim.core.statistics import InputStatistics

WEIGHT = torch.tensor([[1, -2, 0.5, 4], [0.1, 0.3, -5, 0.2]])
NORMS = torch.tensor([4.0, 1.0, 2.0, 0.1])
ROW = Unstructured("row")


def statistics(x):
    stats = InputStatistics(x.shape[1], Wanda.needs)
    stats.add(x)
    return stats


def test_hand_example():
    scale = Wanda().column_scale(statistics(NORMS.repeat(3, 1)))
    torch.testing.assert_close(scale, NORMS)
    scores = Wanda().scaled(WEIGHT, scale)
    torch.testing.assert_close(scores, torch.tensor([[4, 2, 1, 0.4], [0.4, 0.3, 10, 0.02]]))
    kept = [[True, True, False, False], [True, False, True, False]]
    assert ROW.mask(scores, 4).tolist() == kept
    assert NM(2, 4).mask(scores, 4).tolist() == kept


def random_case():
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, 48, generator=g), torch.randn(200, 48, generator=g) * torch.rand(48, generator=g) * 9


def test_equal_norms_make_it_magnitude():
    weight, _ = random_case()
    scale = Wanda().column_scale(statistics(torch.full((5, 48), 3.0)))
    assert torch.equal(ROW.mask(Wanda().scaled(weight, scale), 700), ROW.mask(Magnitude().scaled(weight, None), 700))


def test_scaling_the_inputs_or_a_row_changes_nothing():
    weight, x = random_case()
    mask = ROW.mask(Wanda().scaled(weight, Wanda().column_scale(statistics(x))), 768)
    louder = Wanda().scaled(weight, Wanda().column_scale(statistics(x * 4)))
    assert torch.equal(ROW.mask(louder, 768), mask)
    weight[3] *= 8
    assert torch.equal(ROW.mask(Wanda().scaled(weight, Wanda().column_scale(statistics(x))), 768), mask)


def test_the_number_of_tokens_does_not_scale_it():
    _, x = random_case()
    torch.testing.assert_close(Wanda().column_scale(statistics(x)), Wanda().column_scale(statistics(x.repeat(7, 1))))


def bisection(scores, sparsity):
    """The search of the paper's appendix: one share of the row totals, bisected until the sparsity is met."""
    ordered = scores.sort(dim=1).values
    cumulative, total = ordered.cumsum(1), scores.sum(1, keepdim=True)
    low, high, alpha = 0.0, 0.8, 0.4
    while True:
        pruned = cumulative <= alpha * total
        achieved = float(pruned.double().mean())
        if abs(achieved - sparsity) <= 0.001 or high - low < 0.001:
            last = (pruned.sum(1, keepdim=True) - 1).clamp_min(0)
            return scores > ordered.gather(1, last), achieved
        low, high = (alpha, high) if achieved < sparsity else (low, alpha)
        alpha = (low + high) / 2


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6])
def test_variant_is_the_end_of_the_bisection(sparsity):
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(128, 256, generator=g) * torch.rand(128, 1, generator=g)
    scores = Wanda().scaled(weight, torch.rand(256, generator=g) + 0.1).double()
    paper, achieved = bisection(scores, sparsity)
    assert abs(achieved - sparsity) <= 0.001
    variant = Wanda(variant=True)
    share = variant.scaled(scores.float(), None)
    mask = Unstructured(variant.default_group).mask(share, int(paper.sum()))
    assert float((mask != paper).double().mean()) < 1e-4
    assert len(set(mask.sum(1).tolist())) > 1


def test_variant_by_hand():
    # row 0 cumulative shares: 1/10 3/10 6/10 10/10; row 1: 1/4 2/4 3/4 1 with ties ranked from the right
    scores = torch.tensor([[4.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    share = Wanda(variant=True).scaled(scores, None)
    torch.testing.assert_close(share, torch.tensor([[1, 0.1, 0.3, 0.6], [1, 0.75, 0.5, 0.25]], dtype=torch.float64))
    mask = Unstructured("matrix").mask(share, 4)
    assert mask.tolist() == [[True, False, False, True], [True, True, False, False]]


def test_variant_leaves_nm_masks_alone_and_survives_dead_rows():
    weight, x = random_case()
    weight[5] = 0
    scale = Wanda().column_scale(statistics(x))
    plain, variant = Wanda().scaled(weight, scale), Wanda(variant=True).scaled(weight, scale)
    assert torch.equal(NM(2, 4).mask(plain, 768), NM(2, 4).mask(variant, 768))
    assert not variant[5].any()


def test_statistics_are_required():
    with pytest.raises(ValueError, match="Wanda needs statistics"):
        Wanda().column_scale(None)
