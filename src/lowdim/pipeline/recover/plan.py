"""The plan of a recovery, timed on this machine before the work: steps, minutes, memory."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lowdim.core.errors import RecipeError
from lowdim.data.batch import num_tokens
from lowdim.models import ranks
from lowdim.pipeline.recover.blocks import BlockStage, Text
from lowdim.pipeline.recover.distill import DistillStage
from lowdim.pipeline.recover.fit import LOOKS, Fitter
from lowdim.pipeline.recover.pair import Pair, trained

LEAST = LOOKS
"""Batches that a stage trains on at least; with less time than that it does nothing that could be seen."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage will do.

    Attributes:
        steps: of the optimizer; of the first stage, for every block.
        batches: of the text that are used.
        seconds: how long it takes, estimated from what one step took just now.
    """

    steps: int
    batches: int
    seconds: float


@dataclass(frozen=True)
class RecoveryPlan:
    """What a recovery will do.

    Attributes:
        stages: by name.
        weights: that are trained.
        zeros: share of zeros among the weights of the layers.
        memory: estimated bytes of each stage beyond Python and torch.
    """

    stages: dict[str, StagePlan]
    weights: int
    zeros: float
    memory: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def render(self) -> str:
        """Return the plan as text."""
        words = {"blocks": "Block by block", "distill": "End to end"}
        lines = [f"{self.weights:,} weights are trained; {self.zeros:.1%} of the layers' are zero"]
        for name, stage in self.stages.items():
            each = " for every block" if name == "blocks" else ""
            memory = self.memory[name] / 2**20
            lines.append(
                f"{words[name]}: {stage.steps} steps{each} on {stage.batches} batches of text, about "
                f"{stage.seconds / 60:.1f} min on this machine, {memory:,.0f} MB"
            )
        return "\n".join(lines)


def plan_blocks(pair: Pair, text: Text) -> StagePlan:
    """Time a step of the first block's training, which leaves no trace, and choose how many every block gets.

    Where time is short, fewer batches are carried through the model; otherwise all are, and seen several times.

    Raises:
        RecipeError: there is not time enough for anything.
    """
    recipe, blocks = pair.recipe, len(pair.student.stream)
    small = Text(text.train[:2], text.held[:1])
    forward, step = ranks.broadcast(_time_block(pair, small))
    asked, held = recipe.seconds("blocks"), len(text.held)
    passes = 2 + (recipe.blocks.targets == "recovered")
    fixed = held * forward * (passes + LOOKS)
    if asked is None:
        batches, steps = len(text.train), max(1, round(recipe.blocks.passes * len(text.train)))
    else:
        each = asked / blocks - fixed
        batches = min(len(text.train), int(each / (step + passes * forward)))
        if batches < min(LEAST, len(text.train)):
            least = blocks * (fixed + LEAST * (step + passes * forward)) / 60
            raise RecipeError(_short(recipe.minutes, least / (recipe.share if recipe.stage == "both" else 1)))
        steps = max(batches, int((each - batches * passes * forward) / step))
    return StagePlan(steps, batches, blocks * (fixed + batches * passes * forward + steps * step))


def _time_block(pair: Pair, text: Text) -> tuple[float, float]:
    """Return the seconds of a batch's forward through a block, and of a training step."""
    stage = BlockStage(pair, text, 2)
    with pair.student.stream.block(0) as block, pair.teacher.stream.block(0) as dense:
        examples = stage.examples(dense)
        begun = time.perf_counter()
        with torch.no_grad():
            float(block.forward(examples[0].given).sum())  # a number is there once the device has computed it
            middle = time.perf_counter()
            float(block.forward(examples[0].given).sum())
        forward = min(middle - begun, time.perf_counter() - middle)
        work = trained(block, stage.names)
        steps = []
        for _ in range(3):
            fit, _ = Fitter(pair.recipe, 2).fit(block, work, examples[1:], examples[:1])
            steps.append(fit.seconds / fit.steps - 1.5 * forward)
    return forward, max(forward, min(steps))


def plan_distill(stage: DistillStage) -> StagePlan:
    """Time a step and choose how many there are.

    Raises:
        RecipeError: there is not time enough for anything.
    """
    recipe, count, each = stage.pair.recipe, len(stage.text.train), stage.accumulate
    step, taught = ranks.broadcast(stage.time_step())
    asked, share = recipe.seconds("distill"), 1 - recipe.share if recipe.stage == "both" else 1.0
    if asked is None:
        steps = max(1, round(recipe.distill.passes * count / each))
    else:
        steps = int(asked / (step + each * taught))  # while the teacher is asked about every batch
        if steps * each > count:
            steps = int((asked - count * taught) / step)
        if steps < LEAST:
            raise RecipeError(_short(recipe.minutes, LEAST * (step + each * taught) / 60 / share))
    recipe.masks.check(steps)
    micro = steps * each
    return StagePlan(steps, min(micro, count), steps * step + min(micro, count) * taught)


def _short(minutes: float | None, least: float) -> str:
    return (
        f"minutes={minutes} is too short: on this machine {LEAST} steps take {least:.2g} minutes. Give at least so "
        "many, a smaller calibration.context, or fewer distill.sequences."
    )


def memory(pair: Pair, text: Text, batches: int) -> dict[str, int]:
    """Return what each stage holds, bytes: weights with masters, Adam's two moments and gradients, and activations."""
    stream = pair.student.stream
    item = (stream.compute or pair.student.stored).itemsize
    sizes = [sum(p.numel() for p in block.parameters()) for block in stream.blocks]
    outside = stream.numel() - sum(sizes)
    table: Any = stream.model.get_input_embeddings()
    width = table.weight.shape[1]
    tokens = num_tokens([*text.train[:batches], *text.held])
    micro = num_tokens(text.train[0])
    inner = 14 * micro * width * 4
    return {
        "blocks": max(sizes) * (2 * item + 2 * pair.student.stored.itemsize + 6 * 4)
        + 3 * tokens * width * item
        + inner,
        "distill": sum(sizes) * (2 * item + 4 * 4) + 2 * outside * item + len(stream) * inner + tokens * width * item,
    }


def states(pair: Pair) -> int:
    """Return the bytes of the states of the end-to-end stage that lie on disk at a time, on all ranks together.

    Three: a good one, the latest, and the one that is being written, each with the model, fp32 copies and two moments.
    """
    stream = pair.student.stream
    item = (stream.compute or pair.student.stored).itemsize
    return 3 * (stream.numel() * item + 12 * sum(p.numel() for block in stream.blocks for p in block.parameters()))


def counted(pair: Pair) -> tuple[int, float]:
    """Return how many weights are trained, and the share of pruned ones among those of the layers.

    Raises:
        RecipeError: pruned weights are to be stored on a grid that knows none, or masks to move where none is pruned.
    """
    stream, names = pair.student.stream, {info.name for info in pair.student.layers}
    total = pruned = others = 0
    for index in range(len(stream)):
        with stream.block(index) as block:
            work = trained(block, names)
            for parameter, layer in work.layers.items():
                mask = work.masks.get(parameter)
                total += layer.master.numel()
                pruned += 0 if mask is None else layer.master.numel() - int(mask.sum())
                if mask is not None and pair.recipe.quantize == "int3":
                    raise RecipeError(f"{layer.name} has pruned weights, and quantize='int3' has no mask. Take 'int4'.")
            others += sum(parameter.numel() for parameter in work.others)
    if pair.recipe.masks.moves and not pruned:
        raise RecipeError("Moving masks need zeros, and this model has none. Prune it first, or leave masks out.")
    idle = 0 if pair.recipe.masks.moves else pruned
    return total - idle + others, pruned / max(1, total)
