"""Dropping weights of a model in memory for a moment: the smallest of the whole model, or as many at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowdim.core.allocation import Global, LayerInfo, ScannedLayer
from lowdim.core.random import generator
from lowdim.core.topk import keep_top
from lowdim.evaluate.errors import EvaluationError
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.stream import Stream


def checked_grid(grid: Sequence[float]) -> list[float]:
    """Return sparsities in ascending order, each once, 0 (the dense model) added.

    Raises:
        EvaluationError: a value is not in [0, 1).

    Example:
        >>> checked_grid([0.5, 0.2, 0.5])
        [0.0, 0.2, 0.5]
    """
    if wrong := [s for s in grid if not 0 <= s < 1]:
        raise EvaluationError(
            f"grid must hold sparsities from 0 up to but not including 1; got {wrong[0]}. Write 0.3 for 30%."
        )
    return sorted({0.0, *map(float, grid)})


class Dropping:
    """One-shot global pruning of the prunable layers that undoes itself.

    The weights that fall are those below one threshold on their magnitude for the whole model, or as many drawn at
    random. The masks of one seed are nested: what falls at one sparsity falls at every higher one. Weights that are
    zero already count as the smallest.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> tiny = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2))
        >>> dropping = Dropping(tiny)
        >>> with dropping.at(0.25) as dropped:
        ...     print(dropped, dropping.numel)
        1536 6144
    """

    def __init__(self, model: PreTrainedModel) -> None:
        stream = Stream(model)
        self.layers: list[Layer] = []
        self._infos: list[LayerInfo] = []
        for index in range(len(stream)):
            for layer in stream.describe(index)[0]:
                self.layers.append(layer)
                self._infos.append(LayerInfo(layer.name, index, layer.shape))

    @property
    def numel(self) -> int:
        """Weights of the prunable layers."""
        return sum(info.numel for info in self._infos)

    def count(self, sparsity: float) -> int:
        """Return how many weights fall: the nearest whole number."""
        return round(sparsity * self.numel)

    @contextmanager
    def at(self, sparsity: float, seed: int | None = None) -> Iterator[int]:
        """Drop weights for the time of a ``with``; afterwards, whatever happened in it, every bit is back.

        A copy of the prunable weights is held meanwhile. At sparsity 0 nothing is touched.

        Args:
            sparsity: share of the prunable weights that falls, in [0, 1).
            seed: draws the weights at random; without it the smallest fall.

        Yields:
            The number of weights that fell.

        Raises:
            NumericalError: a weight is NaN or Inf.
        """
        saved: list[tuple[Tensor, Tensor]] = []
        try:
            if sparsity:
                for weight, mask in self._masks(sparsity, seed):
                    saved.append((weight, weight.clone()))
                    weight.copy_(torch.where(mask, weight, torch.zeros_like(weight)))
            yield self.count(sparsity)
        finally:
            for weight, copy in saved:
                weight.copy_(copy)

    def _masks(self, sparsity: float, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each layer's weight as ``[out, in]``, and which of it stays."""
        score = (lambda layer: layer.weight().abs_()) if seed is None else _random(seed)
        shares = Global().allocate(self._infos, sparsity, lambda: self._scan(score)).sparsities
        for layer, info in zip(self.layers, self._infos, strict=True):
            keep = info.numel - round(shares[info.name] * info.numel)
            yield _weight(layer), keep_top(score(layer), keep)

    def _scan(self, score: Callable[[Layer], Tensor]) -> Iterator[list[ScannedLayer]]:
        for layer, info in zip(self.layers, self._infos, strict=True):
            yield [ScannedLayer(info, score(layer), None)]


def _weight(layer: Layer) -> Tensor:
    """Return the model's own weight, not a copy, as ``[out, in]``."""
    weight = layer.master.detach()
    return weight.t() if layer.transposed else weight


def _random(seed: int) -> Callable[[Layer], Tensor]:
    def score(layer: Layer) -> Tensor:
        rng = generator(seed, "random mask", layer.name)
        return torch.rand(layer.shape, generator=rng).to(layer.master.device)

    return score
