"""The essential-sparsity curve: known curves, exact counts, and a trained model with its random control."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluate.audit.test_dropping import bits, same
from tests.evaluate.conftest import build_tokenizer
from tests.evaluate.trained import encoded, table, trained, write_questions
from tests.models.zoo import VOCAB, ZOO
from torch import nn

from lowdim.data.windows import Windows
from lowdim.evaluate.audit.essential import (
    Essential,
    Metric,
    essential_sparsity,
    perplexity_metric,
    task_metric,
)
from lowdim.evaluate.quality.perplexity import perplexity

GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def zeros(model: nn.Module) -> float:
    blocks = model.model.layers  # type: ignore[union-attr]
    held = [p for p in blocks.parameters() if p.dim() == 2]  # type: ignore[union-attr]
    return sum(int((p == 0).sum()) for p in held) / sum(p.numel() for p in held)


def test_a_known_curve_is_read_as_it_is() -> None:
    metric = Metric("flat to a half, then down", lambda model: 1 - max(0.0, zeros(model) - 0.5))
    found = essential_sparsity(ZOO["llama"](), metric, grid=GRID)
    assert found.grid == [0.0, *GRID]
    for curve in (found.magnitude, found.random):
        assert curve is not None
        assert curve.knee == 0.5
        assert curve.tolerance == 0.5
        assert curve.scores == pytest.approx([1, 1, 1, 1, 1, 1, 0.9, 0.8, 0.7, 0.6], abs=1e-4)


def test_counts_are_exact_to_one_weight() -> None:
    found = essential_sparsity(ZOO["llama"](), Metric("zeros", zeros), grid=[1 / 3, 0.61])
    assert found.dropped == [0, round(found.weights / 3), round(0.61 * found.weights)]
    assert found.magnitude.scores == [count / found.weights for count in found.dropped]
    assert found.random is not None
    assert found.random.scores == found.magnitude.scores


def test_the_curve_starts_at_the_dense_model_and_leaves_it_dense() -> None:
    model = ZOO["gpt2"]()
    before = bits(model)
    text = Windows(torch.arange(4 * 16).remainder(VOCAB).view(4, 16), {"source": "here"})
    dense = perplexity(model, text).value
    found = essential_sparsity(model, perplexity_metric(text), grid=[0.5])
    assert found.magnitude.scores[0] == dense
    assert found.random is not None
    assert found.random.scores[0] == dense
    assert found.magnitude.scores[1] != dense
    assert found.protocol == {"source": "here"}
    assert same(bits(model), before)
    assert perplexity(model, text).value == dense


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_sweep_leaves_the_model_dense(error: type[BaseException]) -> None:
    model = ZOO["llama"]()
    before = bits(model)
    seen: list[float] = []

    def measure(model: nn.Module) -> float:
        seen.append(zeros(model))
        if len(seen) == 3:
            raise error
        return 1.0

    with pytest.raises(error):
        essential_sparsity(model, Metric("fails", measure))
    assert seen[2] == pytest.approx(0.2, abs=1e-4)
    assert same(bits(model), before)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Essential:
    name = write_questions(tmp_path_factory.mktemp("tasks") / "facts.jsonl", table())
    return essential_sparsity(trained(), task_metric(name, build_tokenizer()), grid=GRID)


@pytest.mark.slow
def test_a_trained_model_spares_small_weights_and_no_random_ones(measured: Essential) -> None:
    assert measured.magnitude.scores[0] == 1.0
    assert measured.random is not None
    assert measured.magnitude.tolerance >= 0.2
    assert measured.random.tolerance < measured.magnitude.tolerance
    assert all(a > b for a, b in zip(measured.magnitude.scores[1:6], measured.random.scores[1:6], strict=True))
    assert measured.magnitude.knee is not None
    assert 0.2 <= measured.magnitude.knee <= 0.5


def test_a_model_that_guesses_is_told(measured: Essential, tmp_path: Path) -> None:
    assert measured.above_chance
    assert "chance" not in measured.summary()
    name = write_questions(tmp_path / "facts.jsonl", table())
    guesses = task_metric(name, build_tokenizer(), limit=40)
    assert not guesses.informative(0.25)
    assert not guesses.informative(0.35)
    assert guesses.informative(0.45)
    found = essential_sparsity(ZOO["llama"](), replace(guesses, measure=lambda model: 0.25), grid=[0.5], random=False)
    assert not found.above_chance
    assert "facts.jsonl is not above chance when dense, so the curve says nothing" in found.summary()
    assert found.to_dict()["above_chance"] is False


@pytest.mark.parametrize(("tokens", "better"), [(30, False), (100, True)])
def test_perplexity_of_the_vocabulary_is_guessing(tokens: int, better: bool) -> None:
    text = Windows(torch.zeros(1, 4, dtype=torch.int64), {"tokenizer": {"tokens": tokens}})
    assert perplexity_metric(text).informative(50.0) is better
    assert not perplexity_metric(text).informative(math.inf)


def test_perplexity_has_its_knee_on_the_logarithm() -> None:
    ids = encoded(table())

    def measure(model: nn.Module) -> float:
        logits = model(input_ids=ids[:, :-1]).logits[:, -1]
        return math.exp(float(torch.nn.functional.cross_entropy(logits, ids[:, -1])))

    found = essential_sparsity(trained(), Metric("facts", measure, False, logarithmic=True), grid=GRID, random=False)
    assert found.random is None
    assert found.magnitude.knee is not None
    assert 0.2 <= found.magnitude.knee <= 0.5


def test_it_renders_and_survives_json(measured: Essential) -> None:
    text = measured.table().text()
    assert "weights dropped" in text
    assert f"{measured.weights // 2:,}" in text
    assert "magnitude: within 1% of dense up to sparsity" in measured.summary()
    plain: dict[str, Any] = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert plain["magnitude"]["scores"][0] == 1.0


def test_infinite_scores_become_none_in_json() -> None:
    values = iter([1.0, math.inf])
    found = essential_sparsity(
        ZOO["llama"](), Metric("explodes", lambda model: next(values), False), grid=[0.5], random=False
    )
    assert found.magnitude.tolerance == 0.0
    assert found.to_dict()["magnitude"]["scores"] == [1.0, None]
