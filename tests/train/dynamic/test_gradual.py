"""Gradual magnitude pruning by hand."""

from __future__ import annotations

from tests.train.small import one_row, step_with

from lowdim.train import GradualMagnitude


def test_reaches_the_target_exactly_and_never_grows() -> None:
    weights = [float(i + 1) for i in range(100)]
    model, training = one_row(weights, [1] * 100, GradualMagnitude(every=2, until=0.8), sparsity=0.9, total_steps=10)
    kept = [sum(step_with(model, training, [0.0] * 100)) for _ in range(10)]
    assert kept == [100, 48, 48, 21, 21, 11, 11, 10, 10, 10]
    assert training.masks["weight"][0, 90:].all()
