"""The page of a stress, from made-up results."""

from __future__ import annotations

import re

import torch

from lowdim.evaluate.quality.tasks import PRESETS
from lowdim.evaluate.quality.zeroshot import TaskResult
from lowdim.pipeline.stress.result import Point, render
from lowdim.pipeline.stress.settings import Settings
from lowdim.prune.measure import Measured
from lowdim.report.stress import page

EVIL = "<script>alert(1)</script>"


def measured(right: int) -> Measured:
    found = torch.arange(500) < right
    tasks = {name: TaskResult(name, found, found, "hash", "acc", chance=0.25) for name in PRESETS["hard"]}
    return Measured(None, tasks)


def written(*points: tuple[float, int]) -> str:
    made = [Point(share, "pruned", share, measured(right)) for share, right in points]
    return page.render(render(Settings(EVIL), measured(400), made) | {"machine": {"cpu": "a processor"}})


def test_the_page_shows_intervals_tests_and_states() -> None:
    text = written((0.0, 400), (0.2, 395), (0.5, 300))
    for words in ("76.3 to 83.3", "+20.0", "too few questions", "lost", "Newcombe", "<svg", "commonsense"):
        assert words in text, words
    assert EVIL not in text


def test_the_word_is_on_the_page_only_where_all_of_it_holds() -> None:
    assert not re.search("lossless", written((0.0, 400), (0.5, 300)), re.IGNORECASE)
    assert re.search("lossless", written((0.0, 400), (0.05, 400), (0.5, 300)), re.IGNORECASE)
