from __future__ import annotations

import math

import pytest
import torch
from tests.models.tickets import build, random_ticket
from torch.utils.data import DataLoader, TensorDataset

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.merge.ensemble import ensemble, predict
from lowdim.merge.quality import quality


def batches(count=50, size=16):
    x = torch.randn(count, 6, generator=generator(0, "x"))
    y = torch.randint(0, 3, (count,), generator=generator(0, "y"))
    return [(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)]


def test_quality_by_hand():
    p = torch.tensor([[0.85, 0.15], [0.75, 0.25], [0.35, 0.65], [0.45, 0.55]])
    found = quality(p, torch.tensor([0, 1, 1, 0]), bins=10)
    assert found.accuracy == 0.5
    assert found.nll == pytest.approx(-sum(map(math.log, (0.85, 0.25, 0.65, 0.45))) / 4)
    # each confidence is in a bin of its own; two are right, two are wrong
    assert found.ece == pytest.approx((0.15 + 0.75 + 0.35 + 0.55) / 4, abs=1e-6)
    both = quality(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]), bins=5)
    assert both.ece == pytest.approx(0.3)


def test_quality_of_the_impossible_is_finite_and_bad_shapes_are_refused():
    assert math.isfinite(quality(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).nll)
    for probabilities, labels in ((torch.ones(3), torch.zeros(3)), (torch.ones(3, 2), torch.zeros(2))):
        with pytest.raises(LowdimError, match="one label per sample"):
            quality(probabilities, labels.long())
    with pytest.raises(LowdimError):
        quality(torch.ones(0, 2), torch.zeros(0).long())


def test_is_the_mean_of_probabilities_and_never_less_likely_than_its_members():
    tickets = [random_ticket("mlp", seed) for seed in range(4)]
    model = build("mlp", 9)
    result = ensemble(model, tickets, batches())
    expected = []
    for ticket in tickets:
        other = build("mlp")
        ticket.apply_(other)
        expected.append(torch.cat([other(x).softmax(-1) for x, _ in batches()]))
    torch.testing.assert_close(result.probabilities, torch.stack(expected).mean(0))
    members = [member.nll for member in result.members]
    assert len(set(members)) == 4
    assert result.quality.nll <= sum(members) / 4
    assert [quality(p, result.labels).nll for p in expected] == pytest.approx(members)


def test_gives_the_model_back():
    model = build("conv", 9).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(8, 2, 5, 5, generator=generator(0, "x"))
    ensemble(model, [random_ticket("conv", 1)], [(x, torch.zeros(8).long())])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_one_member_is_the_member():
    ticket = random_ticket("mlp", 3)
    result = ensemble(build("mlp"), [ticket], batches())
    assert result.quality == result.members[0]
    assert (result.disagreement, result.overlap) == (0.0, 1.0)


def test_disagreement_and_overlap_of_pairs():
    model = build("mlp")
    first, second = random_ticket("mlp", 1), random_ticket("mlp", 2)
    assert ensemble(model, [first, first], batches()).disagreement == 0.0
    result = ensemble(model, [first, second, first], batches())
    pair = ensemble(model, [first, second], batches())
    assert 0 < pair.disagreement <= 1
    assert result.disagreement == pytest.approx(2 / 3 * pair.disagreement)
    # half of the weights each, drawn apart
    assert pair.overlap == pytest.approx(1 / 3, abs=0.15)


def test_norm_statistics_are_the_tickets_own():
    ticket = random_ticket("conv", 4)
    x = torch.randn(8, 2, 5, 5, generator=generator(0, "x"))
    own = build("conv", 4)
    ticket.apply_(own)
    expected = own.eval()(x).softmax(-1)
    other = build("conv", 5)
    result = ensemble(other, [ticket], [(x, torch.zeros(8).long())])
    torch.testing.assert_close(result.probabilities, expected)


def test_a_shuffled_loader_is_refused():
    x, y = torch.randn(64, 6, generator=generator(0, "x")), torch.arange(64) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(LowdimError, match="without shuffling"):
        ensemble(build("mlp"), [random_ticket("mlp", 1), random_ticket("mlp", 2)], loader)


def test_used_up_or_malformed_batches_are_refused():
    tickets = [random_ticket("mlp", 1), random_ticket("mlp", 2)]
    with pytest.raises(LowdimError, match="already used up"):
        ensemble(build("mlp"), tickets, (batch for batch in batches()))
    with pytest.raises(LowdimError, match=r"pairs \(input, labels\)"):
        predict(build("mlp"), [torch.zeros(2, 6)])
    with pytest.raises(LowdimError, match="no tickets"):
        ensemble(build("mlp"), [], batches())


def test_predict_takes_a_forward_and_restores_the_mode():
    model = build("mlp").train()
    plain, labels = predict(model, batches())
    scaled, _ = predict(model, batches(), forward=lambda m, batch: 0 * m(batch[0]))
    assert model.training
    assert len(labels) == 50
    torch.testing.assert_close(scaled, torch.full((50, 3), 1 / 3))
    assert not torch.equal(plain, scaled)
