"""What a diagnosis found: numbers per block, per layer and of the model's two halves, as tables and plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from lowdim.evaluate.present import Table, jsonable, number


@dataclass(frozen=True)
class BlockFacts:
    """A decoder block; what was not asked for, or cannot be had, is None.

    Attributes:
        index: its place, from 0.
        variance: of the hidden states that leave it, over tokens and channels.
        typical: the median over tokens of a token's own variance over channels: a few tokens of trained models have
            entries so large that they are all of ``variance``.
        angle: angular distance of its input from its output at the last token, the mean over windows, in [0, 1].
        influence: 1 - cos of its input and output, the mean over tokens.
        sensitivity: how much the loss grows without it, nats per token.
        error: the standard error of that, paired by windows.
        perplexity: of the model without it.
        gradient: norm of the loss's gradient over its parameters.
        jacobian: |J - I|_F / sqrt(n) of its Jacobian, see `lowdim.evaluate.diagnose.measures.Jacobian`.
        gain: |J|_F / sqrt(n).
        trace: tr(J) / n.
    """

    index: int
    variance: float
    typical: float
    angle: float
    influence: float
    sensitivity: float | None = None
    error: float | None = None
    perplexity: float | None = None
    gradient: float | None = None
    jacobian: float | None = None
    gain: float | None = None
    trace: float | None = None


@dataclass(frozen=True)
class LayerFacts:
    """A matrix of a block.

    Attributes:
        name: full dotted name.
        block: index of its block.
        numel: weights.
        gradient: norm of the loss's gradient.
        alpha: Hill exponent of its spectrum from the median upwards, see `lowdim.evaluate.diagnose.measures.Spectrum`,
            as what follows.
        hill: Hill exponent of the upper half over the value below it, AlphaDecay's default.
        alpha_hat: alpha log10 of the largest eigenvalue.
        stable_rank: sum of the eigenvalues over the largest.
        entropy: of the eigenvalues, in [0, 1].
    """

    name: str
    block: int
    numel: int
    gradient: float | None = None
    alpha: float | None = None
    hill: float | None = None
    alpha_hat: float | None = None
    stable_rank: float | None = None
    entropy: float | None = None


MEASURES = ("variance", "typical", "angle", "influence", "sensitivity", "gradient", "jacobian")
"""Numbers of a block that are compared between the halves of a model."""


@dataclass(frozen=True)
class Diagnosis:
    """What `lowdim.diagnose` found.

    Attributes:
        model: how the user named it.
        blocks: its decoder blocks, in order.
        layers: their matrices, in order; empty if neither gradients nor spectra were asked for.
        angles: per block l the distance of what enters it from what leaves block l + n - 1, for n = 1, 2, ...
        entering: variance of what enters the first block.
        perplexity: of the whole model.
        protocol: the text and how it was cut.
        notes: what was not measured, and why.
        revision: branch, tag or commit of a hub id.
        compute: dtype of the forwards.
    """

    model: str
    blocks: list[BlockFacts]
    layers: list[LayerFacts]
    angles: list[list[float]]
    entering: float
    perplexity: float
    protocol: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    revision: str | None = None
    compute: str = ""

    def series(self, measure: str) -> list[float | None]:
        """Return one number of all blocks, such as "influence"."""
        return [getattr(block, measure) for block in self.blocks]

    def depth(self) -> dict[str, Any]:
        """Return the curse of depth in numbers: the model's two halves, and its last block over its first.

        The deeper half has the smaller number of blocks where their number is odd. ``halves`` holds medians: the first
        and the last block of most models are unlike all others. ``growth`` is the factor per block, by least squares on
        the logarithms.
        """
        cut = len(self.blocks) - len(self.blocks) // 2
        halves, ratios = {}, {}
        for measure in MEASURES:
            values = self.series(measure)
            shallow, deep = (_median(half) for half in (values[:cut], values[cut:]))
            if shallow is not None and deep is not None:
                halves[measure] = {"shallower": shallow, "deeper": deep}
            first, last = values[0], values[-1]
            if first is not None and last is not None and first > 0:
                ratios[measure] = last / first
        growth = {measure: _growth(self.series(measure)) for measure in ("variance", "typical")}
        return {"halves": halves, "last_over_first": ratios, "growth": growth}

    def summary(self) -> str:
        """Return the diagnosis in a few sentences."""
        depth, count = self.depth(), len(self.blocks)
        lines = [f"{self.model}: {count} blocks, perplexity {self.perplexity:.2f}."]
        halves, ratios, growth = depth["halves"], depth["last_over_first"], depth["growth"]
        if growth["variance"] is not None and growth["typical"] is not None:
            lines.append(
                f"The variance of the residual stream grows {growth['variance']:.3f} times a block, "
                f"that of the median token {growth['typical']:.3f} times."
            )
        for measure, sentence in _SENTENCES:
            if measure in halves:
                lines.append(sentence(halves[measure]["shallower"], halves[measure]["deeper"]))
        if "gradient" in ratios:
            lines.append(f"Gradient norm of the last block over that of the first: {ratios['gradient']:.3g}.")
        return "\n".join([*lines, *self.notes])

    def tables(self) -> list[Table]:
        """Return a table of the blocks."""
        shown: list[tuple[str, Sequence[float | None], int]] = [
            ("variance", self.series("variance"), 2),
            ("median token", self.series("typical"), 2),
            ("angle", self.series("angle"), 4),
            ("influence", self.series("influence"), 4),
            ("without it, nats", self.series("sensitivity"), 4),
            ("± error", self.series("error"), 4),
            ("perplexity", self.series("perplexity"), 2),
            ("gradient", self.series("gradient"), 4),
            ("|J - I|", self.series("jacobian"), 4),
            ("alpha, median form", [self.block_alpha(block.index) for block in self.blocks], 3),
        ]
        columns = {head: [number(v, digits) for v in values] for head, values, digits in shown if any(map(_is, values))}
        rows = [(str(block), *cells) for block, cells in enumerate(zip(*columns.values(), strict=True))]
        return [Table("Blocks", ("block", *columns), rows)]

    def block_alpha(self, block: int) -> float | None:
        """Return the mean Hill exponent, in the median form, of a block's matrices; None if none has one."""
        found = [layer.alpha for layer in self.layers if layer.block == block and layer.alpha is not None]
        return math.fsum(found) / len(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a number that JSON lacks is None."""
        plain: dict[str, Any] = jsonable({**asdict(self), "depth": self.depth()})
        return plain


def _is(value: float | None) -> bool:
    return value is not None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _growth(values: Sequence[float | None]) -> float | None:
    """Return the factor from block to block, by least squares on the logarithms; None where there is none."""
    logs = [math.log(value) for value in values if value is not None and value > 0]
    if len(logs) < max(2, len(values)):
        return None
    middle, mean = (len(logs) - 1) / 2, math.fsum(logs) / len(logs)
    across = math.fsum((i - middle) * (log - mean) for i, log in enumerate(logs))
    return math.exp(across / math.fsum((i - middle) ** 2 for i in range(len(logs))))


def _between(what: str, unit: str = "", digits: int = 4) -> Callable[[float, float], str]:
    return lambda shallow, deep: (
        f"{what}: {shallow:.{digits}f}{unit} in the shallower half, {deep:.{digits}f}{unit} in the deeper (medians)."
    )


_SENTENCES = (
    ("influence", _between("Block influence")),
    ("sensitivity", _between("Loss added by leaving out one block", " nats")),
    ("jacobian", _between("Distance of a block's Jacobian from the identity")),
)
