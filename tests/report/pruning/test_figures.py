"""Which charts a run gets, and that the numbers in them are the run's."""

import math
import re

import pytest

from lowdim.report.pruning.figures import pictures


def titles(manifest, run):
    return [picture.title for picture in pictures(manifest, run)]


def chart(manifest, run, title):
    return next(picture for picture in pictures(manifest, run) if picture.title == title)


def tips(picture):
    return re.findall(r"<title>(.*?)</title>", picture.svg)


def test_a_full_run_has_every_chart(manifest, run):
    assert titles(manifest, run) == [
        "Where the zeros are",
        "What it cost, layer by layer",
        "Outliers per block",
        "Why there",
        "Heavy tails",
        "Zero-shot tasks",
        "Time and memory",
    ]


def test_a_bare_run_has_none():
    assert pictures({}, {}) == []


def test_every_layer_is_in_the_heatmap(manifest, run):
    manifest["layers"]["model.layers.3.mlp.up_proj"] |= {"numel": 1000, "nonzeros": 125, "sparsity": 0.875}
    found = tips(chart(manifest, run, "Where the zeros are"))
    assert "block 3, up_proj: 87.5%" in found
    assert sum("_proj" in tip for tip in found) == 70
    assert sum(tip.startswith("block 3:") for tip in found) == 1


def test_caption_names_the_extremes(manifest, run):
    manifest["layers"]["model.layers.3.mlp.up_proj"] |= {"numel": 1000, "nonzeros": 125, "sparsity": 0.875}
    manifest["layers"]["model.layers.9.mlp.down_proj"] |= {"numel": 1000, "nonzeros": 990, "sparsity": 0.01}
    caption = chart(manifest, run, "Where the zeros are").caption
    assert "From 1% (block 9, mlp.down_proj) to 87.5% (block 3, mlp.up_proj)." in caption
    assert "Dashed: the target, 60%." in caption


def test_one_odd_layer_does_not_flatten_the_scale(manifest, run):
    plain = {"numel": 100, "nonzeros": 50, "sparsity": 0.5}
    manifest["layers"] = {
        f"layers.{b}.up": {**plain, "block": b, "error": 0.1 + 0.001 * b if b else 1e-6} for b in range(100)
    }
    svg = chart(manifest, run, "What it cost, layer by layer").svg
    assert "≤ 0.102<" in svg
    assert svg.count("var(--cost4)") > 5


def test_missing_layers_are_said_to_be_missing(manifest, run):
    del manifest["layers"]["model.layers.3.mlp.up_proj"]
    assert "block 3, up_proj: no such layer" in tips(chart(manifest, run, "Where the zeros are"))


def test_uniform_sparsity_needs_no_legend(manifest, run):
    for layer in manifest["layers"].values():
        layer["sparsity"] = 0.5
    manifest["sparsity"]["target"] = 0.5
    picture = chart(manifest, run, "Where the zeros are")
    assert "50% in every layer." in picture.caption
    assert picture.svg.count(">50%<") == 1  # one tick, no ends of a scale


def test_allocation_that_measured_nothing_has_no_scatter(manifest, run):
    manifest["allocation"] = {"name": "uniform", "values": {}}
    assert "Why there" not in titles(manifest, run)


def test_allocation_of_many_experts_is_averaged(make, run):
    shapes = {f"mlp.experts.{e}.up_proj": (4, 4) for e in range(200)}
    found = tips(chart(make(blocks=8, shapes=shapes), run, "Why there"))
    assert len(found) == 8
    assert found[0].startswith("block 0, mlp.experts.*.up_proj (mean of 200): ")


def test_outliers_are_named_and_measured(manifest, run):
    picture = chart(manifest, run, "Outliers per block")
    manifest["probes"]["outliers"]["5"][2] = 0.0123
    found = tips(chart(manifest, run, "Outliers per block"))
    assert "M = 5, block 2: 1.23%" in found
    assert len(found) == 4 * 10
    order = [picture.svg.index(f">M = {m}<") for m in (3, 5, 7, 10)]
    assert order == sorted(order, reverse=True)  # written from the lowest line up


@pytest.mark.parametrize("values", [[0.0] * 5, [0.0, 0.1, 0.0, 1e-6, 0.2], [None, 0.1, 0.2, 0.3, 0.1]])
def test_zeros_and_gaps_in_a_probe(run, values):
    assert chart({"probes": {"outliers": {"5": values}}}, run, "Outliers per block")


def test_optional_probes(run):
    probes = {
        "scores": {"edges": [0.001, 0.01, 0.1, 1.0], "counts": [10, 30, 5], "kept": [0, 20, 5]},
        "singular_values": {f"model.layers.{b}.mlp.up_proj": [9.0, 3.0, 1.0, 0.1] for b in range(8)},
    }
    assert titles({"probes": probes}, {}) == ["Scores", "Singular values"]
    assert "The first 6 of 8 layers." in chart({"probes": probes}, {}, "Singular values").caption


def test_alpha_mean_is_drawn_per_block(run):
    alpha = {
        "model.layers.0.a": 2.0,
        "model.layers.0.b": 4.0,
        "model.layers.1.a": 5.0,
        "model.layers.1.b": math.nan,
    }
    assert tips(chart({"probes": {"alpha": alpha}}, {}, "Heavy tails")) == [
        "block 0, a: 2.00",
        "block 0, b: 4.00",
        "block 1, a: 5.00",
    ]


def test_repeated_stages_are_added_up(run):
    run["stages"] = [
        {"name": "prune", "seconds": 40.0, "peak_mb": 500},
        {"name": "prune", "seconds": 35.0, "peak_mb": 700},
    ]
    picture = chart({}, run, "Time and memory")
    assert tips(picture) == ["prune: 1 min 15 s", "prune: 734 MB"]
    assert picture.caption.startswith("1 min 15 s in all.")


def test_many_stages_keep_the_longest(run):
    run["stages"] = [{"name": f"stage {i}", "seconds": float(i)} for i in range(40)]
    found = tips(chart({}, run, "Time and memory"))
    assert len(found) == 12
    assert found[-2:] == ["stage 39: 39.0 s", "29 others: 6 min 46 s"]  # 0 + 1 + ... + 28 seconds


def test_no_time_at_all(run):
    run["stages"] = [{"name": "read", "seconds": 0.0}]
    assert chart({}, run, "Time and memory")
