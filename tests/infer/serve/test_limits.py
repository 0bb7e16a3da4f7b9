from __future__ import annotations

from typing import Any

import pytest
from tests.infer.serve.served import NAME, Paced

from lowdim.core.errors import RecipeError
from lowdim.infer.serve.limits import Limits
from lowdim.infer.serve.service import Service


@pytest.mark.parametrize(
    ("limit", "value", "flag"),
    [
        ("concurrent", 0, "--max-concurrent"),
        ("queue", -1, "--queue"),
        ("max_tokens", 0, "--max-tokens"),
        ("context", 1, "--context"),
        ("timeout", 0.0, "--timeout"),
        ("timeout", float("inf"), "--timeout"),
        ("timeout", float("nan"), "--timeout"),
        ("grace", -1.0, "grace"),
        ("body", 0, "body"),
    ],
)
def test_a_limit_out_of_bounds_is_refused_by_its_flag(limit: str, value: Any, flag: str) -> None:
    with pytest.raises(RecipeError, match=flag):
        Limits(**{limit: value})


def test_more_context_than_the_model_holds_is_refused(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="--context is 129, but the model holds 128"):
        Service(NAME, Paced(tiny), tokenizer, Limits(context=129))
