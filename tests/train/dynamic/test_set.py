"""SET by hand: what either sign loses, and what new weights are."""

from __future__ import annotations

import torch
from tests.train.small import one_row, step_with

from lowdim.core.transition import drop_by_sign
from lowdim.train import SET

VALUES = (0.01, 0.02, 0.5, 0.9, -0.6, -0.7, -0.8, -0.9)


def dropped(method: SET, values: tuple[float, ...] = VALUES) -> set[float]:
    model, training = one_row([*values, *[0.0] * 40], [1] * 8 + [0] * 40, method)
    before = model.weight.detach().clone()
    step_with(model, training, [0.0] * 48)
    assert int(training.masks["weight"].sum()) == 8
    changed = (model.weight.detach() != before)[0, :8]
    return {round(float(w), 4) for w in before[0, :8][changed]}


def test_each_sign_loses_its_share() -> None:
    assert dropped(SET(every=1, drop=0.25)) == {0.01, -0.6}


def test_the_paper_example() -> None:
    assert dropped(SET(every=1, drop=0.25), (0.05, 0.2, 0.5, 0.9, -0.1, -0.3, -0.4, -0.8)) == {
        0.05,
        -0.1,
    }


def test_equal_counts_differ_where_signs_do() -> None:
    values = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, -0.6, -0.7)
    assert dropped(SET(every=1, drop=0.5), values) == {0.01, 0.02, 0.03, -0.6}
    assert dropped(SET(every=1, drop=0.5, rule="sign-count"), values) == {0.01, 0.02, -0.6, -0.7}


def test_new_weights_are_normal() -> None:
    torch.manual_seed(0)
    weights = torch.randn(1000).tolist()
    model, training = one_row(weights + [0.0] * 3000, [1] * 1000 + [0] * 3000, SET(every=1, drop=0.3))
    step_with(model, training, [0.0] * 4000)
    grown = model.weight.detach()[0, 1000:][training.masks["weight"][0, 1000:]]
    assert len(grown) > 150
    assert 0.08 < float(grown.std()) < 0.12


def test_new_weights_are_always_trained() -> None:
    assert [t for t in range(1, 41) if SET(every=10).due(t, 40)] == [10, 20, 30]
    assert SET(every=10).due(40, None)


def test_zero_share_is_static() -> None:
    assert dropped(SET(every=1, drop=0.0)) == set()


def test_exact_zeros_go_first_among_the_positive() -> None:
    weights = torch.tensor([0.5, 0.0, 0.9, 0.0, -0.1, -0.2])
    assert drop_by_sign(weights, 0.5).tolist() == [True, False, True, False, False, True]
