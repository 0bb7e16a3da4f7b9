"""The search for the decay of pruned weights: what is trained, compared and recommended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.pretrain import small

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.train.pretrain.search import Searched, Tried, search_decay

SETTINGS: dict[str, Any] = {
    "from-scratch": {"name": "sr-ste", "every": 2},
    "steps": 40,
    "schedule": {"warmup": 12},
    "optimizer": {"lr": 3e-2},
}


def test_masks_flip_less_with_more_decay_and_the_one_in_the_middle_is_taken(text: Path) -> None:
    found = search_decay(small.recipe(text, **SETTINGS), [30.0, 0.0, 3.0, 3.0], least=0.3, most=1.2)
    assert (found.steps, found.choices) == (12, 6) and [each.decay for each in found.tried] == [0.0, 3.0, 30.0]
    ratios = [each.ratio for each in found.tried]
    assert ratios[0] > ratios[1] > ratios[2]
    assert all(each.ratio == each.flip_rate / found.flip_rate for each in found.tried)
    inside = [each for each in found.tried if 0.3 <= each.ratio <= 1.2]
    assert inside and found.decay == min(inside, key=lambda each: abs(each.ratio - 0.75)).decay
    none = search_decay(small.recipe(text, **SETTINGS), [0.0], least=0.01, most=0.02)
    assert none.decay is None and none.sentence().endswith("Try decays above 0.")
    assert none.tried[0] == found.tried[0]  # the same warm-up, to the bit


def test_the_dense_warm_up_is_dense_training(text: Path) -> None:
    found = search_decay(small.recipe(text, **SETTINGS), [1.0])
    dense = {key: value for key, value in SETTINGS.items() if key != "from-scratch"}
    from lowdim.train.pretrain.engine import Engine
    from lowdim.train.pretrain.prepare import prepare

    run = Engine().begin(prepare(small.recipe(text, **dense)))
    assert run.loop.run(run.batches.between(0, 12)) == found.loss
    assert found.tried[0].loss != found.loss


def test_what_is_recommended_in_words() -> None:
    tried = (Tried(1e-4, 0.2, 1.1, 3.0), Tried(1e-3, 0.1, 0.7, 3.0), Tried(1e-2, 0.05, 0.2, 3.0))
    one = Searched(10, 5, 0.2, 3.0, 0.6, 0.95, tried, 1e-3)
    assert one.sentence().startswith("from-scratch.decay=0.001: its masks flip 0.70 times as often")
    for some, where in ((tried[::2], "between those tried"), (tried[:1], "above 0.0001"), (tried[2:], "below 0.01")):
        none = Searched(10, 5, 0.2, 3.0, 0.6, 0.95, some, None)
        assert none.sentence().endswith(f"Try decays {where}.") and "0.6 and 0.95" in none.sentence()


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({"from-scratch": None}, {}, "one of from-scratch, which is not set"),
        ({"from-scratch": "step"}, {}, "lets masks wait"),
        ({}, {"decays": []}, "give a decay to try"),
        ({}, {"decays": [-1.0]}, "decays must be at least 0"),
        ({}, {"decays": [float("inf")]}, "decays must be at least 0 and below inf"),
        ({}, {"least": 0.9, "most": 0.5}, "least below most"),
        ({}, {"steps": 3}, "a warm-up of 3 steps is to hold two choices of masks, one every 2 steps"),
        ({}, {"steps": 41}, "no longer than the run's 40"),
        ({"schedule": {"warmup": 0}}, {}, "a warm-up of 0 steps"),
        ({"optimizer": {"lr": 1e-12}}, {}, "no mask would flip in a dense warm-up of 12 steps"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused(
    settings: dict[str, Any], arguments: dict[str, Any], said: str, text: Path
) -> None:
    with pytest.raises(LowdimError if "mask would" in said else RecipeError, match=said):
        search_decay(small.recipe(text, **{**SETTINGS, **settings}), **arguments)
