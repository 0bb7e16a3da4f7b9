from __future__ import annotations

import pytest
import torch
from tests.models.tickets import build, mlp
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.core.random import generator
from lowdim.models.norms import refresh_norm


def data(count=23):
    return 3 + 2 * torch.randn(count, 2, 5, 5, generator=generator(0, "images"))


def test_equals_the_statistics_of_the_data_however_it_is_cut():
    x = data()
    expected = x.double().mean(dim=(0, 2, 3)), x.double().var(dim=(0, 2, 3))
    for batches in ([x], x.split(8), x.split([20, 3])):
        norm = nn.BatchNorm2d(2, momentum=0.3)
        assert refresh_norm(norm, batches) == 1
        torch.testing.assert_close(norm.running_mean, expected[0].float())
        torch.testing.assert_close(norm.running_var, expected[1].float())
        assert norm.num_batches_tracked == len(batches)
        assert norm.momentum == 0.3


def test_holds_where_the_mean_dwarfs_the_spread():
    x = 1e4 + torch.randn(64, 3, generator=generator(0, "offset"))
    norm = nn.BatchNorm1d(3)
    refresh_norm(norm, x.split(8))
    torch.testing.assert_close(norm.running_var, x.double().var(dim=0).float())


def test_later_norms_see_what_training_would_show_them():
    model, x = build("conv"), data()
    refresh_norm(model, [x])
    first = nn.functional.batch_norm(model[0](x), None, None, model[1].weight, model[1].bias, training=True)
    seen = model[3](first.relu())
    torch.testing.assert_close(model[4].running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model[4].running_var, seen.var(dim=(0, 2, 3)), atol=1e-6, rtol=1e-5)


def test_touches_nothing_else_and_restores_modes():
    model = build("conv")
    model.train()
    model[4].eval()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    refresh_norm(model, data().split(8))
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert model.training
    assert not model[4].training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_draws_no_random_number():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    x = torch.randn(32, 4, generator=generator(0, "x"))
    before = torch.get_rng_state()
    refresh_norm(model, [x])
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(model[1].running_mean, x.mean(dim=0))


def test_without_batchnorm_no_batch_is_read():
    def never():
        raise AssertionError("read")
        yield

    assert refresh_norm(mlp(), never()) == 0
    assert refresh_norm(nn.BatchNorm1d(2, track_running_stats=False), never()) == 0


def test_takes_tuples_mappings_and_a_forward_of_your_own():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x)

    x = torch.randn(9, 2, generator=generator(0, "x"))
    found = []
    for batch, forward in (((x, 1), None), ({"x": x}, None), ({"y": [x]}, lambda m, b: m(b["y"][0]))):
        model = Named()
        refresh_norm(model, [batch], forward=forward)
        found.append(model.norm.running_mean.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_batch_of_one_value_or_no_batch_is_refused_and_changes_nothing():
    model = nn.BatchNorm1d(2)
    before = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.raises(LowdimError, match="drop_last=True"):
        refresh_norm(model, torch.randn(9, 2, generator=generator(0, "x")).split(4))
    with pytest.raises(LowdimError, match="batches is empty"):
        refresh_norm(model, [])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_a_norm_that_is_not_reached_keeps_its_statistics():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(x)

    model = Unused()
    assert refresh_norm(model, [torch.ones(4, 2)]) == 1
    assert torch.equal(model.spare.running_var, torch.ones(2))
    assert torch.equal(model.used.running_var, torch.zeros(2))
