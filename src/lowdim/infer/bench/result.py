"""What a measurement found, in a form that becomes JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Contestant:
    """Who computes a product or a model, and in what form the weights are.

    Attributes:
        engine: "torch" or "lowdim".
        dtype: of the stored weights.
        sparsity: share of zeros, skipped where that is faster here; 0 for a dense product.

    Example:
        >>> str(Contestant("lowdim", "int8", 0.7)), str(Contestant("torch", "bf16"))
        ('lowdim int8 70%', 'torch bf16 dense')
    """

    engine: str
    dtype: str
    sparsity: float = 0.0

    @property
    def dense(self) -> Contestant:
        """The same engine and dtype without zeros."""
        return Contestant(self.engine, self.dtype)

    def __str__(self) -> str:
        return f"{self.engine} {self.dtype} {f'{100 * self.sparsity:.3g}%' if self.sparsity else 'dense'}"


BASELINE = Contestant("torch", "bf16")
"""What the others of a measurement are compared with."""


@dataclass(frozen=True)
class LayerTime:
    """One contestant on the layers of one shape, batch 1.

    Attributes:
        names: kinds of layer that have the shape.
        count: layers of the model that have it.
        rows, cols: the shape.
        engine, dtype, sparsity: the contestant.
        kernel: what ran.
        microseconds: median of a product.
        bytes: read for a product: values, mask and scales.
        bandwidth_share: of the memory's measured read bandwidth.
        over_torch: times as fast as torch in bf16.
        over_dense: times as fast as our dense kernel on the same dtype.
    """

    names: tuple[str, ...]
    count: int
    rows: int
    cols: int
    engine: str
    dtype: str
    sparsity: float
    kernel: str
    microseconds: float
    bytes: int
    bandwidth_share: float
    over_torch: float
    over_dense: float | None


@dataclass(frozen=True)
class ModelSpeed:
    """One contestant on the whole model, one sequence, greedy.

    Attributes:
        engine, dtype, sparsity: the contestant.
        backend: what drives the steps: "generate" (Hugging Face), "native", or "transformers" (Hugging Face over our
            layers).
        reason: why it is not "native", where it was meant to be.
        tokens_per_s: at the median token.
        quartiles: tokens per second that a quarter of the tokens do not reach, or surpass.
        prefill_tokens_per_s: of a prompt; ``prompt`` tokens long. None where torch would have to emulate bf16.
        prompt: tokens of that prompt.
        bytes_per_token: weights read for each token.
        bandwidth_share: of the memory's measured read bandwidth.
        kernels: which kernel runs, and in how many layers.
        over_torch: times as fast as torch in bf16.
        prefill_over_torch: the same of the prompt; as torch in fp32 where it would emulate bf16, None if that was not
            measured.
        over_dense: times as fast as the dense model in this runtime and dtype.
        perplexity: of this very form of the model, where a text was given.
        forms: what its layers with zeros lie in, how many of them, and why, as `lowdim.runtime_info` says it.
    """

    engine: str
    dtype: str
    sparsity: float
    backend: str
    reason: str
    tokens_per_s: float
    quartiles: tuple[float, float]
    prefill_tokens_per_s: float | None
    prompt: int
    bytes_per_token: int
    bandwidth_share: float
    kernels: Mapping[str, int]
    over_torch: float
    over_dense: float | None
    prefill_over_torch: float | None
    perplexity: float | None = None
    forms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A whole measurement.

    Attributes:
        subject: what was measured, and what of it is random.
        machine: processor, cores, threads.
        level, build: of the kernels.
        bandwidth: bytes per second that the memory was read at.
        layers: products, shape by shape.
        models: whole models.
        notes: what the numbers mean, in words.
        protocol: of the perplexities.
    """

    subject: Mapping[str, Any]
    machine: Mapping[str, Any]
    level: str
    build: str
    bandwidth: float
    layers: tuple[LayerTime, ...]
    models: tuple[ModelSpeed, ...]
    notes: tuple[str, ...]
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"schema": SCHEMA, "lowdim": version("lowdim"), **asdict(self)}
