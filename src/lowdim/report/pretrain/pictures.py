"""The pictures of a pre-training: what it learnt, how it was driven, how fast it went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lowdim.report.draw import words
from lowdim.report.draw.tracks import Track, tracks
from lowdim.report.pretrain.curves import MOST, Points, curve, neighbours
from lowdim.report.pruning.figures import Picture

Json = Mapping[str, Any]


def pictures(facts: Json, run: Json, log: Sequence[Json]) -> list[Picture]:
    """Return the charts for which something was written down."""
    found = (_loss(facts, log), _norm(facts, log), _rate(log), _speed(run, log))
    return [picture for picture in found if picture is not None]


def _steps(log: Sequence[Json]) -> int:
    return sum("loss" in line for line in log)


def judged(facts: Json) -> Points:
    """Return (step, validation loss)."""
    return [(point["step"], point["loss"]) for point in facts["curve"]]


def _loss(facts: Json, log: Sequence[Json]) -> Picture | None:
    trained, held = curve(log, "loss"), judged(facts)
    if len(trained) + len(held) < 2:
        return None
    lines = [Track("training", trained, "faint"), Track("validation", held, "blue")]
    svg = tracks(
        "loss",
        "Training and validation loss by step",
        [line for line in lines if line.points],
        xlabel="step",
        write=words.tick,
    )
    caption = f"Nats per token, of the step's own text and of the text that is held out.{neighbours(_steps(log))}"
    return Picture("How it learns", caption, svg)


def _norm(facts: Json, log: Sequence[Json]) -> Picture | None:
    if len(points := curve(log, "norm")) < 2:
        return None
    lines, clip = [Track("norm", points, "blue")], facts["recipe"]["clip"]
    if clip is not None:
        lines.insert(0, Track("clip", [(points[0][0], clip), (points[-1][0], clip)], "orange", dashed=True))
    svg = tracks("norm", "Norm of the gradient by step", lines, xlabel="step", write=words.tick)
    what = "Over all weights, before it is clipped." if clip is not None else "Over all weights; it is not clipped."
    return Picture("Gradient norm", f"{what}{neighbours(_steps(log))}", svg)


def _rate(log: Sequence[Json]) -> Picture | None:
    if len(points := [(line["step"], line["lr"]) for line in log if "lr" in line]) < 2:
        return None
    some = [*points[:: math.ceil(len(points) / MOST)], points[-1]]  # no means: a warm-up begins at 0
    svg = tracks("rate", "Learning rate by step", [Track("", some, "blue")], xlabel="step", write=words.tick)
    return Picture("Learning rate", "That of the first group of weights, as the schedule sets it.", svg)


def _speed(run: Json, log: Sequence[Json]) -> Picture | None:
    if len(points := curve(log, "tokens_per_s")) < 2:
        return None
    line = [Track("", points, "blue")]
    svg = tracks("speed", "Tokens a second by step", line, xlabel="step", write=words.tick)
    share = run.get("mfu")
    mfu = "" if share is None else f" The median step is {words.percent(share)} of the matmul peak measured beside it."
    return Picture("Throughput", f"Tokens a second, without the evaluations.{mfu}{neighbours(_steps(log))}", svg)
