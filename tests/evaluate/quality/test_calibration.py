"""The expected calibration error, by hand."""

from __future__ import annotations

import pytest
import torch

from lowdim.evaluate.quality.calibration import calibration_error


@pytest.mark.parametrize(
    ("confidences", "hits", "error"),
    [
        ([0.8] * 10, [1] * 8 + [0] * 2, 0.0),  # as sure as it is right
        ([1.0] * 4, [1, 1, 0, 0], 0.5),
        ([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0], (2 * 0.1 + 2 * 0.1) / 4),
        ([0.05, 0.95], [0, 0], 0.5),
    ],
)
def test_calibration_error(confidences: list[float], hits: list[int], error: float) -> None:
    assert calibration_error(torch.tensor(confidences), torch.tensor(hits).bool()) == pytest.approx(error, abs=1e-6)


def test_bins_are_open_below_and_closed_above() -> None:
    hits = torch.tensor([True, False])
    assert calibration_error(torch.tensor([0.5, 0.6], dtype=torch.float64), hits, bins=2) == pytest.approx(0.55)
    assert calibration_error(torch.tensor([0.6, 0.7], dtype=torch.float64), hits, bins=2) == pytest.approx(0.15)
