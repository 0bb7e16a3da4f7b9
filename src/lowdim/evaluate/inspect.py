"""What a model is like, its weights untouched: sparsity, outliers and spectra, one block in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowdim.core.allocation import OWL, LayerInfo, ScannedLayer
from lowdim.core.allocation.owl import Pooling
from lowdim.core.errors import LowdimError
from lowdim.core.progress import Progress, Silent
from lowdim.core.score import Wanda
from lowdim.core.spectrum import eigenvalues, tail_exponent
from lowdim.data.batch import split
from lowdim.data.calibration import CalibrationData, calibration, check_context, positions
from lowdim.evaluate.inspection import Inspection, LayerFacts, Outliers
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.collect import Collector
from lowdim.models.walk.opened import Opened, open_model
from lowdim.models.walk.stream import Block
from lowdim.models.walk.support import SUPPORTED, judge, verdict

TOKENS_PER_BATCH = 2048
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

Calibration = CalibrationData | str | Path | Iterable[Any]


@torch.no_grad()
def inspect(
    model: PreTrainedModel | str | Path,
    *,
    calibration: Calibration | None = None,
    tokenizer: Any = None,
    ms: Sequence[float] = (3, 5, 7, 10),
    alpha: bool = True,
    samples: int = 32,
    context: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    dtype: str = "auto",
    compute: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    r"""Measure a model without changing it.

    With :math:`A_{ij} = |W_{ij}| \sqrt{\operatorname{mean}_t x_{tj}^2}`, the outlier share is the share of A above
    M times the mean of A: of the whole block (pooling "block", what OWL's code does), or the mean over its layers
    of each layer's own share (pooling "layer"). Alpha is the exponent of the power law that the tail of a weight's
    spectrum follows; a small one marks a well-trained layer.

    Args:
        model: a Transformers model, or a directory, hub id, GGUF file or ``builtin:`` name, which is read block by
            block.
        calibration: what `lowdim.data.calibration.calibration` takes; without it there are no outlier shares.
        tokenizer: for a model in memory and calibration text; a model on disk brings its own.
        ms: the values of M.
        alpha: estimate the exponents, which takes an eigenvalue decomposition per layer.
        samples: calibration sequences.
        context: tokens in each, 512 or the model's positions if not given.
        seed: which calibration text is drawn.
        revision: branch, tag or commit of a hub id.
        dtype: of a checkpoint's weights, "auto" for its own.
        compute: dtype of the forwards through a checkpoint's blocks.
        device: where a checkpoint's blocks run.
        trust_remote_code: run the modelling code that a checkpoint brings along.
        progress: told of every block.

    Raises:
        LowdimError: the model or the data cannot be used, a weight holds NaN or Inf, an M is not above 0. That blocks
            cannot be walked is told before weights are fetched.

    Paper: "Outlier Weighed Layerwise Sparsity (OWL)", arXiv 2310.05175; "AlphaPruning", arXiv 2410.10912.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> tiny = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))
        >>> found = inspect(tiny, calibration=torch.arange(32).view(2, 16), samples=2, ms=[3])
        >>> len(found.layers), found.sparsity, list(found.outliers["block"])
        (8, 0.0, ['3'])
    """
    probes = {f"{m:g}": {pooling: OWL(m=float(m), pooling=pooling) for pooling in POOLINGS} for m in ms}
    if isinstance(model, str | Path):
        support = verdict(str(model), revision, trust_remote_code)
    else:
        support = judge(open_model(model).stream)
    if support != SUPPORTED and probes and calibration is not None:
        raise LowdimError(support.removeprefix("refused: "))
    opened = open_model(
        model,
        revision=revision,
        dtype=dtype,
        compute=compute,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    data = _data(opened, calibration, tokenizer, samples, context, seed) if probes else None
    walk = _Walk(opened, data, probes, alpha, support)
    with (progress or Silent()).stage("Inspect", len(opened.stream), "blocks") as stage:
        for index in range(len(opened.stream)):
            with opened.stream.block(index) as block:
                walk.visit(block)
            stage.advance()
    return walk.result()


def _data(
    opened: Opened, source: Calibration | None, tokenizer: Any, samples: int, context: int | None, seed: int
) -> CalibrationData | None:
    if source is None:
        return None
    if not isinstance(source, CalibrationData):
        opened.check_weights()
        embedding: Any = opened.stream.model.get_input_embeddings()
        source = calibration(
            source,
            tokenizer or opened.tokenizer(),
            samples=samples,
            context=context or min(512, positions(opened.config) or 512),
            seed=seed,
            vocab_size=embedding.weight.shape[0],
        )
    check_context(source.context, opened.config)
    return source


class _Walk:
    """The measures of the blocks visited so far."""

    def __init__(
        self,
        opened: Opened,
        data: CalibrationData | None,
        probes: dict[str, dict[Pooling, OWL]],
        alpha: bool,
        support: str,
    ) -> None:
        self.opened, self.data, self.probes, self.alpha, self.support = opened, data, probes, alpha, support
        batches = list(split(data.batches, TOKENS_PER_BATCH)) if data else []
        self.activations: list[Activation] = opened.stream.capture(batches) if batches else []
        self.layers: list[LayerFacts] = []
        self.outliers: Outliers = {p: {m: [] for m in probes} for p in POOLINGS} if data else {}
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.ranks = opened.ranks
        if probes and not data:
            self.notes.append("No outlier shares: they need calibration text, and none was given.")

    def visit(self, block: Block) -> None:
        """Measure one block and run the samples through it."""
        scanned = list(self._scanned(block))
        for layer, held in zip(scanned, block.layers, strict=True):
            found = tail_exponent(eigenvalues(layer.weight)) if self.alpha else math.nan
            zeros = int((held.master == 0).sum())
            exponent = found if math.isfinite(found) else None
            rank = self.ranks.get(f"{held.name}.weight")
            self.layers.append(LayerFacts(held.name, block.index, layer.info.numel, zeros, exponent, rank))
        self.skipped += block.skipped
        for pooling, series in self.outliers.items():
            for m, shares in series.items():
                measured = self.probes[m][pooling].measure(lambda: iter([scanned]))[1]
                shares.append(measured[block.index] / 100 if scanned else None)

    def _scanned(self, block: Block) -> Iterator[ScannedLayer]:
        scales = self._scales(block)
        for layer in block.layers:
            info = LayerInfo(layer.name, block.index, layer.shape)
            yield ScannedLayer(info, layer.weight(), scales.get(layer.name))

    def _scales(self, block: Block) -> dict[str, Tensor]:
        if not self.activations:
            return {}
        score = Wanda()
        collector = Collector(block, score.needs)
        collector.run(self.activations, advance=block.index < len(self.opened.stream) - 1)
        self.notes += [f"{name}: {remark}" for name, remark in collector.notes]
        scales = {}
        for layer in block.layers:
            seen = collector.statistics(layer.name)
            seen.check(layer.name)
            if not seen.tokens:
                self.notes.append(f"{layer.name}: no token reached it, so it counts as having no outlier")
            scales[layer.name] = score.column_scale(seen)
        return scales

    def result(self) -> Inspection:
        """Return what was found."""
        return Inspection(
            model=self.opened.name,
            blocks=len(self.opened.stream),
            layers=self.layers,
            weights=self.opened.stream.numel(),
            outliers=self.outliers,
            skipped=self.skipped,
            notes=self.notes,
            data=self.data.record() if self.data else {},
            revision=self.opened.source.revision if self.opened.source else None,
            dtype=str(self.opened.stored).removeprefix("torch."),
            support=self.support,
            stored=self.opened.stored_numel if self.ranks else None,
        )
