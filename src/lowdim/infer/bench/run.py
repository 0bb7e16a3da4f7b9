"""A measurement from start to end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from lowdim.core.machine import machine
from lowdim.core.native import runtime_info
from lowdim.core.progress import Progress, Silent
from lowdim.data.calibration import positions
from lowdim.infer.bench import advice, layers, models
from lowdim.infer.bench.bandwidth import read_bandwidth
from lowdim.infer.bench.decode import ROUNDS, Decoder, LowdimDecoder, TorchDecoder, time_prefill, time_steps
from lowdim.infer.bench.errors import BenchError
from lowdim.infer.bench.result import Contestant, LayerTime, ModelSpeed, Result, baseline
from lowdim.infer.bench.settings import PREFILL, Settings
from lowdim.infer.bench.timing import rates, threads
from lowdim.models.walk.opened import open_model

if TYPE_CHECKING:
    from lowdim.data.windows import Windows

WINDOWS, CONTEXT = 20, 512
"""Of the text that perplexity is measured on."""


def bench(settings: Settings, progress: Progress | None = None) -> Result:
    """Measure dense against sparse on this machine: layers first, then the whole model.

    Args:
        settings: what to measure.
        progress: told of stages and their advance.

    Raises:
        LowdimError: the model cannot be used, or the contestants do not fit into the memory.
    """
    base = models.random_base(settings) if settings.shape else models.loaded_base(settings)
    return measure(base, settings, _windows(settings), progress or Silent())


def measure(base: models.Base, settings: Settings, text: Windows | None, progress: Progress) -> Result:
    """Measure a model that is in memory already.

    Raises:
        BenchError: zeros are to be drawn in a model that has its own.
    """
    if base.sparse and settings.sparsities:
        raise BenchError(
            f"{settings.model} has {base.zeros:.1%} zeros already, and those are measured. Leave --sparsity out, or "
            "give the dense model."
        )
    with threads(settings.threads):
        bandwidth = read_bandwidth()
        times = _layers(base, settings, bandwidth, progress)
        speeds, protocol = _models(base, settings, bandwidth, text, progress)
        subject, info = _subject(base, settings), runtime_info()
        return Result(
            subject=subject,
            machine=machine(),
            level=info.level,
            build=info.build,
            bandwidth=bandwidth,
            layers=tuple(times),
            models=tuple(speeds),
            notes=tuple(advice.notes(subject, times, speeds, info.level)),
            protocol=protocol,
        )


def _windows(settings: Settings) -> Windows | None:
    if settings.text is None:
        return None
    from lowdim.data.windows import windows

    assert settings.model is not None
    trusted = settings.trust_remote_code
    opened = open_model(settings.model, revision=settings.revision, trust_remote_code=trusted)
    tokenizer = opened.tokenizer()
    if tokenizer is None:
        raise BenchError(f"--text needs a tokenizer, and {settings.model} has none beside its weights.")
    return windows(settings.text, tokenizer, CONTEXT, limit=WINDOWS)


def _subject(base: models.Base, settings: Settings) -> dict[str, Any]:
    return {
        "name": settings.shape or settings.model,
        "random_weights": base.shape is not None,
        "random_zeros": bool(settings.sparsities),
        "zeros": base.zeros,
        "blocks": base.shape.layers if base.shape else base.distinct,
        "distinct_blocks": base.distinct,
        "tokens": settings.tokens,
        "rounds": ROUNDS,
    }


def _layers(base: models.Base, settings: Settings, bandwidth: float, progress: Progress) -> list[LayerTime]:
    products = models.products(base)
    curve = layers.curve_of(products)
    found: list[LayerTime] = []
    with progress.stage("Time layers", len(products), "shapes") as stage:
        for product in products:
            asked = set(settings.sparsities) if product.prunable else set()
            asked |= set(layers.CURVE) if product is curve else set()
            found += layers.measure(product, settings.dtypes, sorted(asked), bandwidth)
            stage.advance()
    return found


def _models(
    base: models.Base, settings: Settings, bandwidth: float, text: Windows | None, progress: Progress
) -> tuple[list[ModelSpeed], Mapping[str, Any]]:
    who = models.wanted(settings, base.zeros if base.sparse else 0.0)
    built: dict[Contestant, PreTrainedModel] = {}
    with progress.stage("Build models", len(who), "models") as stage:
        for contestant in who:
            built[contestant] = models.build(base, contestant)
            stage.advance()
    decoders: dict[Contestant, Decoder] = {
        c: TorchDecoder(m) if c.engine == "torch" else LowdimDecoder(m) for c, m in built.items()
    }
    config = base.model.config
    prompt = min(PREFILL, (positions(config) or PREFILL) // 2)
    with progress.stage("Time models", len(who) * (2 * ROUNDS + 1), "turns") as stage:
        steps = time_steps(decoders, min(settings.tokens, prompt), config.vocab_size, advance=stage.advance)
        prefills = time_prefill(decoders, prompt, config.vocab_size, advance=stage.advance)
    quality, protocol = _perplexities(built, bool(settings.sparsities), text, progress)
    seconds = {c: (statistics.median(steps[c]), statistics.median(prefills[c])) for c in who}
    rows = []
    for c in who:
        size = models.bytes_per_token(built[c])
        rows.append(
            ModelSpeed(
                engine=c.engine,
                dtype=c.dtype,
                sparsity=c.sparsity,
                backend=decoders[c].backend,
                reason=decoders[c].reason,
                **rates(steps[c]),
                prefill_tokens_per_s=round(prompt / seconds[c][1], 1),
                prompt=prompt,
                bytes_per_token=size,
                bandwidth_share=round(size / seconds[c][0] / bandwidth, 3),
                kernels=models.kernels(built[c]),
                **_ratios(c, seconds),
                perplexity=quality.get(c),
            )
        )
    return rows, protocol


def _ratios(who: Contestant, seconds: Mapping[Contestant, tuple[float, float]]) -> dict[str, Any]:
    torch_step, torch_prefill = seconds[baseline("bf16")]
    step, prefill = seconds[who]
    dense = seconds[who.dense][0] / step if who.engine == "lowdim" else None
    return {
        "over_torch": round(torch_step / step, 3),
        "prefill_over_torch": round(torch_prefill / prefill, 3),
        "over_dense": None if dense is None else round(dense, 3),
    }


def _perplexities(
    built: Mapping[Contestant, PreTrainedModel], drawn: bool, text: Windows | None, progress: Progress
) -> tuple[dict[Contestant, float], Mapping[str, Any]]:
    """Measure the perplexity of every form but those whose zeros were drawn at random."""
    from lowdim.evaluate.quality.perplexity import perplexity

    found: dict[Contestant, float] = {}
    protocol: Mapping[str, Any] = {}
    if text is None:
        return found, protocol
    whole = [c for c in built if not (c.sparsity and drawn)]
    with progress.stage("Measure perplexity", len(whole), "models") as stage, torch.inference_mode():
        for contestant in whole:
            measured = perplexity(built[contestant], text)
            found[contestant], protocol = measured.value, measured.protocol
            stage.advance()
    return found, protocol
