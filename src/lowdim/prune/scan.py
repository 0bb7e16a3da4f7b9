"""The dense pass: what an allocation needs to know of every layer before anything is pruned."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from lowdim.core.allocation import AllocationResult, LayerInfo, ScannedLayer
from lowdim.core.pattern import NM
from lowdim.core.progress import Progress
from lowdim.core.score import Score, Wanda
from lowdim.data.batch import Batch
from lowdim.models.walk.collect import Collector
from lowdim.models.walk.stream import Block, Stream
from lowdim.prune.recipe import Recipe


class Scanner:
    """Streams the dense model's weights, and the column scales that go with them, to an allocation.

    Args:
        stream: the model.
        layers: the layers that are to be pruned.
        score: gives the scales; ``None`` for an allocation that reads weights alone.
        batches: calibration batches (this rank's share).
        progress: told of every block of the first pass.
    """

    def __init__(
        self,
        stream: Stream,
        layers: Sequence[LayerInfo],
        score: Score | None,
        batches: Sequence[Batch],
        progress: Progress,
    ) -> None:
        self.stream = stream
        self.infos: Mapping[str, LayerInfo] = {info.name: info for info in layers}
        self.score = score
        self.batches = batches
        self.progress = progress
        self.scales: dict[str, Tensor | None] = {}
        self._passes = ExitStack()

    def close(self) -> None:
        """End a pass that an error left open in the middle of a block, so that the model is whole again."""
        self._passes.close()

    def __call__(self) -> Iterator[list[ScannedLayer]]:
        """Yield the layers of one block after another; the samples run through the dense model the first time only."""
        return self._passes.enter_context(closing(self._again() if self.scales else self._first()))

    def _first(self) -> Generator[list[ScannedLayer], None, None]:
        activations = self.stream.capture(self.batches) if self.score is not None and self.score.needs else []
        with self.progress.stage("Dense pass for the allocation", len(self.stream), "blocks") as stage:
            for index in range(len(self.stream)):
                with self.stream.block(index) as block:
                    chosen = [layer for layer in block.layers if layer.name in self.infos]
                    if self.score is None or not self.score.needs:
                        self.scales.update({layer.name: None for layer in chosen})
                    else:
                        collector = Collector(block, self.score.needs, chosen)
                        collector.run(activations, advance=True)
                        for layer in chosen:
                            statistics = collector.statistics(layer.name)
                            statistics.check(layer.name)
                            self.scales[layer.name] = self.score.column_scale(statistics)
                    yield self._scanned(block)
                stage.advance(1)

    def _again(self) -> Generator[list[ScannedLayer], None, None]:
        for index in range(len(self.stream)):
            with self.stream.block(index) as block:
                yield self._scanned(block)

    def _scanned(self, block: Block) -> list[ScannedLayer]:
        return [
            ScannedLayer(self.infos[layer.name], layer.weight(), self.scales[layer.name])
            for layer in block.layers
            if layer.name in self.infos
        ]


def allocate(
    recipe: Recipe,
    stream: Stream,
    layers: Sequence[LayerInfo],
    batches: Sequence[Batch],
    progress: Progress,
) -> AllocationResult:
    """Run a recipe's allocation, with the dense pass it needs, if any, and return its sparsities."""
    allocation, pattern = recipe.allocation, recipe.pattern
    source = {"wanda": Wanda(), "score": recipe.score, None: None}[allocation.scale_from]
    with torch.no_grad(), closing(Scanner(stream, layers, source, batches, progress)) as scanner:
        if isinstance(pattern, NM):
            return allocation.allocate_nm(layers, pattern.keep, pattern.group, scanner)
        return allocation.allocate(layers, recipe.target, scanner)
