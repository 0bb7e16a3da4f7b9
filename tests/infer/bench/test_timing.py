"""Turns are taken in order, on distinct memory, and medians are of them."""

from __future__ import annotations

import torch

from lowdim.infer.bench import timing


def test_contestants_take_turns_and_pass_through_all_their_copies():
    log = []
    calls = {name: [lambda n=name, i=i: log.append((n, i)) for i in range(3)] for name in "ab"}
    timing.interleaved(calls, rounds=2)
    warmed = [(name, i) for name in "ab" for i in range(3)]
    assert log[:6] == warmed
    assert [name for name, _ in log[6:]] == ["a"] * 3 + ["b"] * 3 + ["a"] * 3 + ["b"] * 3
    assert {i for _, i in log[6:]} == {0, 1, 2}


def test_a_slow_contestant_makes_few_calls_per_turn(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    count = []
    timing.interleaved({"slow": [lambda: count.append(1)] * 5}, rounds=4)
    assert len(count) == 5 + 4


def test_the_median_is_taken(monkeypatch):
    gaps = iter([0.0, 1.0] + [v for gap in (1.0, 1.0, 9.0) for v in (0.0, gap)])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(gaps))
    assert timing.interleaved({"x": [lambda: None]}, rounds=3) == {"x": 1.0}


def test_rounds_end_with_the_time_but_for_the_fewest():
    calls = []
    timing.interleaved({"x": [lambda: calls.append(1)]}, rounds=15, seconds=0)
    assert len(calls) == 1 + timing.FEWEST
    timing.interleaved({"x": [lambda: calls.append(1)]}, rounds=15, seconds=60)
    assert len(calls) == 1 + timing.FEWEST + 1 + 15


def test_parts_of_a_deadline_end_one_after_the_other():
    deadline = timing.Deadline(100)
    assert 24 < deadline.left(0.25) <= 25
    assert 99 < deadline.left() <= 100
    assert timing.Deadline(-1).left(0.5) == 0


def test_threads_are_put_back_even_after_an_error():
    before = torch.get_num_threads()
    try:
        with timing.threads(before + 1) as count:
            assert count == torch.get_num_threads() == before + 1
            raise KeyError
    except KeyError:
        pass
    assert torch.get_num_threads() == before
    with timing.threads(None) as count:
        assert count == before
