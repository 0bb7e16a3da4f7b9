"""A measurement from start to end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lowdim.core.machine import machine
from lowdim.core.native import chosen, in_words, runtime_info
from lowdim.core.progress import Progress, Silent
from lowdim.data.calibration import positions
from lowdim.data.windows import Windows, windows
from lowdim.evaluate.quality.perplexity import perplexity
from lowdim.infer.bench import advice, layers, models
from lowdim.infer.bench.bandwidth import read_bandwidth
from lowdim.infer.bench.decode import ROUNDS, Decoder, LowdimDecoder, TorchDecoder, time_prefill, time_steps
from lowdim.infer.bench.errors import BenchError
from lowdim.infer.bench.result import BASELINE, Contestant, LayerTime, ModelSpeed, Result
from lowdim.infer.bench.settings import PREFILL, Settings
from lowdim.infer.bench.timing import Deadline, rates, threads
from lowdim.models.disk import manifest
from lowdim.models.walk.opened import open_model

WINDOWS, CONTEXT = 20, 512
"""Of the text that perplexity is measured on."""
_LAYERS, _BUILT, _STEPS, _PREFILLS = 0.15, 0.35, 0.5, 0.6  # of the time, gone when a part ends; perplexity has the rest


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


def measure(
    base: models.Base,
    settings: Settings,
    text: Windows | None,
    progress: Progress,
    deadline: Deadline | None = None,
    needed: Collection[str] = (),
) -> Result:
    """Measure a model that is in memory already.

    Args:
        base: the model.
        settings: what to measure.
        text: windows to measure perplexity on.
        progress: told of stages and their advance.
        deadline: by which to end: with fewer rounds, tokens and windows, and without the dtypes that are not needed.
        needed: dtypes that are measured whatever the time.

    Raises:
        BenchError: zeros are to be drawn in a model that has its own.
    """
    deadline = deadline or Deadline()
    if base.sparse and settings.sparsities:
        raise BenchError(
            f"{settings.model} has {base.zeros:.1%} zeros already, and those are measured. Leave --sparsity out, or "
            "give the dense model."
        )
    with threads(settings.threads):
        bandwidth = read_bandwidth()
        times, untimed = _layers(base, settings, bandwidth, progress, deadline)
        built, forms = _build(base, settings, progress, deadline, needed)
        speeds, protocol = _models(base, built, forms, settings, bandwidth, text, progress, deadline)
        subject, info = _subject(base, settings), runtime_info()
        return Result(
            subject=subject,
            machine=machine(),
            level=info.level,
            build=info.build,
            bandwidth=bandwidth,
            layers=tuple(times),
            models=tuple(speeds),
            notes=(
                *advice.notes(subject, times, speeds, info.level),
                *_cut(untimed, settings, text, speeds, protocol, deadline),
            ),
            protocol=protocol,
        )


def _windows(settings: Settings) -> Windows | None:
    if settings.text is None:
        return None
    assert settings.model is not None
    trusted = settings.trust_remote_code
    opened = open_model(settings.model, revision=settings.revision, trust_remote_code=trusted)
    tokenizer = opened.tokenizer()
    if tokenizer is None:
        raise BenchError(f"--text needs a tokenizer, and {settings.model} has none beside its weights.")
    assert opened.source is not None
    bos: Any = settings.bos or _recorded_bos(opened.source.path)
    return windows(settings.text, tokenizer, CONTEXT, limit=WINDOWS, bos=bos)


def _recorded_bos(model: Path) -> str:
    """Return what the recipe of a model says of the start-of-text token, if there is one."""
    if not manifest.exists(model):
        return "tokenizer"
    record = manifest.read(model)
    recipe = record.recipe if record.recovery is None else record.recovery["recipe"]
    said: str = recipe.get("evaluation", {}).get("bos", "tokenizer")
    return said


def _subject(base: models.Base, settings: Settings) -> dict[str, Any]:
    return {
        "name": settings.shape or settings.model,
        "random_weights": base.shape is not None,
        "random_zeros": bool(settings.sparsities),
        "zeros": base.zeros,
        "blocks": base.shape.layers if base.shape else base.distinct,
        "distinct_blocks": base.distinct,
        "cache": settings.cache,
        "tokens": settings.tokens,
        "rounds": ROUNDS,
    }


def _layers(
    base: models.Base, settings: Settings, bandwidth: float, progress: Progress, deadline: Deadline
) -> tuple[list[LayerTime], list[str]]:
    """Return the times of the layers, and the names of those that there was no time for: never the curve's."""
    products = models.products(base)
    curve = layers.curve_of(products)
    found: dict[int, list[LayerTime]] = {}
    with progress.stage("Time layers", len(products), "shapes") as stage:
        for turn, index in enumerate(sorted(range(len(products)), key=lambda index: products[index] is not curve)):
            product = products[index]
            asked = set(settings.sparsities) if product.prunable else set()
            asked |= set(layers.CURVE) if product is curve else set()
            seconds = deadline.left(_LAYERS) / (len(products) - turn)
            if seconds or product is curve:
                found[index] = layers.measure(product, settings.dtypes, sorted(asked), bandwidth, seconds=seconds)
            stage.advance()
    untimed = [name for index, product in enumerate(products) if index not in found for name in product.names]
    return [row for index in sorted(found) for row in found[index]], untimed


def _build(
    base: models.Base, settings: Settings, progress: Progress, deadline: Deadline, needed: Collection[str]
) -> tuple[dict[Contestant, PreTrainedModel], dict[Contestant, tuple[str, ...]]]:
    """Return the contestants' models, and what their layers lie in; no more than needed once the time for it is up."""
    who = models.wanted(settings, base.zeros if base.sparse else 0.0)
    needs = {c: c.engine == "torch" or c.dtype in needed for c in who}
    built: dict[Contestant, PreTrainedModel] = {}
    forms: dict[Contestant, tuple[str, ...]] = {}
    with progress.stage("Build models", len(who), "models") as stage:
        for contestant in sorted(who, key=lambda c: not needs[c]):
            if needs[contestant] or deadline.left(_BUILT):
                before = chosen.copy()
                built[contestant] = models.build(base, contestant)
                forms[contestant] = in_words(chosen - before, base.shape.layers if base.shape else 1)
            stage.advance()
    return {contestant: built[contestant] for contestant in who if contestant in built}, forms


def _models(
    base: models.Base,
    built: Mapping[Contestant, PreTrainedModel],
    forms: Mapping[Contestant, tuple[str, ...]],
    settings: Settings,
    bandwidth: float,
    text: Windows | None,
    progress: Progress,
    deadline: Deadline,
) -> tuple[list[ModelSpeed], Mapping[str, Any]]:
    decoders: dict[Contestant, Decoder] = {
        c: TorchDecoder(m) if c.engine == "torch" else LowdimDecoder(m, settings.cache) for c, m in built.items()
    }
    config = base.model.config.get_text_config(decoder=True)
    prompt = min(PREFILL, (positions(config) or PREFILL) // 2)
    vocab, tokens = config.vocab_size, min(settings.tokens, prompt)
    with progress.stage("Time models", len(built) * (2 * ROUNDS + 1), "turns") as stage:
        steps = time_steps(decoders, tokens, vocab, advance=stage.advance, seconds=deadline.left(_STEPS))
        prompted = {c: decoder for c, decoder in decoders.items() if not models.emulated(c)}
        prefills = time_prefill(prompted, prompt, vocab, advance=stage.advance, seconds=deadline.left(_PREFILLS))
    whole = {c: model for c, model in built.items() if c in prompted and not (c.sparsity and settings.sparsities)}
    quality, protocol = _perplexities(whole, text, progress, deadline)
    seconds = {c: (statistics.median(steps[c]), statistics.median(prefills.get(c, [math.nan]))) for c in built}
    rows = []
    for c in built:
        size = models.bytes_per_token(built[c])
        rows.append(
            ModelSpeed(
                engine=c.engine,
                dtype=c.dtype,
                sparsity=c.sparsity,
                backend=decoders[c].backend,
                reason=decoders[c].reason,
                **rates(steps[c]),
                prefill_tokens_per_s=_rounded(prompt / seconds[c][1], 1),
                prompt=prompt,
                bytes_per_token=size,
                bandwidth_share=round(size / seconds[c][0] / bandwidth, 3),
                kernels=models.kernels(built[c]),
                **_ratios(c, seconds),
                perplexity=quality.get(c),
                forms=forms[c],
            )
        )
    return rows, protocol


def _perplexities(
    built: Mapping[Contestant, PreTrainedModel], text: Windows | None, progress: Progress, deadline: Deadline
) -> tuple[dict[Contestant, float], Mapping[str, Any]]:
    """Measure the perplexity of every form, on as many windows as the time allows: the same ones for all."""
    if text is None:
        return {}, {}
    parts = text.input_ids.split(len(text) if math.isinf(deadline.seconds) else 1)
    nll: dict[Contestant, list[torch.Tensor]] = {contestant: [] for contestant in built}
    protocol: Mapping[str, Any] = {"windows": 0}
    took = 0.0  # seconds of the last turn
    with progress.stage("Measure perplexity", len(parts) * len(built), "turns") as stage, torch.inference_mode():
        for count, part in enumerate(parts, 1):
            left = deadline.left()
            if left <= took:
                break
            for contestant, model in built.items():
                found = perplexity(model, replace(text, input_ids=part))
                nll[contestant].append(found.nll)
                protocol = found.protocol | {"windows": sum(map(len, parts[:count]))}
                stage.advance()
            took = left - deadline.left() if math.isfinite(left) else 0.0
    quality = {contestant: float(torch.cat(each).mean().exp()) for contestant, each in nll.items() if each}
    return quality, {**protocol, "asked": len(text)}


def _cut(
    untimed: list[str],
    settings: Settings,
    text: Windows | None,
    speeds: Collection[ModelSpeed],
    protocol: Mapping[str, Any],
    deadline: Deadline,
) -> list[str]:
    """Say what the time was too short for."""
    measured = {row.dtype for row in speeds if row.engine == "lowdim"}
    lost = untimed + [dtype for dtype in settings.dtypes if dtype not in measured]
    if text is not None and (seen := protocol["windows"]) < len(text):
        lost.append(f"perplexity on {len(text) - seen} of {len(text)} windows" if seen else "perplexity")
    if not lost:
        return []
    return [f"Left out, since {deadline.seconds:g} seconds were up: {', '.join(lost)}. lowdim bench measures it all."]


def _ratios(who: Contestant, seconds: Mapping[Contestant, tuple[float, float]]) -> dict[str, Any]:
    """Return how much faster a contestant is than others; prompts are set beside the faster dense form of torch."""
    torch_step, torch_prefill = seconds[BASELINE]
    fp32 = seconds.get(Contestant("torch", "fp32"), (0.0, math.nan))[1]
    torch_prefill = fp32 if math.isnan(torch_prefill) else torch_prefill
    step, prefill = seconds[who]
    dense = seconds[who.dense][0] / step if who.engine == "lowdim" else None
    return {
        "over_torch": round(torch_step / step, 3),
        "prefill_over_torch": _rounded(torch_prefill / prefill, 3),
        "over_dense": None if dense is None else round(dense, 3),
    }


def _rounded(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)
