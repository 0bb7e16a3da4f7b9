"""Rows of `sparse_quality.py` for Chase: accuracy of the masked and of the sliced network, and what slicing saves."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any, Literal

import torch
from quality_tasks import Task, train
from torch import Tensor, nn

from lowdim.data.classification import Dataset
from lowdim.models.small.nets import Net
from lowdim.train import Chase, SparseTraining, slice_channels

SPARSITY = 0.9
CHANNELS = (0.0, 0.3, 0.5)  # S_c, the shares of channels that are removed
ROUNDS, BATCH = 21, 256


class VGG(Net):
    """Two 3x3 convolutions with batch norm per stage, max pooling after each; a linear head."""

    name: Literal["vgg"] = "vgg"
    channels: tuple[int, ...] = (16, 32, 64)

    def module(self, data: Dataset) -> nn.Module:
        """Return the network."""
        net, inputs = nn.Sequential(), data.shape[0]
        for width in self.channels:
            for source in (inputs, width):
                net.extend([nn.Conv2d(source, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()])
            net.append(nn.MaxPool2d(2))
            inputs = width
        places = math.prod(side >> len(self.channels) for side in data.shape[1:])
        return net.extend([nn.Flatten(), nn.Linear(inputs * places, len(data.classes))])

    def scaled(self, factor: float) -> VGG:
        """Return the same with other widths."""
        return self.model_copy(update={"channels": tuple(max(1, round(factor * c)) for c in self.channels)})


VGG_TASK = Task("vgg", VGG(), epochs=8)


def chase(task: Task, seed: int) -> dict[str, Any]:
    """Train with 90% zeros and remove no, 30% and 50% of the channels."""
    found: dict[str, Any] = {}
    for share in CHANNELS:
        for what, value in _one(task, seed, share).items():
            found[f"{share:.0%} of channels removed: {what}"] = value
    return found


def vgg(task: Task, seed: int) -> dict[str, Any]:
    """Do the same with a plain stack of convolutions, where every channel can go."""
    return chase(VGG_TASK, seed)


def _one(task: Task, seed: int, share: float) -> dict[str, Any]:
    model = task.model(seed)
    optimizer = task.optimizer(model)
    method = Chase(every=25, channels=share, channel_every=25)
    training = SparseTraining(model, optimizer, sparsity=SPARSITY, method=method, total_steps=task.steps, seed=seed)
    train(task, model, optimizer, task.batches(seed), task.factor)
    images = task.data().test[0][:BATCH]
    sliced = slice_channels(model, images, masks=training.masks)
    return {
        "accuracy": task.accuracy(model),
        "accuracy, sliced": task.accuracy(sliced.model),
        "parameters, sliced over unsliced": sliced.parameters[1] / sliced.parameters[0],
        "FLOPs, sliced over unsliced": sliced.flops[1] / sliced.flops[0],
        "forward pass, times faster": _ratio(model, sliced.model, images),
        "explored": training.explored(),
    }


def _ratio(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Return how many times faster another model's forward pass is: the median of interleaved pairs."""
    for net in (model, other):
        net.eval()
    ratios = []
    with torch.inference_mode():
        for _ in range(ROUNDS):
            times = []
            for net in (model, other):
                begun = time.perf_counter()
                net(x)
                times.append(time.perf_counter() - begun)
            ratios.append(times[0] / times[1])
    return median(ratios[1:])
