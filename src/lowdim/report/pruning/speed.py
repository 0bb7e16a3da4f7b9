"""What a run's report says of speed: the forms of a model that were measured, and three pictures of the trade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowdim.report.draw import words
from lowdim.report.pruning import trade
from lowdim.report.pruning.figures import Picture
from lowdim.report.pruning.summary import section

Json = Mapping[str, Any]
UNROUNDED = ("fp32", "bf16")


def measured(run: Json, bench: Json) -> Json:
    """Return what `lowdim bench` wrote beside the run, else what the run itself measured; empty without either."""
    return bench or section(run, "speed", "runtime")


def rows(found: Json, manifest: Json) -> list[dict[str, str]]:
    """Return the table of the forms: their speed, what they read, their perplexity."""
    quality = _perplexities(found, manifest)
    return [
        {
            "name": _name(form),
            "driver": words.clean(form.get("backend", "")),
            "speed": words.number(form.get("tokens_per_s")),
            "prefill": words.number(form.get("prefill_tokens_per_s")),
            "bytes": words.size(form.get("bytes_per_token")),
            "bandwidth": words.percent(form.get("bandwidth_share"), 0),
            "over_torch": _times(form.get("over_torch")),
            "over_dense": _times(form.get("over_dense")) if form.get("sparsity") else "",
            "perplexity": words.number(quality[index]) if index in quality else "",
            "kernels": ", ".join(f"{words.clean(k)} ({n})" for k, n in section(form, "kernels").items()),
        }
        for index, form in enumerate(_forms(found))
    ]


def conditions(found: Json) -> str:
    """Return where it was measured."""
    machine = section(found, "machine")
    cpu, threads = words.clean(machine.get("cpu", "this machine")), machine.get("threads")
    parts = [cpu, "" if threads is None else words.plural(int(threads), "thread")]
    level, bandwidth = words.clean(found.get("level") or ""), found.get("bandwidth")
    parts += [f"kernels for {level}" if level else ""]
    parts += [f"memory read at {bandwidth / 1e9:.1f} GB/s" if bandwidth else ""]
    return ", ".join(part for part in parts if part)


def notes(found: Json) -> list[str]:
    """Return the sentences that came with the numbers."""
    return [words.clean(note) for note in found.get("notes") or []]


def pictures(found: Json, manifest: Json) -> list[Picture]:
    """Return the charts for which something was measured."""
    drawn = [_curve(found), *_trades(found, manifest)]
    return [picture for picture in drawn if picture is not None]


def _forms(found: Json) -> list[Json]:
    return [form for form in found.get("models") or [] if isinstance(form, Mapping)]


def _name(form: Json) -> str:
    sparsity = form.get("sparsity") or 0.0
    zeros = words.percent(sparsity, 0) if sparsity else "dense"
    return words.clean(f"{form.get('engine', '')} {form.get('dtype', '')} {zeros}".strip())


def _short(form: Json) -> str:
    return _name(form).removeprefix("lowdim ")


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"×{ratio:.2f}"


def _curve(found: Json) -> Picture | None:
    """Draw the layer that was measured at most sparsities, a line per dtype from its dense kernel on."""
    shapes: dict[tuple[int, int], dict[str, list[tuple[float, float]]]] = {}
    for row in found.get("layers") or []:
        if row["engine"] == "lowdim":
            curve = shapes.setdefault((row["rows"], row["cols"]), {}).setdefault(words.clean(row["dtype"]), [])
            curve.append((row["sparsity"], row["over_torch"]))
    if not shapes:
        return None
    (height, width), series = max(shapes.items(), key=lambda item: max(map(len, item[1].values())))
    if max(map(len, series.values())) < 3:
        return None
    svg = trade.curves(
        "curve",
        "Speed-up of one layer over sparsity, a line per type of weight",
        {dtype: sorted(points) for dtype, points in series.items()},
        xlabel="zeros",
        write_x=lambda share: words.percent(share, 0),
        write=lambda ratio: f"×{words.tick(ratio)}",
    )
    return Picture(
        "Faster with more zeros",
        f"One layer of {height:,} × {width:,}, batch 1: times as fast as torch in bf16 (dashed). At 0% this "
        "runtime's own dense kernel; what a line gains from there is what sparsity gains.",
        svg,
    )


def _trades(found: Json, manifest: Json) -> list[Picture | None]:
    forms, quality = _forms(found), _perplexities(found, manifest)
    if len(quality) < 2:
        return []
    known = [(forms[index], value) for index, value in quality.items()]
    rate = [(f["tokens_per_s"], p, _short(f), not f.get("sparsity")) for f, p in known]
    size = [(f["bytes_per_token"], p, _short(f), not f.get("sparsity")) for f, p in known]
    return [
        _trade("speed", rate, "tokens per second", words.tick, "right and down is better"),
        _trade("bytes", size, "weights read per token", words.size, "left and down is better"),
    ]


def _trade(key: str, points: Sequence[tuple[float, float, str, bool]], xlabel: str, write: Any, better: str) -> Picture:
    svg = trade.named_points(
        f"trade-{key}", f"Perplexity against {xlabel}, a point per form", points, xlabel=xlabel, write_x=write
    )
    return Picture(
        f"Perplexity against {xlabel}",
        f"Each form of the model that was measured: ring dense, dot sparse; {better}.",
        svg,
    )


def _perplexities(found: Json, manifest: Json) -> dict[int, float]:
    """Return each form's perplexity: measured with its speed, else the run's own where the form computes the same."""
    forms = _forms(found)
    own = {i: float(f["perplexity"]) for i, f in enumerate(forms) if f.get("perplexity") is not None}
    subject = section(found, "subject")
    if own or subject.get("random_weights") or subject.get("random_zeros"):
        return own
    run = section(manifest, "evaluation", "perplexity")
    values = {False: run.get("dense"), True: run.get("sparse")}
    found_in_run = {}
    for index, form in enumerate(forms):
        value = values[bool(form.get("sparsity"))]
        if form.get("dtype") in UNROUNDED and isinstance(value, int | float):
            found_in_run[index] = float(value)
    return found_in_run
