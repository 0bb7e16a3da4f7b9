"""The dense pass: what an allocation needs to know of every layer before anything is pruned."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from lowdim.core.allocation import AllocationResult, LayerInfo, ScannedLayer
from lowdim.core.progress import Progress
from lowdim.core.score import Evidence, Score, Wanda
from lowdim.core.score.base import GRADIENT
from lowdim.core.statistics import InputStatistics
from lowdim.data.batch import Batch
from lowdim.models.walk.collect import Collector
from lowdim.models.walk.stream import Block
from lowdim.prune.session import Session

Compared = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Scanner:
    """Streams to an allocation, layer by layer, what the dense model's weights are compared by.

    Args:
        session: the model, the layers and their gradients.
        score: says how weights are compared; ``None`` for an allocation that reads weights alone.
        batches: calibration batches (this rank's share).
        progress: told of every block of the first pass.
    """

    def __init__(self, session: Session, score: Score | None, batches: Sequence[Batch], progress: Progress) -> None:
        self.stream = session.stream
        self.infos: Mapping[str, LayerInfo] = {info.name: info for info in session.layers}
        self.gradients = session.gradients
        self.score = score
        self.needs = frozenset() if score is None else score.needs - {GRADIENT}
        self.batches = batches
        self.progress = progress
        self.compared: dict[str, Compared] = {}
        self._passes = ExitStack()

    def close(self) -> None:
        """End a pass that an error left open in the middle of a block, so that the model is whole again."""
        self._passes.close()

    def __call__(self) -> Iterator[list[ScannedLayer]]:
        """Yield the layers of one block after another; the samples run through the dense model the first time only."""
        return self._passes.enter_context(closing(self._again() if self.compared else self._first()))

    def _first(self) -> Generator[list[ScannedLayer], None, None]:
        activations = self.stream.capture(self.batches) if self.needs else []
        with self.progress.stage("Dense pass for the allocation", len(self.stream), "blocks") as stage:
            for index in range(len(self.stream)):
                with self.stream.block(index) as block:
                    chosen = [layer for layer in block.layers if layer.name in self.infos]
                    collector = Collector(block, self.needs, chosen)
                    if self.needs:
                        collector.run(activations, advance=True)
                    for layer in chosen:
                        statistics = collector.statistics(layer.name)
                        statistics.check(layer.name)
                        self.compared[layer.name] = self._comparing(layer.name, statistics)
                    yield self._scanned(block)
                stage.advance(1)

    def _comparing(self, name: str, statistics: InputStatistics) -> Compared:
        if self.score is None:
            return lambda weight: (weight, None)
        return self.score.compared(Evidence(statistics, self.gradients.get(name)))

    def _again(self) -> Generator[list[ScannedLayer], None, None]:
        for index in range(len(self.stream)):
            with self.stream.block(index) as block:
                yield self._scanned(block)

    def _scanned(self, block: Block) -> list[ScannedLayer]:
        return [
            ScannedLayer(self.infos[layer.name], *self.compared[layer.name](layer.weight()))
            for layer in block.layers
            if layer.name in self.infos
        ]


def allocate(session: Session, batches: Sequence[Batch], progress: Progress) -> AllocationResult:
    """Run a recipe's allocation, with the dense pass it needs, if any, and return its sparsities."""
    recipe = session.recipe
    source = {"wanda": Wanda(), "score": recipe.score, None: None}[recipe.allocation.scale_from]
    with torch.no_grad(), closing(Scanner(session, source, batches, progress)) as scanner:
        allocation = recipe.allocation.in_schema(recipe.schema_version)
        return recipe.pattern.allocate(allocation, session.layers, recipe.target, scanner)
