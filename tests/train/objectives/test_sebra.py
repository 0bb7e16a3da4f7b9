"""Sebra's contrast: values by hand, what has a gradient, and what the features are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.data.select.ranks import Ranks
from lowdim.train.compare.recipe import TrainingRecipe
from lowdim.train.compare.run import train
from lowdim.train.objectives.base import Drawn, Samples
from lowdim.train.objectives.sebra import SebraContrast, contrast, features
from lowdim.train.samplers.aim import Aim
from lowdim.train.samplers.pairs import Pairs


def net(width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 2))


def batch(count: int = 6) -> Drawn:
    source = torch.Generator().manual_seed(1)
    x, positive, negative = (torch.randn(count, 3, generator=source) for _ in range(3))
    return Drawn(x, torch.arange(count) % 2, torch.arange(count), None, {}, (positive, negative))


def test_two_anchors_by_hand() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    positives = torch.tensor([[3.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0
    negatives = torch.tensor([[0.0, 1.0], [0.0, -1.0]])  # cosines 0 and -1
    total = math.e**2 + 1 + 1 + math.e**-2
    found = contrast(anchors, positives, negatives, 0.5)
    assert found.tolist() == pytest.approx([math.log(total) - 2, math.log(total)], rel=1e-6)


def test_it_stays_finite_at_small_temperatures() -> None:
    anchors = torch.tensor([[1.0, 0.0]])
    assert float(contrast(anchors, anchors, -anchors, 1e-3)) == pytest.approx(0.0, abs=1e-6)
    assert float(contrast(anchors, -anchors, anchors, 1e-3)) == pytest.approx(2000.0, rel=1e-6)


def test_the_loss_is_contrast_and_weighted_cross_entropy_of_the_positives() -> None:
    model, drawn = net(), batch()
    objective = SebraContrast(temperature=0.1, weight=0.5)
    before = copy.deepcopy(model)
    found = objective.loss(objective.forward(model, drawn), drawn)
    model = before
    model.eval()
    fixed, _ = features(model, torch.cat(drawn.partners))
    model.train()
    seen, logits = features(model, torch.cat([drawn.x, drawn.partners[0]]))
    wanted = contrast(seen[:6], fixed[:6], fixed[6:], 0.1)
    wanted = wanted + 0.5 * nn.functional.cross_entropy(logits[6:], drawn.y, reduction="none")
    assert found.shape == (6,)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_partners_have_no_gradient_and_are_seen_in_evaluation_mode() -> None:
    model = net()
    seen = SebraContrast().forward(model, batch())
    assert seen.anchors.requires_grad and seen.logits.requires_grad
    assert not seen.positives.requires_grad and not seen.negatives.requires_grad
    assert model.training


def test_features_are_what_the_head_takes() -> None:
    model = net().eval()
    x = torch.randn(5, 3)
    found, logits = features(model, x)
    assert torch.equal(model[:3](x), found)  # type: ignore[index]
    assert torch.equal(model(x), logits)
    with pytest.raises(RecipeError, match="no linear head"):
        features(nn.Sequential(nn.Linear(3, 2)), x)


def test_a_batch_of_one_class_has_a_loss() -> None:
    drawn = batch()._replace(y=torch.zeros(6, dtype=torch.int64))
    objective = SebraContrast()
    loss = objective.mean(objective.forward(net(), drawn), drawn)
    loss.backward()
    assert bool(loss.isfinite())


def test_it_trains_with_a_sampler_of_pairs() -> None:
    y = torch.arange(40) % 2
    ranks = Ranks(1 + torch.arange(40) // 10, y, ("a", "b"), "", "", {})
    crowd = Samples(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), y, 2, ranks=ranks)
    aim, model = Aim(SebraContrast(), Pairs(gap=2), crowd), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    means = []
    for epoch in range(8):
        losses = []
        for drawn in aim.batches(epoch, model, 20):
            loss = aim.loss(model, drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    assert means[-1] < means[0]


def test_a_recipe_takes_pairs_without_being_told() -> None:
    recipe = TrainingRecipe(data="digits", objective="sebra", ranks="somewhere", epochs=5)
    assert recipe.sampler == Pairs()
    assert TrainingRecipe.from_yaml(recipe.to_yaml()) == recipe
    with pytest.raises(RecipeError, match=r"needs ranks of the samples\. Give ranks"):
        train(TrainingRecipe(data="digits", objective="sebra"))
    with pytest.raises(RecipeError, match="Choose sampler: pairs"):
        TrainingRecipe(data="digits", objective="sebra", sampler="shuffled", ranks="somewhere")


def test_settings_of_the_data_are_set_one_by_one() -> None:
    given = ["data.settings.conflicting=0.02", "data.settings.seed=3"]
    recipe = TrainingRecipe.assemble(None, {"data": "coloured-digits"}, given)
    assert recipe.data.settings == {"conflicting": 0.02, "seed": 3}
    with pytest.raises(RecipeError, match="Did you mean 'graded'"):
        TrainingRecipe.assemble(None, {"data": "coloured-digits"}, ["data.settings.gradd=true"])
