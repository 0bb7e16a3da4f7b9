"""How good class probabilities are: accuracy, likelihood, calibration."""

from __future__ import annotations

from dataclasses import dataclass

from lowdim.core.errors import LowdimError
from lowdim.core.lazy import torch
from lowdim.evaluate.quality.calibration import calibration_error


@dataclass(frozen=True)
class Quality:
    """Measures of predicted probabilities against labels.

    Attributes:
        accuracy: share of samples whose most probable class is the label (ties: the lowest class).
        nll: mean of -log p(label), in nats.
        ece: expected calibration error, sum over bins of (share of samples) * |accuracy - confidence|.
    """

    accuracy: float
    nll: float
    ece: float


def quality(probabilities: torch.Tensor, labels: torch.Tensor, *, bins: int = 15) -> Quality:
    """Measure class probabilities.

    Args:
        probabilities: [samples, classes], rows that sum to 1.
        labels: int64 [samples].
        bins: equal-width bins of confidence for the calibration error; (lower, upper], as usual.

    Raises:
        LowdimError: the shapes do not fit, or there is no sample.

    Example:
        >>> import torch
        >>> found = quality(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 0]))
        >>> found.accuracy, round(found.nll, 4), round(found.ece, 4)
        (0.5, 0.5697, 0.4)
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise LowdimError(
            f"probabilities must be [samples, classes] with one label per sample; got {tuple(probabilities.shape)} "
            f"and {tuple(labels.shape)}"
        )
    p = probabilities.detach().double()
    confidence, predicted = p.max(dim=1)
    hits = predicted == labels
    nll = -p.gather(1, labels.unsqueeze(1)).clamp_min(torch.finfo(torch.float64).tiny).log().mean()
    return Quality(float(hits.double().mean()), float(nll), calibration_error(confidence, hits, bins))
