"""The recommendation on rows written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowdim.core.errors import LowdimError
from lowdim.evaluate.quality.tasks import PRESETS
from lowdim.evaluate.quality.zeroshot import TaskResult
from lowdim.pipeline.front.measure import Row
from lowdim.pipeline.front.result import Result, budget_of
from lowdim.prune.measure import Measured


def row(form: str, perplexity: float, megabytes: float, speed: float = 100.0) -> Row:
    size = int(megabytes * 1e6)
    return Row(form, form.partition("-")[0], perplexity, {}, size, size, speed)


DENSE8, DENSE4, SPARSE = row("dense-int8", 20, 130), row("dense-int4", 25, 85), row("sparse-50-int8", 30, 100)
MISSING = Row("llama.cpp-Q2_K", "llama.cpp", note="not measured")


def result(*rows: Row, megabytes: float | None = None) -> Result:
    return Result("model", rows, budget_of(rows, megabytes), {}, {})


def test_a_dense_form_is_recommended_where_it_is_the_best() -> None:
    found = result(DENSE8, DENSE4, SPARSE, MISSING)
    assert found.budget == 130e6
    assert found.sentence() == (
        "Within 130 MB read per token deploy dense-int8: perplexity 20.00, 130 MB a token, 100.0 tokens/s, 130 MB on "
        "disk; the best sparse form that fits is sparse-50-int8 with 30.00."
    )


def test_a_sparse_form_is_recommended_where_it_is_the_best() -> None:
    better = row("sparse-60-int8", 24, 84)
    found = result(DENSE8, DENSE4, better, megabytes=90)
    assert found.to_dict()["recommended"] == "sparse-60-int8"
    assert "the best dense form that fits is dense-int4 with 25.00" in found.sentence()
    assert "no dense form fits" in result(DENSE8, better, megabytes=90).sentence()
    assert "no dense form was measured" in result(better, megabytes=90).sentence()


def test_where_nothing_fits_the_smallest_is_named() -> None:
    assert result(DENSE8, DENSE4, megabytes=10).sentence() == (
        "No form fits 10 MB read per token: the smallest is dense-int4 with 85 MB."
    )


def test_fronts_over_each_cost_without_what_was_not_measured() -> None:
    fast = row("sparse-2:4-int8", 40, 110, speed=200)
    assert result(DENSE8, DENSE4, SPARSE, fast, MISSING).fronts() == {
        "bytes_per_token": ["dense-int4", "dense-int8"],
        "file_bytes": ["dense-int4", "dense-int8"],
        "seconds_per_token": ["sparse-2:4-int8", "dense-int8"],
    }


def test_no_budget_without_its_form() -> None:
    with pytest.raises(LowdimError, match="--budget-mb"):
        budget_of([DENSE4], None)


def test_the_verdict_is_of_the_same_questions_against_the_first_dense_form() -> None:
    def answered(form: str, right: int) -> Row:
        outcomes = torch.arange(500) < right
        scores = {name: TaskResult(name, outcomes, outcomes, "hash", "acc", chance=0.25) for name in PRESETS["hard"]}
        return replace(row(form, 20, 100), outcomes=Measured(tasks=scores).to_dict()["tasks"])

    rows = answered("sparse-2:4-int8", 400), answered("dense-int8", 400), answered("dense-int4", 300), MISSING
    said = result(*rows).to_dict()["verdicts"]
    assert said["against"] == "dense-int8" and list(said["forms"]) == ["sparse-2:4-int8", "dense-int4"]
    assert said["forms"]["sparse-2:4-int8"]["sentence"].startswith("Lossless on the hard tasks")
    assert said["forms"]["dense-int4"]["sentence"].startswith("Lost, in points: arithmetic 20.0")
    assert result(answered("sparse-2:4-int8", 400), megabytes=1e3).verdicts() == {}  # nothing dense to compare with
    assert result(DENSE8, DENSE4).verdicts() == {}
