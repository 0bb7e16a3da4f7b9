"""What one would otherwise pick, beside what was made."""

from __future__ import annotations

from typing import Any

import pytest

from lowdim.report.pruning.page import render
from lowdim.report.pruning.rivals import missing, rivals


def form(
    dtype: str, sparsity: float, perplexity: float | None, size: float, speed: float, **more: Any
) -> dict[str, Any]:
    measured = {"perplexity": perplexity, "bytes_per_token": size, "tokens_per_s": speed}
    return {"engine": "lowdim", "dtype": dtype, "sparsity": sparsity, **measured, **more}


@pytest.fixture
def run() -> dict[str, Any]:
    models = [
        form("bf16", 0.0, 20.6, 269e6, 18.0, engine="torch"),
        form("int8", 0.0, 20.7, 139e6, 250.0),
        form("int8", 0.5, 30.2, 101e6, 300.0),
        form("int4", 0.0, 27.6, 85.6e6, 410.0),
        form("int4", 0.5, 30.1, 74.5e6, 400.0),
        form("bf16", 0.0, None, 269e6, 90.0),
    ]
    return {"speed": {"sparse_tokens_per_s": 400.0, "runtime": {"models": models, "protocol": {"windows": 10}}}}


def test_the_form_that_was_made_comes_first_and_the_dense_ones_of_the_same_runtime_follow(run: dict[str, Any]) -> None:
    found = rivals(run)
    assert [one.cells[0] for one in found] == ["int4, 50% zeros", "int8, dense", "int4, dense"]
    assert found[0].sentence == ""


def test_each_rival_says_what_it_wins(run: dict[str, Any]) -> None:
    _, eight, four = rivals(run)
    assert eight.sentence == (
        "Dense int8 is better in perplexity (20.7 against 30.1), slower (250.0 against 400.0), and reads more (139 MB "
        "against 74.5 MB)."
    )
    assert "better in perplexity" in four.sentence
    assert "as fast" in four.sentence  # 2.5% apart
    assert "reads more (85.6 MB against 74.5 MB)" in four.sentence


def test_nothing_is_compared_with_what_was_not_measured(run: dict[str, Any]) -> None:
    run["speed"]["sparse_tokens_per_s"] = 1.0
    assert rivals(run) == []
    assert rivals({}) == []


def test_two_windows_are_too_few_to_compare_anything_and_that_is_said(run: dict[str, Any]) -> None:
    assert missing(run) == ""
    run["speed"]["runtime"]["protocol"] = {"windows": 2, "asked": 6}
    assert rivals(run) == []
    assert "on 2 of 6 windows" in missing(run)
    assert missing(run) in render({}, run)


def test_where_no_perplexity_was_asked_for_nothing_is_missing(run: dict[str, Any]) -> None:
    run["speed"]["runtime"]["protocol"] = {}
    assert rivals(run) == []
    assert missing(run) == ""


def test_the_page_shows_them(run: dict[str, Any]) -> None:
    page = render({}, run)
    assert "What one would otherwise pick" in page
    assert "int4, 50% zeros" in page
    assert "What one would otherwise pick" not in render({}, {})
