from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.infer.decode import sampling
from lowdim.infer.decode.sampling import Sampler, Sampling, choose


def logits(size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return (spread * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def peers(options: Sampling, scores: np.ndarray, history: list[int]) -> np.ndarray:
    """The probabilities that Transformers draws from."""
    steps: list[Any] = []
    if options.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    steps.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(TopPLogitsWarper(options.top_p))
    found = LogitsProcessorList(steps)(torch.tensor([history]), torch.from_numpy(scores.copy())[None])
    return found.softmax(-1)[0].double().numpy()


class Fixed(Sampler):
    """Draws what it is told."""

    def draw_all(self, scores: np.ndarray, history: list[int], draws: np.ndarray) -> list[int]:
        penalised, options = self._penalised(scores, history), self.sampling
        return [choose(penalised, options.temperature, options.top_k, options.top_p, float(u)) for u in draws]


@pytest.mark.parametrize(
    "options",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.3),
        Sampling(temperature=2.5, top_k=5),
        Sampling(temperature=1.0, top_k=1000),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=1.0, top_p=0.01),
        Sampling(temperature=0.8, top_k=20, top_p=0.7),
        Sampling(temperature=0.8, top_k=20, top_p=0.7, repetition_penalty=1.7),
        Sampling(temperature=1.0, repetition_penalty=0.5),
    ],
)
@pytest.mark.usefixtures("level")
def test_the_distribution_is_that_of_transformers(options: Sampling) -> None:
    scores, history = logits(200), [3, 3, 17, 4, 150]
    expected = peers(options, scores, history)
    draws = (np.arange(4000) + 0.5) / 4000
    found = Fixed(options).draw_all(scores, history, draws)
    counts = np.bincount(found, minlength=200) / len(draws)
    # draws in equal steps give each token its probability to within one step
    assert np.abs(counts - expected).max() <= 1 / 4000 + 1e-6
    assert set(found) <= set(np.flatnonzero(expected))


@given(
    st.integers(1, 300),
    st.floats(0.05, 5.0),
    st.integers(0, 320),
    st.floats(0.01, 1.0),
    st.integers(0, 10**6),
)
def test_what_is_drawn_is_what_transformers_keeps(
    size: int, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    options = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    scores = logits(size, seed)
    expected = peers(options, scores, [0])
    draw = np.random.default_rng(seed).random()
    token = choose(scores, temperature, top_k, top_p, draw)
    # rounding may move the border of top-p by one token, of which neither probability then matters
    assert expected[token] > 0 or abs(np.sort(expected)[::-1].cumsum()[(expected > 0).sum() - 1] - 1) < 1e-5
    if not top_k and top_p == 1:
        sums = np.cumsum(expected)
        assert sums[token] >= draw - 1e-5 and sums[token] - expected[token] <= draw + 1e-5


def test_greedy_takes_the_first_of_the_best_and_ignores_truncation() -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0], dtype=np.float32)
    assert Sampler(Sampling(top_k=2, top_p=0.1)).pick(scores, [0]) == 1
    assert Sampler(Sampling(repetition_penalty=2.0)).pick(scores, [1]) == 3


def test_a_penalty_counts_each_token_once_and_new_ones_as_they_come() -> None:
    scores = np.array([1.0, 3.0, -1.0, 2.0], dtype=np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0))
    history = [1, 1, 1, 99]
    assert sampler.pick(scores, history) == 3
    history.append(3)
    assert sampler.pick(scores, history) == 1
    assert scores.tolist() == [1.0, 3.0, -1.0, 2.0]


def test_a_seed_and_a_position_make_the_draw() -> None:
    scores, options = logits(500), Sampling(temperature=1.0, seed=7)
    first = [Sampler(options).pick(scores, [0] * n) for n in range(1, 40)]
    one = Sampler(options)
    assert [one.pick(scores, [0] * n) for n in range(1, 40)] == first
    assert len(set(first)) > 10
    other = Sampler(Sampling(temperature=1.0, seed=8))
    assert [other.pick(scores, [0] * n) for n in range(1, 40)] != first


def test_without_a_seed_every_text_is_another() -> None:
    scores = logits(500)
    texts = []
    for _ in range(2):
        sampler = Sampler(Sampling(temperature=1.0))
        texts.append([sampler.pick(scores, [0] * n) for n in range(1, 40)])
    assert texts[0] != texts[1]


@pytest.mark.usefixtures("level")
def test_ties_at_the_borders() -> None:
    scores = np.zeros(8, dtype=np.float32)
    draws = (np.arange(64) + 0.5) / 64
    assert {choose(scores, 1.0, 3, 1.0, u) for u in draws} == set(range(8))  # top-k keeps ties, as its peer does
    assert {choose(scores, 1.0, 0, 0.5, u) for u in draws} == {0, 1, 2, 3}


@pytest.mark.usefixtures("level")
def test_a_token_that_is_ruled_out_is_never_drawn() -> None:
    scores = np.array([-np.inf, 1.0, -np.inf, 0.0], dtype=np.float32)
    assert {choose(scores, 1.0, 0, 1.0, u) for u in (0.0, 0.5, 0.999999)} == {1, 3}
    assert choose(np.array([0.0, -1e30], dtype=np.float32), 1e-6, 0, 1.0, 1 - 2**-53) == 0


@pytest.mark.parametrize("broken", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.usefixtures("level")
def test_broken_logits_are_an_error(broken: list[float], temperature: float) -> None:
    with pytest.raises(NumericalError, match="NaN or infinity"):
        Sampler(Sampling(temperature=temperature)).pick(np.array(broken, dtype=np.float32), [0])


@pytest.mark.usefixtures("level")
def test_every_level_draws_the_same() -> None:
    random = np.random.default_rng(0)
    for trial in range(300):
        size = int(random.integers(1, 5000))
        scores = logits(size, trial, random.uniform(0.01, 10))
        scores = np.round(scores, 1) if trial % 3 == 0 else scores
        top_k = int(random.integers(0, size + 3)) if trial % 2 else 0
        top_p = random.choice([1.0, random.uniform(1e-9, 1), 0.999999])
        settings = (random.uniform(0.05, 3), top_k, top_p, random.choice([0.0, random.random(), 1 - 2**-53]))
        assert choose(scores, *settings) == sampling._choose(scores, *settings)


COLD = [5e-324, 1e-320, 1e-60, 1e-46, 1e-45, 1e-40, 1.2e-38, 1e-37]


@pytest.mark.parametrize("temperature", COLD)
@pytest.mark.usefixtures("level")
def test_a_temperature_too_low_for_fp32_takes_the_best_token(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_k=3, top_p=0.9, seed=1))
    for scores in (logits(200), -np.abs(logits(200)), np.array([-5, -1, -np.inf, -2], dtype=np.float32)):
        assert sampler.pick(scores, [0]) == int(scores.argmax())


@pytest.mark.parametrize("temperature", [1e38, 3.4e38, 1e39, 1e300])
@pytest.mark.usefixtures("level")
def test_a_temperature_too_high_for_fp32_draws_evenly_what_is_not_ruled_out(temperature: float) -> None:
    scores = np.array([1.0, -np.inf, -3.0, 50.0], dtype=np.float32)
    found = {Sampler(Sampling(temperature=temperature, seed=seed)).pick(scores, [0]) for seed in range(60)}
    assert found == {0, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, 1e-60, 1.0])
@pytest.mark.parametrize(
    ("penalty", "best"),
    [(5e-324, 3), (1e-60, 3), (1e-39, 3), (1e-30, 3), (1e30, 1), (1e39, 1), (1e300, 1)],
)
@pytest.mark.usefixtures("level")
def test_a_penalty_beyond_fp32_acts_as_any_large_one(penalty: float, best: int, temperature: float) -> None:
    scores = np.array([-4.0, 2.0, -60.0, 1.0, 0.0], dtype=np.float32)
    options = Sampling(repetition_penalty=penalty, temperature=temperature, top_p=0.5, seed=3)
    assert Sampler(options).pick(scores, [2, 3, 4]) == best


@pytest.mark.usefixtures("level")
def test_more_best_tokens_than_there_are_keep_all() -> None:
    scores = logits(50)
    every = [choose(scores, 1.0, 0, 1.0, draw / 40) for draw in range(40)]
    for top_k in (50, 2**31, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 10**30):
        assert [choose(scores, 1.0, top_k, 1.0, draw / 40) for draw in range(40)] == every


@given(
    st.builds(
        Sampling,
        temperature=st.floats(0, allow_infinity=False),
        top_k=st.integers(0),
        top_p=st.floats(0, 1, exclude_min=True),
        repetition_penalty=st.floats(0, exclude_min=True, allow_infinity=False),
        seed=st.integers(),
    )
)
def test_whatever_is_allowed_draws_a_token(options: Sampling) -> None:
    assert 0 <= Sampler(options).pick(logits(40), [1, 2, 39, 50]) < 40


def test_scores_that_are_not_laid_out_in_a_row() -> None:
    scores = np.stack([logits(50), logits(50, 1)], 1)
    assert choose(scores[:, 0], 1.0, 5, 1.0, 0.7) == choose(logits(50), 1.0, 5, 1.0, 0.7)


def test_the_exponential() -> None:
    x = -np.geomspace(1e-6, 80, 20_000, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(sampling._exp(x) / exact - 1).max() < 2e-7
    assert sampling._exp(np.array([0.0, -np.inf], dtype=np.float32)).tolist() == [
        1.0,
        pytest.approx(0, abs=1e-37),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
        ("stop", "END"),
    ],
)
def test_values_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(LowdimError, match=name):
        Sampling(**{name: value})
