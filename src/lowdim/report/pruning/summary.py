"""What a run bought and what it cost: a sentence, a table, and what was not done as asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowdim.evaluate.quality.hard import of_manifest
from lowdim.report.draw import words

Json = Mapping[str, Any]
NOISE = 0.03  # two speeds or sizes closer than this share are called the same
_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float64": 64}


@dataclass(frozen=True)
class Row:
    """A line of the headline table; ``tone`` is "better", "worse", "same", or "" with nothing to compare."""

    label: str
    hint: str
    dense: str
    sparse: str
    change: str
    detail: str = ""
    tone: str = ""


@dataclass
class Notice:
    """Something that was not done as asked, and where; equal notices are one."""

    kind: str
    what: str
    places: list[str] = field(default_factory=list)


def section(source: Json, *path: str) -> Json:
    """Return a nested mapping, empty where any step is missing.

    Example:
        >>> section({"a": {"b": {"c": 1}}}, "a", "b"), section({"a": None}, "a", "b")
        ({'c': 1}, {})
    """
    for key in path:
        found = source.get(key)
        source = found if isinstance(found, Mapping) else {}
    return source


def _value(found: Any) -> float | None:
    """Return a number; JSON has no infinity, so that a writer may have spelt it out."""
    try:
        return None if found is None else float(found)
    except (TypeError, ValueError):
        return None


def verdict(manifest: Json, run: Json) -> str:
    r"""Return one sentence: how sparse, how much worse, smaller and faster, and plainly what is not.

    Example:
        >>> speed = {"dense_tokens_per_s": 40, "sparse_tokens_per_s": 39.5}
        >>> print(verdict({"sparsity": {"prunable": 0.6}}, {"speed": speed}).replace("; ", ";\n"))
        60% of the prunable weights are zero;
        its quality was not measured;
        it generates no faster, 39.5 against 40.0 tokens/s.
    """
    parts = [_sparsity_words(manifest), _perplexity_words(manifest), _task_words(manifest), _size_words(manifest, run)]
    text = "; ".join(part for part in [*parts, _speed_words(run)] if part)
    return text[:1].upper() + text[1:] + "."


def hard_verdict(manifest: Json) -> str:
    """Return what the hard tasks say of the model; empty where none was measured."""
    found = of_manifest(section(manifest, "evaluation", "tasks"))
    return "" if found is None else found.sentence()


def _sparsity_words(manifest: Json) -> str:
    share = section(manifest, "sparsity").get("prunable")
    if share is None:
        return "the share of zeros was not recorded"
    last = section(manifest, "recovery", "recipe") or section(manifest, "recipe")
    grid = words.clean(last.get("quantize", "none"))
    if rounded_alone(manifest):
        return f"no weight is pruned, and all are rounded to {grid}"
    rounded = "" if grid == "none" else f", the others rounded to {grid}"
    return f"{words.percent(share)} of the prunable weights are zero{rounded}"


def rounded_alone(manifest: Json) -> bool:
    """Tell whether weights were rounded without being pruned: their zeros are levels of the grid.

    Example:
        >>> rounded_alone({"packed": {"quantized": {"w": {"bits": 4, "dense": True}}}}), rounded_alone({})
        (True, False)
    """
    grids = section(manifest, "packed", "quantized").values()
    return bool(grids) and all(isinstance(grid, Mapping) and grid.get("dense") for grid in grids)


def _perplexity_words(manifest: Json) -> str:
    found = section(manifest, "evaluation", "perplexity")
    dense, sparse = _value(found.get("dense")), _value(found.get("sparse"))
    if dense is None or sparse is None:
        return "" if section(manifest, "evaluation", "tasks") else "its quality was not measured"
    if not (math.isfinite(dense) and math.isfinite(sparse)):
        return f"its perplexity, {words.number(sparse)} after {words.number(dense)}, is not finite"
    if sparse == dense:
        return f"perplexity stayed at {words.number(dense)}"
    verb = "rose" if sparse > dense else "fell"
    before = _value(section(manifest, "recovery", "pruned").get("perplexity"))
    recovered = f"; before recovery it was {words.number(before)}" if before else ""
    return (
        f"perplexity {verb} from {words.number(dense)} to {words.number(sparse)} ({_times(sparse / dense)}){recovered}"
    )


def _times(ratio: float) -> str:
    return f"×{ratio:.2f}" if 0.05 <= ratio < 10 else "×" + words.number(ratio)


def _task_words(manifest: Json) -> str:
    tasks = section(manifest, "evaluation", "tasks").values()
    changes = [t["sparse"] - t["dense"] for t in tasks if t.get("dense") is not None and t.get("sparse") is not None]
    if not changes:
        return ""
    mean = 100 * sum(changes) / len(changes)
    over = "one task" if len(changes) == 1 else f"{len(changes)} tasks"
    if abs(mean) < 0.05:
        return f"zero-shot accuracy stayed the same over {over}"
    return f"zero-shot accuracy {'rose' if mean > 0 else 'fell'} by {abs(mean):.1f} points over {over}"


def _size_words(manifest: Json, run: Json) -> str:
    found = section(run, "size")
    dense, sparse = found.get("dense_bytes"), found.get("sparse_bytes")
    if not dense or sparse is None:
        return ""
    change = sparse / dense - 1
    if abs(change) < NOISE:
        why = " (zeros are stored; the packed form would be smaller)" if manifest.get("storage") == "dense" else ""
        return f"it takes no less disk, {words.size(sparse)}{why}"
    verb = "fell" if change < 0 else "grew"
    return f"on disk it {verb} from {words.size(dense)} to {words.size(sparse)}"


def _speed_words(run: Json) -> str:
    dense, sparse = _speeds(run)
    if not dense or sparse is None:
        note = words.clean(section(run, "speed").get("note") or "").rstrip(".")
        return "its speed was not measured" + (f" ({note})" if note else "")
    ratio = sparse / dense
    numbers = f"{words.number(sparse)} against {words.number(dense)} tokens/s" + _share_of_sparsity(run)
    if ratio > 1 + NOISE:
        return f"it generates {_times(ratio)} as fast, {numbers}"
    return f"it generates {'slower' if ratio < 1 - NOISE else 'no faster'}, {numbers}"


def _share_of_sparsity(run: Json) -> str:
    """Say how much of a gain is the zeros' own: that over the dense model in the same runtime."""
    own = measured_form(run).get("over_dense")
    return "" if own is None else f" ({_times(own)} over the dense model in the same runtime)"


def measured_form(run: Json) -> Json:
    """Return what the runtime measured of the sparse model that the run's speed is of; empty if it measured none."""
    forms = section(run, "speed", "runtime").get("models") or []
    rate = section(run, "speed").get("sparse_tokens_per_s")
    return next((form for form in forms if form.get("sparsity") and form.get("tokens_per_s") == rate), {})


def _speeds(run: Json) -> tuple[float | None, float | None]:
    speed = section(run, "speed")
    return speed.get("dense_tokens_per_s"), speed.get("sparse_tokens_per_s")


def headline(manifest: Json, run: Json) -> list[Row]:
    """Return the rows of the table dense against sparse; what was not measured has no row."""
    rows = [_perplexity_row(section(manifest, "evaluation", "perplexity"))]
    rows += [_task_row(name, task) for name, task in section(manifest, "evaluation", "tasks").items()]
    size = section(run, "size")
    rows.append(
        _ratio_row("Size on disk", "all weights", size.get("dense_bytes"), size.get("sparse_bytes"), words.size)
    )
    rows.append(
        _ratio_row(
            "Bits per weight",
            "pruned layers, on disk",
            _BITS.get(str(section(manifest, "model").get("dtype", "")).removeprefix("torch.")),
            size.get("pruned_layers_bits_per_weight"),
            words.number,
        )
    )
    hint = "generated, " + words.clean(section(run, "speed").get("note") or "measured on this machine")
    rows.append(_ratio_row("Tokens per second", hint, *_speeds(run), words.number, more_is_better=True))
    rows.append(_same_runtime_row(run))
    return [row for row in rows if row is not None]


def _same_runtime_row(run: Json) -> Row | None:
    """Set the sparse model beside the dense one of the same dtype in the same runtime: what the zeros alone buy."""
    sparse = measured_form(run)
    if not sparse.get("over_dense"):
        return None
    rate = float(sparse["tokens_per_s"])
    hint = f"both in lowdim's runtime, {words.clean(sparse.get('dtype', ''))}"
    dense = rate / float(sparse["over_dense"])
    return _ratio_row("The same, zeros alone", hint, dense, rate, words.number, more_is_better=True)


def _perplexity_row(found: Json) -> Row | None:
    dense, sparse = _value(found.get("dense")), _value(found.get("sparse"))
    if dense is None and sparse is None:
        return None
    change, tone = "", ""
    if dense and sparse and math.isfinite(dense) and math.isfinite(sparse):
        change = _times(sparse / dense)
        tone = "worse" if sparse > dense else "better" if sparse < dense else "same"
    difference = section(found, "difference")
    mean, error = difference.get("mean"), difference.get("stderr")
    detail = ""
    if mean is not None and math.isfinite(mean):
        unit = words.clean(difference.get("unit", "nats per token"))
        detail = f"{words.signed(mean, 3)}{'' if error is None else f' ± {error:.3f}'} {unit}"
        tone = "same" if error and abs(mean) <= 2 * error else tone
    return Row("Perplexity", "lower is better", words.number(dense), words.number(sparse), change, detail, tone)


def _task_row(name: str, task: Json) -> Row:
    dense, sparse, error = task.get("dense"), task.get("sparse"), task.get("stderr")
    difference = task.get("difference")
    if difference is None and dense is not None and sparse is not None:
        difference = sparse - dense
    change, tone = "", ""
    if difference is not None:
        change = f"{words.signed(100 * difference, 1)} points"
        certain = error is None or abs(difference) > 2 * error
        tone = "same" if not certain or not difference else "better" if difference > 0 else "worse"
    questions = task.get("questions")
    metric = "length-normalised accuracy" if task.get("metric") == "acc_norm" else "accuracy"
    hint = metric + (f", {words.plural(questions, 'question')}" if isinstance(questions, int) else "")
    detail = "" if error is None else f"± {100 * error:.1f}" + (", within noise" if tone == "same" else "")
    return Row(words.clean(name), hint, words.percent(dense), words.percent(sparse), change, detail, tone)


def _ratio_row(
    label: str, hint: str, dense: float | None, sparse: float | None, write: Any, *, more_is_better: bool = False
) -> Row | None:
    if sparse is None:
        return None
    if not dense:
        return Row(label, hint, words.MISSING, write(sparse), "")
    ratio = sparse / dense
    if abs(ratio - 1) < NOISE:
        return Row(label, hint, write(dense), write(sparse), "the same", tone="same")
    tone = "better" if (ratio > 1) == more_is_better else "worse"
    change = _times(ratio) if more_is_better else words.signed(100 * (ratio - 1), 0) + "%"
    return Row(label, hint, write(dense), write(sparse), change, tone=tone)


def notices(manifest: Json) -> list[Notice]:
    """Return every fallback and every skipped layer, equal ones together, fallbacks first."""
    grouped: dict[tuple[str, str], Notice] = {}
    for entry in manifest.get("fallbacks") or []:
        what, detail = str(entry.get("what", "")), str(entry.get("detail") or "")
        _note(grouped, "fallback", f"{what}: {detail}" if what and detail else what or detail, entry.get("layer"))
    for entry in manifest.get("skipped") or []:
        _note(grouped, "skipped", str(entry.get("reason", "no reason recorded")), entry.get("name"))
    return list(grouped.values())


def _note(grouped: dict[tuple[str, str], Notice], kind: str, what: str, place: object) -> None:
    notice = grouped.setdefault((kind, what), Notice(kind, words.clean(what)))
    if place:
        notice.places.append(words.clean(place))
