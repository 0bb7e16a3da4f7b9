"""The way forwards: all batches through all blocks once, and once more without each of them, weights read once.

At block k run the states of the whole model and, side by side, those of the k models that miss an earlier block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import torch
from torch import Tensor

from lowdim.core.errors import NumericalError
from lowdim.core.progress import Progress
from lowdim.data.batch import Batch
from lowdim.data.windows import Windows
from lowdim.evaluate.diagnose.measures import Moments, angles, influences
from lowdim.evaluate.quality.perplexity import Perplexity, perplexity
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.stream import Block, Stream

TOKENS_PER_BATCH = 1024


@dataclass
class Forwards:
    """What the way forwards found.

    Attributes:
        activations: the states behind the last block.
        entering: per block, the hidden states that entered it; empty unless they were to be kept.
        variances: of what enters the first block and of what leaves each.
        typical: per such state the median over tokens of a token's own variance over channels.
        influences: of each block.
        angles: per block l the mean distance of what enters it from what leaves block l + n - 1, for n = 1, 2, ...
        whole: perplexity of the model.
        without: per block that of the model without it; None where there is none.
        notes: why there is none.
    """

    activations: list[Activation]
    entering: list[list[Tensor]] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    typical: list[float] = field(default_factory=list)
    influences: list[float] = field(default_factory=list)
    angles: list[list[float]] = field(default_factory=list)
    whole: Perplexity | None = None
    without: list[Perplexity | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def forwards(
    stream: Stream,
    text: Windows,
    batches: Sequence[Batch],
    visit: Callable[[Block], None],
    progress: Progress,
    *,
    drop: bool,
    keep: bool,
) -> Forwards:
    """Run a text through a model and through its blocks' absences.

    Args:
        stream: a model whose blocks hand on nothing but hidden states, or no block can be dropped.
        text: windows, of which ``batches`` are made.
        batches: what runs at a time.
        visit: called with every block while its weights are there.
        progress: told of every batch that passes a block.
        drop: measure the perplexity without each block.
        keep: keep the hidden states that enter each block.

    Raises:
        NumericalError: a hidden state or a logit of the whole model is NaN or Inf.
    """
    found = Forwards(stream.capture(batches))
    missing: dict[int, list[Activation]] = {}
    seen = _Seen(found)
    total = len(stream) + drop * len(stream) * (len(stream) - 1) // 2
    with progress.stage("Blocks", total * len(batches), "steps") as stage:
        for index in range(len(stream)):
            before = [activation.hidden for activation in found.activations]
            if keep:
                found.entering.append(before)
            with stream.block(index) as block:
                visit(block)
                for activation in chain.from_iterable(missing.values()):
                    activation.hidden = block.forward(activation, keep=True)
                    stage.advance()
                if drop:
                    missing[index] = [replace(activation) for activation in found.activations]
                for activation in found.activations:
                    block.advance(activation)
                    stage.advance()
            seen.passed(before)
    _measure(stream, text, found, missing, progress)
    return found


class _Seen:
    """Statistics of the hidden states, block after block."""

    def __init__(self, found: Forwards) -> None:
        self.found = found
        self.last: list[Tensor] = []  # per state, of the last tokens, [windows, width]
        self._take()

    def _take(self) -> None:
        moments = Moments()
        for activation in self.found.activations:
            moments.add(activation.hidden)
        self.found.variances.append(moments.variance)
        own = [_tokens(a.batch, a.hidden).double().var(-1, unbiased=False) for a in self.found.activations]
        self.found.typical.append(float(torch.cat([each.flatten() for each in own]).median()))
        self.last.append(torch.cat([_tokens(a.batch, a.hidden)[:, -1] for a in self.found.activations]))

    def passed(self, before: Sequence[Tensor]) -> None:
        """Take in what a block made of what entered it."""
        pairs = zip(before, self.found.activations, strict=True)
        changed = torch.cat(
            [influences(_tokens(new.batch, old), _tokens(new.batch, new.hidden)).flatten() for old, new in pairs]
        )
        self.found.influences.append(float(changed.mean()))
        self._take()
        for index, state in enumerate(self.last[:-1]):
            if index == len(self.found.angles):
                self.found.angles.append([])
            self.found.angles[index].append(float(angles(state, self.last[-1]).mean()))


def _tokens(batch: Batch, hidden: Tensor) -> Tensor:
    """Return hidden states as ``[windows, tokens, width]``, whatever further axes a model has, and where."""
    if hidden.dim() > 3 and hidden.shape[1:3] == batch.input_ids.shape != hidden.shape[:2]:
        hidden = hidden.movedim(0, 2)
    return hidden.flatten(2) if hidden.dim() > 2 else hidden.view(len(batch), -1, hidden.shape[-1])


def _measure(
    stream: Stream, text: Windows, found: Forwards, missing: dict[int, list[Activation]], progress: Progress
) -> None:
    """Turn the states behind the last block into perplexities."""
    states = [found.activations, *missing.values()]
    with progress.stage("Logits", sum(map(len, states)), "batches") as stage:

        def told(logits: Iterator[Tensor]) -> Iterator[Tensor]:
            for each in logits:
                yield each
                stage.advance()

        made = told(stream.logits(list(chain.from_iterable(states))))

        def measured(part: Iterator[Tensor]) -> Perplexity:
            return perplexity(lambda _: part, text, tokens_per_batch=TOKENS_PER_BATCH)

        found.whole = measured(islice(made, len(found.activations)))
        found.without = [None] * len(stream)
        for index, activations in missing.items():
            part = islice(made, len(activations))
            try:
                found.without[index] = measured(part)
            except NumericalError:
                found.notes.append(f"Without block {index} the model computes NaN: no perplexity.")
                deque(part, maxlen=0)
