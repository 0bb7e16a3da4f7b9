"""The words at the top of the page: true in every case, plain when nothing was won."""

import math

import pytest

from lowdim.report.pruning.summary import hard_verdict, headline, notices, verdict


def speed(dense, sparse):
    return {"speed": {"dense_tokens_per_s": dense, "sparse_tokens_per_s": sparse}}


def size(dense, sparse):
    return {"size": {"dense_bytes": dense, "sparse_bytes": sparse}}


def perplexity(dense, sparse, **difference):
    return {"evaluation": {"perplexity": {"dense": dense, "sparse": sparse, "difference": difference}}}


def row(label, manifest, run=None):
    return next(row for row in headline(manifest, run or {}) if row.label == label)


def test_what_was_rounded_alone_is_not_called_pruned() -> None:
    manifest = {
        "sparsity": {"prunable": 0.098},
        "recovery": {"recipe": {"quantize": "int4"}},
        "packed": {"quantized": {"w": {"bits": 4, "dense": True}}},
    }
    assert verdict(manifest, {}).startswith("No weight is pruned, and all are rounded to int4")


def test_whole_sentence(manifest, run):
    manifest["sparsity"]["prunable"] = 0.6
    assert verdict(manifest, run) == (
        "60% of the prunable weights are zero; perplexity rose from 19.3 to 64.2 (×3.32); "
        "zero-shot accuracy fell by 6.5 points over 4 tasks; on disk it fell from 269 MB to 141 MB; "
        "it generates no faster, 37.6 against 38.1 tokens/s."
    )


def test_rounding_is_said():
    manifest = {"sparsity": {"prunable": 0.5}, "recipe": {"quantize": "int4"}}
    assert verdict(manifest, {}).startswith("50% of the prunable weights are zero, the others rounded to int4;")
    assert "rounded" not in verdict(manifest | {"recipe": {"quantize": "none"}}, {})


@pytest.mark.parametrize(
    ("dense", "sparse", "words"),
    [
        (40.0, 60.0, "it generates ×1.50 as fast, 60.0 against 40.0 tokens/s"),
        (40.0, 41.0, "it generates no faster, 41.0 against 40.0 tokens/s"),
        (40.0, 40.0, "it generates no faster"),
        (40.0, 20.0, "it generates slower, 20.0 against 40.0 tokens/s"),
        (None, 20.0, "its speed was not measured"),
        (40.0, None, "its speed was not measured"),
    ],
)
def test_speed(dense, sparse, words):
    assert words in verdict({}, speed(dense, sparse))


@pytest.mark.parametrize(
    ("dense", "sparse", "storage", "words"),
    [
        (200e6, 100e6, "packed", "on disk it fell from 200 MB to 100 MB"),
        (100e6, 120e6, "packed", "on disk it grew from 100 MB to 120 MB"),
        (200e6, 200e6, "packed", "it takes no less disk, 200 MB;"),
        (
            200e6,
            201e6,
            "dense",
            "it takes no less disk, 201 MB (zeros are stored; the packed form would be smaller)",
        ),
    ],
)
def test_size(dense, sparse, storage, words):
    assert words in verdict({"storage": storage}, size(dense, sparse))


@pytest.mark.parametrize(
    ("dense", "sparse", "words"),
    [
        (20.0, 30.0, "perplexity rose from 20.0 to 30.0 (×1.50)"),
        (20.0, 19.0, "perplexity fell from 20.0 to 19.0 (×0.95)"),
        (20.0, 20.0, "perplexity stayed at 20.0"),
        (20.0, math.inf, "its perplexity, ∞ after 20.0, is not finite"),
        (20.0, "inf", "its perplexity, ∞ after 20.0, is not finite"),
        (None, 30.0, "its quality was not measured"),
    ],
)
def test_perplexity(dense, sparse, words):
    assert words in verdict(perplexity(dense, sparse), {})


def test_perplexity_row_has_the_paired_difference():
    found = row("Perplexity", perplexity(20.0, 30.0, mean=0.4055, stderr=0.01))
    assert (found.dense, found.sparse, found.change, found.tone) == ("20.0", "30.0", "×1.50", "worse")
    assert found.detail == "+0.406 ± 0.010 nats per token"


def test_perplexity_within_noise_is_neither_better_nor_worse():
    assert row("Perplexity", perplexity(20.0, 19.8, mean=-0.01, stderr=0.006)).tone == "same"
    assert row("Perplexity", perplexity(20.0, 19.8, mean=-0.01, stderr=0.004)).tone == "better"


@pytest.mark.parametrize(
    ("difference", "error", "tone", "change"),
    [
        (-0.05, 0.02, "worse", "−5.0 points"),
        (-0.03, 0.02, "same", "−3.0 points"),
        (0.05, 0.02, "better", "+5.0 points"),
        (0.0, None, "same", "+0.0 points"),
        (-0.05, None, "worse", "−5.0 points"),
    ],
)
def test_task_row(difference, error, tone, change):
    task = {
        "dense": 0.5,
        "sparse": 0.5 + difference,
        "difference": difference,
        "stderr": error,
        "questions": 400,
    }
    found = row("piqa", {"evaluation": {"tasks": {"piqa": task}}})
    assert (found.tone, found.change, found.hint) == (tone, change, "accuracy, 400 questions")
    assert ("within noise" in found.detail) == (tone == "same" and error is not None)


def test_task_difference_is_worked_out_if_not_recorded():
    found = row("piqa", {"evaluation": {"tasks": {"piqa": {"dense": 0.5, "sparse": 0.4}}}})
    assert (found.change, found.tone) == ("−10.0 points", "worse")


def test_smaller_and_slower_have_their_own_tones():
    run = speed(40, 20) | size(200e6, 100e6)
    run["size"]["pruned_layers_bits_per_weight"] = 5.81
    manifest = {"model": {"dtype": "bfloat16"}}
    disk, bits, tokens = headline(manifest, run)
    assert (disk.change, disk.tone) == ("−50%", "better")
    assert (bits.dense, bits.sparse, bits.change) == ("16.0", "5.81", "−64%")
    assert (tokens.change, tokens.tone) == ("×0.50", "worse")


def test_nothing_measured_has_no_rows():
    assert headline({}, {}) == []


def test_equal_notices_are_one():
    found = notices(
        {
            "fallbacks": [{"layer": f"l{i}", "what": "damping raised", "detail": "to 0.1"} for i in range(3)]
            + [{"layer": "", "what": "no tokenizer", "detail": ""}],
            "skipped": [{"name": "head", "reason": "tied"}],
        }
    )
    assert [(n.kind, n.what, n.places) for n in found] == [
        ("fallback", "damping raised: to 0.1", ["l0", "l1", "l2"]),
        ("fallback", "no tokenizer", []),
        ("skipped", "tied", ["head"]),
    ]


def test_hard_tasks_are_judged_from_the_record_and_others_are_not(manifest):
    assert hard_verdict(manifest) == ""
    record = {"dense": 0.8, "sparse": 0.62, "questions": 1000, "lost": 200, "won": 20, "chance": 0.25}
    manifest["evaluation"]["tasks"]["csqa"] = record | {"metric": "acc", "difference": -0.18, "stderr": 0.01}
    said = hard_verdict(manifest)
    assert said.startswith("No claim: 7 of the 8 hard tasks were not measured")
    assert "Lost, in points: csqa 18.0." in said
