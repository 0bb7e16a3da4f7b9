"""The first stage: block by block, each one durable before the next."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.core.progress import Progress
from lowdim.core.quantize import Quantized
from lowdim.data.batch import Batch
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.stream import Block
from lowdim.pipeline.recover.fit import Example, Fitter
from lowdim.pipeline.recover.pair import Pair, Trained, trained
from lowdim.prune.bench import Outcome
from lowdim.prune.keeper import BlockRecord, Keeper, record_block


@dataclass(frozen=True)
class Text:
    """The batches that are trained on, and those that are held out."""

    train: Sequence[Batch]
    held: Sequence[Batch]


class BlockStage:
    """Carries the text through both models, block by block, and trains each of the student's.

    Args:
        pair: the models.
        text: batches of tokens.
        steps: of the optimizer, for every block.
    """

    def __init__(self, pair: Pair, text: Text, steps: int) -> None:
        self.pair, self.steps = pair, steps
        self.names = {info.name for info in pair.student.layers}
        held, other = (stream.capture(text.held) for stream in (pair.student.stream, pair.teacher.stream))
        self._held = len(held)  # of which there may be more than batches: padded ones may be cut
        self._own = held + pair.student.stream.capture(text.train)
        self._dense = other + pair.teacher.stream.capture(text.train)

    def run(self, keeper: Keeper, progress: Progress) -> dict[int, BlockRecord]:
        """Train the blocks that are not finished yet, each written before the next; return the records of all."""
        pair, fitter = self.pair, Fitter(self.pair.recipe, self.steps)
        records = keeper.blocks()
        written = keeper.reader() if records else None
        with progress.stage("Recover block by block", len(pair.student.stream), "blocks") as stage:
            for index in range(len(pair.student.stream)):
                done = index in records
                with ExitStack() as stack:
                    block = stack.enter_context(pair.student.stream.block(index, written if done else None))
                    dense = stack.enter_context(pair.teacher.stream.block(index))
                    if done:
                        self._advance(self._dense, dense)
                    else:
                        records[index] = self._recover(fitter, block, dense, keeper)
                    self._advance(self._own, block)
                stage.advance()
        return records

    @torch.no_grad()
    def _advance(self, activations: Sequence[Activation], block: Block) -> None:
        for activation in activations:
            block.advance(activation)

    def _recover(self, fitter: Fitter, block: Block, dense: Block, keeper: Keeper) -> BlockRecord:
        examples = self.examples(dense)
        work = trained(block, self.names, self.pair.pruned)
        fit, codes = fitter.fit(block, work, examples[self._held :], examples[: self._held])
        keeper.state.setdefault("fits", {})[str(block.index)] = asdict(fit)
        pruned = {layer.name for parameter, layer in work.layers.items() if parameter in work.masks}
        return write(self.pair, keeper, block, work, codes, pruned)

    @torch.no_grad()
    def examples(self, dense: Block) -> list[Example]:
        """Return what the block is fed and is to give; the dense stream is behind the block afterwards."""
        settings, made = self.pair.recipe.blocks, list[Example]()
        for own, other in zip(self._own, self._dense, strict=True):
            given = own if settings.inputs == "recovered" else replace(other)
            wanted = dense.forward(own) if settings.targets == "recovered" else None
            dense.advance(other)
            made.append(Example(given, other.hidden if wanted is None else wanted))
        return made


def write(
    pair: Pair,
    keeper: Keeper,
    block: Block,
    work: Trained,
    codes: dict[nn.Parameter, Quantized],
    pruned: Container[str],
) -> BlockRecord:
    """Write a block whose masters hold what was trained; return its record. ``pruned``: names of its pruned layers."""
    stream = pair.student.stream
    outcomes = [
        Outcome(layer.name, None, None, codes=codes.get(parameter), whole=layer.name not in pruned)
        for parameter, layer in work.layers.items()
    ]
    record, tensors = record_block(pair.student, block, outcomes, pair.targets, pair.recipe.grid)
    others = {f"{block.name}.{name}": work.masters[parameter].cpu() for parameter, name in work.others.items()}
    assert stream.skeleton is not None
    for name, tensor in stream.named_on_disk(others).items():
        tensors[name] = stream.skeleton.as_stored(name, tensor)
    keeper.write_block(block, record, tensors)
    return record


def split_text(batches: Sequence[Batch], share: float) -> Text:
    """Return the batches to train on and those to hold out, at least one of each.

    Raises:
        LowdimError: there is only one.
    """
    if len(batches) < 2:
        raise LowdimError(
            f"the text fills {len(batches)} batch of tokens, and at least two are needed: one to train on and one to "
            "judge by. Give more text (calibration.samples), or a shorter calibration.context."
        )
    held = max(1, round(share * len(batches)))
    return Text(list(batches[held:]), list(batches[:held]))
