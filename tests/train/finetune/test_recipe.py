"""What a recipe of fine-tuning resolves to: settings of optimizers for a model that is trained already."""

from __future__ import annotations

from typing import Any

import pytest

from lowdim.core.errors import RecipeError
from lowdim.train.finetune.recipe import Finetuning
from lowdim.train.optimizers.apollo import APOLLO
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.optimizers.q_galore import QGaLore


def recipe(**values: Any) -> Finetuning:
    return Finetuning(model="builtin:smollm2-135m", data={"source": "rows.jsonl"}, **values)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("galore", GaLore(lr=3e-5, rank=8, scale=4.0, gap=500)),
        ({"name": "galore", "rank": 4, "lr": 1e-5}, GaLore(lr=1e-5, rank=4, scale=4.0, gap=500)),
        ({"name": "galore", "scale": 0.25}, GaLore(lr=3e-5, rank=8, scale=0.25, gap=500)),
        ("q-galore", QGaLore(lr=3e-5, rank=8, scale=4.0, gap=500)),
        ({"name": "q-galore", "gap": 200}, QGaLore(lr=3e-5, rank=8, scale=4.0, gap=200)),
        ("apollo", APOLLO(lr=3e-4, rank=32, scale=5.0)),
        ({"name": "apollo", "scale": 1.0}, APOLLO(lr=3e-4, rank=32, scale=1.0)),
        ({"name": "apollo", "channels": "tensor"}, APOLLO(lr=3e-4, rank=1, scale=128.0, channels="tensor")),
        (GaLore(), GaLore()),
    ],
    ids=str,
)
def test_settings_that_are_not_given_are_those_for_fine_tuning(given: Any, wanted: Any) -> None:
    for found in (recipe(optimizer=given), recipe(optimizer=given, method="full")):
        assert found.optimizer == wanted
        again = Finetuning.from_yaml(found.to_yaml())
        assert again == found and again.fingerprint() == found.fingerprint()


def test_those_of_a_command_line_win_too() -> None:
    first = {"model": "builtin:smollm2-135m", "data.source": "rows.jsonl", "method": "full"}
    found = Finetuning.laid_over({}, first, ["optimizer=apollo", "optimizer.rank=4"])
    assert found.optimizer == APOLLO(lr=3e-4, rank=4, scale=5.0)


def test_others_are_as_ever_and_unknown_ones_refused() -> None:
    assert recipe(optimizer="adamw").optimizer == recipe(optimizer={"name": "adamw"}).optimizer
    assert recipe(method="full").optimizer.lr == 2e-5
    for wrong in ("galor", {"name": "galor"}, {"name": ["galore"]}, {"rank": 4}, 7):
        with pytest.raises(RecipeError, match="optimizer"):
            recipe(optimizer=wrong)
