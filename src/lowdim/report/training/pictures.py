"""The pictures of a run of sparse training: how it learnt, where its weights went, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowdim.report.draw import words
from lowdim.report.draw.bars import bars
from lowdim.report.draw.tracks import Track, shades, tracks
from lowdim.report.pruning.figures import Picture
from lowdim.report.training.facts import members, title

Json = Mapping[str, Any]
TONES = {"dense": "muted", "small": "faint", "static": "orange", "resampled": "faint", "sparse": "blue"}


def pictures(facts: Json) -> list[Picture]:
    """Return the charts for which the run recorded something."""
    found = [
        _accuracy(facts),
        _worst(facts),
        _loss(facts),
        _samples(facts),
        _density(facts),
        _churn(facts),
        _explored(facts),
        _costs(facts),
    ]
    return [picture for picture in found if picture is not None]


def _curves(facts: Json, measure: str) -> list[Track]:
    return [
        Track(
            title(role, facts),
            [(point["epoch"], point[measure]) for point in member["curve"]],
            TONES[role],
            role in ("small", "resampled"),
        )
        for role, member in members(facts).items()
        if len(member["curve"]) > 1 and measure in member["curve"][0]
    ]


def _accuracy(facts: Json) -> Picture | None:
    if not (lines := _curves(facts, "validation_accuracy")):
        return None
    label = "Validation accuracy of each network by epoch"
    svg = tracks("accuracy", label, lines, xlabel="epoch", write=words.percent)
    caption = "Accuracy on the validation examples after each epoch; nothing was chosen on them."
    return Picture("How they learn", caption, svg)


def _worst(facts: Json) -> Picture | None:
    if not (lines := _curves(facts, "validation_worst_group")):
        return None
    label = "Validation accuracy of each network's worst group by epoch"
    svg = tracks("worst", label, lines, xlabel="epoch", write=words.percent)
    caption = (
        "Accuracy on whichever group of the validation examples was worst after the epoch; nothing was chosen on it."
    )
    return Picture("How their worst group does", caption, svg)


def _samples(facts: Json) -> Picture | None:
    if not (lines := _curves(facts, "samples_explored")):
        return None
    kept = [(point["epoch"], point["samples_kept"]) for point in members(facts)["sparse"]["curve"]]
    label = "Share of the samples that each epoch kept, and that any epoch has kept"
    drawn = [Track("kept", kept, "muted"), *lines]
    svg = tracks("samples", label, drawn, xlabel="epoch", write=words.percent)
    return Picture("Which samples were trained on", "R_s of samples: the share that any epoch has kept so far.", svg)


def _loss(facts: Json) -> Picture | None:
    if not (lines := _curves(facts, "loss")):
        return None
    label = "Mean training loss of each network by epoch"
    svg = tracks("loss", label, lines, xlabel="epoch", write=words.tick)
    plain = "objective" not in facts["recipe"]
    what = "Mean cross-entropy" if plain else f"Mean of what {facts['recipe']['objective']['name']} minimises,"
    return Picture("How they fit", f"{what} on the training examples during each epoch, in nats.", svg)


def _updates(facts: Json) -> list[Json]:
    return [update for update in members(facts)["sparse"]["updates"] if "kept" in update]


def _short(name: str) -> str:
    return words.clean(name.removesuffix(".weight"))


def _density(facts: Json) -> Picture | None:
    sparse, updates = members(facts)["sparse"], _updates(facts)
    layers = sparse["layers"]
    if not layers:
        return None
    total = facts["steps"]["total"]
    lines = []
    for layer, tone in zip(layers, shades(len(layers)), strict=True):
        points = [(0, layer["initial"]), *((u["step"], u["kept"][layer["name"]]) for u in updates)]
        if points[-1][0] < total:
            points.append((total, layer["kept"]))
        lines.append(Track(_short(layer["name"]), [(x, kept / layer["size"]) for x, kept in points], tone))
    lines.sort(key=lambda line: -line.points[-1][1])
    moved = any(u["kept"] != updates[0]["kept"] for u in updates) or any(x["initial"] != x["kept"] for x in layers)
    caption = (
        "Share of each layer's weights that are kept, step by step."
        if moved
        else "Share of each layer's weights that are kept. Weights move within a layer, never between layers."
    )
    svg = tracks("density", "Density of each layer by step", lines, xlabel="step", write=words.percent, steps=True)
    return Picture("Where the weights are", caption, svg)


def _churn(facts: Json) -> Picture | None:
    layers, updates = members(facts)["sparse"]["layers"], _updates(facts)
    if len(updates) < 2:
        return None
    lines = [
        Track(
            _short(layer["name"]),
            [(u["step"], u["grown"][layer["name"]] / max(1, u["kept"][layer["name"]])) for u in updates],
            tone,
        )
        for layer, tone in zip(layers, shades(len(layers)), strict=True)
    ]
    if not any(y for line in lines for _, y in line.points):
        return None
    svg = tracks("churn", "Share of new weights at each mask update", lines, xlabel="step", write=words.percent)
    return Picture("How much the masks move", "Share of a layer's kept weights that are new after an update.", svg)


def _explored(facts: Json) -> Picture | None:
    sparse, updates = members(facts)["sparse"], _updates(facts)
    size = sum(layer["size"] for layer in sparse["layers"])
    if not updates or not size:
        return None
    start = sum(layer["initial"] for layer in sparse["layers"]) / size
    if start == 1:
        return None
    now = [(0.0, start), *((float(u["step"]), float(u["explored"])) for u in updates)]
    kept = [(0.0, start), *((float(u["step"]), sum(u["kept"].values()) / size) for u in updates)]
    svg = tracks(
        "explored",
        "Share of weights that were ever kept, and that are kept, by step",
        [Track("kept", kept, "muted"), Track("ever kept", now, "blue")],
        xlabel="step",
        write=words.percent,
        steps=True,
    )
    return Picture(
        "How much was explored",
        "R_s, the share of weights that were ever kept: training sparsely can use what it has looked at.",
        svg,
    )


def _costs(facts: Json) -> Picture | None:
    found = members(facts)
    flops: Sequence[float | None] = [member["costs"]["training_flops"] for member in found.values()]
    memory: Sequence[float | None] = [
        member["costs"]["training_bytes"]["sparse" if member["layers"] else "dense"]["total"]
        for member in found.values()
    ]
    svg = bars(
        "costs",
        "Training FLOPs and peak training memory of each network",
        [title(role, facts) for role in found],
        [("training FLOPs", flops, words.number), ("peak training memory", memory, words.size)],
    )
    return Picture(
        "What training costs", "Counted, not timed: what it takes to store and to multiply the kept weights alone.", svg
    )
