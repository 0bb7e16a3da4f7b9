"""The section on speed: from what it is made, and what it leaves out."""

from __future__ import annotations

import json

import pytest

from lowdim.report.build import build
from lowdim.report.pruning import speed
from lowdim.report.pruning.page import render
from lowdim.report.pruning.summary import headline, verdict

TITLES = [
    "Faster with more zeros",
    "Perplexity against tokens per second",
    "Perplexity against weights read per token",
]


def titles(found, manifest):
    return [picture.title for picture in speed.pictures(found, manifest)]


def test_all_three_pictures_and_a_row_per_form(bench, manifest):
    assert titles(bench, manifest) == TITLES
    rows = speed.rows(bench, manifest)
    assert [row["name"] for row in rows[:3]] == ["torch bf16 dense", "lowdim bf16 dense", "lowdim bf16 60%"]
    assert rows[0]["over_dense"] == "", "a form without zeros gains nothing by them"
    assert rows[2]["over_dense"] == "×1.24"
    assert rows[2]["perplexity"] == "65.2"


def test_without_perplexities_of_its_own_the_runs_stand_for_the_unrounded_forms(bench, manifest):
    for form in bench["models"]:
        form["perplexity"] = None
    shown = {row["name"]: row["perplexity"] for row in speed.rows(bench, manifest)}
    assert shown["torch bf16 dense"] == shown["lowdim bf16 dense"] == "19.3"
    assert shown["lowdim bf16 60%"] == "64.2"
    assert shown["lowdim int8 60%"] == ""


@pytest.mark.parametrize("what", ["random_zeros", "random_weights"])
def test_random_zeros_borrow_no_perplexity(bench, manifest, what):
    bench["subject"][what] = True
    for form in bench["models"]:
        form["perplexity"] = None
    assert titles(bench, manifest) == TITLES[:1]


def test_a_layer_measured_at_two_sparsities_is_no_curve(bench, manifest):
    bench["layers"] = [row for row in bench["layers"] if row["sparsity"] in (0.0, 0.6)]
    assert titles(bench, manifest) == TITLES[1:]


def test_what_bench_wrote_beside_the_run_goes_before_what_the_run_measured(bench, run):
    run["speed"]["runtime"] = {"models": []}
    assert speed.measured(run, bench) is bench
    assert speed.measured(run, {}) == {"models": []}
    assert speed.measured({}, {}) == {}


def test_no_measurement_no_section(small, run):
    assert "Speed on one machine" not in render(small, run)


def test_the_file_beside_the_run_is_found(write, small, bench):
    out = write(small)
    place = out.parent / "owl60.bench.json"
    place.write_text(json.dumps(bench))
    page = build(out).read_text()
    assert "Intel Xeon @ 2.60GHz, 2 threads, kernels for avx512, memory read at 38.2 GB/s" in page
    place.write_text(json.dumps(bench | {"schema": 2}))
    page = build(out).read_text()
    assert "owl60.bench.json is of another version" in page
    assert "Speed on one machine" not in page


def test_the_verdict_says_what_the_zeros_alone_bought(bench):
    run = {"speed": {"dense_tokens_per_s": 38.1, "sparse_tokens_per_s": bench["models"][2]["tokens_per_s"]}}
    assert "dense model in the same runtime" not in verdict({}, run)
    run["speed"]["runtime"] = bench
    assert "×4.10 as fast, 156.2 against 38.1 tokens/s (×1.24 over the dense model in the same runtime)" in verdict(
        {}, run
    )


def test_a_row_of_its_own_sets_dense_beside_sparse_in_one_runtime(bench):
    run = {"speed": {"dense_tokens_per_s": 38.1, "sparse_tokens_per_s": bench["models"][2]["tokens_per_s"]}}
    assert [row.label for row in headline({}, run)] == ["Tokens per second"]
    run["speed"]["runtime"] = bench
    over_torch, alone = headline({}, run)
    assert (over_torch.dense, over_torch.sparse, over_torch.change) == ("38.1", "156.2", "×4.10")
    assert (alone.dense, alone.sparse, alone.change) == ("126.0", "156.2", "×1.24")
    assert alone.hint == "both in lowdim's runtime, bf16"
