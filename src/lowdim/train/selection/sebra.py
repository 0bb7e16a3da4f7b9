"""Sebra, first stage: what a network learns first, it learns from what is spurious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lowdim.core.lazy import torch
from lowdim.core.settings import Moot, count, within
from lowdim.data.classification import Dataset
from lowdim.train.selection.base import TrainedSelector

if TYPE_CHECKING:
    from torch import nn

    from lowdim.train.loop import Kept
    from lowdim.train.selection.sebra_ranking import Augment, SebraRanking


@dataclass(frozen=True)
class Sebra(TrainedSelector):
    """Ranks samples by the epoch in which a network has learnt them, and trains on no more once it has.

        loss_i = u_i CE_i,    u_i = p_i^beta,    p_i the probability of the sample's own class, a constant here

    Every sample begins selected. An epoch trains on the selected ones alone; after it, those of p_i > p_crit get the
    epoch's number as their rank and are selected no more. What is easy and so weighs most is learnt first: what is
    spurious. Samples that are never ranked come last, in a rank of their own. Samples are judged in evaluation mode,
    without augmentation.

    Paper: "Sebra: Debiasing through Self-Guided Bias Ranking", 2025, arXiv 2501.18277.

    Attributes:
        beta: 0 is plain cross entropy; the greater, the less do samples weigh that are not learnt yet.
        p_crit: confidence above which a sample is learnt, in [0, 1).
        epochs: at most.
        batch: samples of a step at most.
        draws: "once" trains on every selected sample once an epoch; "replacement" draws as many as there are samples,
            of the selected ones, with replacement, as the authors' code does.
        optimizer: "adam" or "sgd".
        lr: learning rate, constant.
        momentum: of sgd.
        weight_decay: coupled, as in torch.

    Example:
        >>> Sebra(p_crit=0.7).to_dict()["beta"]
        0.7
    """

    moot: ClassVar[Moot] = {"momentum": ("optimizer", ("adam",))}
    beta: float = within(0.7, least=0)
    p_crit: float = within(0.75, least=0, below=1)
    batch: int = count(64, least=2)
    draws: Literal["once", "replacement"] = "once"
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = within(0.9, least=0, below=1)
    weight_decay: float = within(0.0, least=0)

    def begin(
        self,
        model: nn.Module,
        data: Dataset,
        *,
        seed: int = 0,
        optimizer: torch.optim.Optimizer | None = None,
        riders: Sequence[Kept] = (),
        augment: Augment | None = None,
    ) -> SebraRanking:
        """Return the ranking before its first epoch, for those who train it epoch by epoch, or with masks.

        Args:
            model: maps a batch of samples to logits [samples, classes].
            data: whose training samples are ranked.
            seed: of the order of the samples.
            optimizer: of the model, in the place of the settings' own.
            riders: what rides on that optimizer and is saved with the ranking, such as a ``SparseTraining``.
            augment: what is done to a batch before it is trained on, and never before it is judged.
        """
        from lowdim.train.selection.sebra_ranking import SebraRanking

        return SebraRanking(self, model, data, seed, optimizer or self._optimizer(model), riders, augment)

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.optimizer == "adam":
            return torch.optim.Adam(trained, self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(trained, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
