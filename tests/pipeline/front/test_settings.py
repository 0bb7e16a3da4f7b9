from __future__ import annotations

from typing import Any

import pytest

from lowdim.core.errors import LowdimError
from lowdim.pipeline.front.forms import FORMS, choose
from lowdim.pipeline.front.settings import Settings


def test_all_forms_that_can_be_had_by_default() -> None:
    untrained, every = choose((), recover=False), choose((), recover=True)
    assert every == list(FORMS.values())
    assert untrained == [form for form in every if not form.trained]
    assert {form.name for form in every} - {form.name for form in untrained} == {
        *(f"dense-{kind}-trained" for kind in ("bf16", "int8", "int4", "int3")),
        *(f"sparse-{p}-{kind}-recovered" for p in ("50", "60", "8:16", "2:4") for kind in ("bf16", "int8", "int4")),
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"minutes": 3}, "nothing is trained without --recover"),
        ({"minutes": 0, "recover": True}, "--minutes must be a number above 0"),
        ({"minutes": float("nan"), "recover": True}, "--minutes must be a number above 0"),
        ({"budget_mb": -1}, "--budget-mb must be a number above 0"),
        ({"forms": ("dense-in8",)}, "Did you mean 'dense-int8'"),
        ({"forms": ("dense-int8", "dense-int4-trained")}, "Add --recover"),
        ({"forms": ("dense-int4",)}, "--forms leaves out dense-int8"),
        ({"forms": ("source",), "budget_mb": 1}, "nothing that is measured here"),
        ({"tasks": ("piqua",)}, "Did you mean 'piqa'"),
        ({"windows": 0}, "--windows must be at least 1"),
        ({"limit": 5}, "--limit 5 is of tasks, and none are asked"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(LowdimError, match=said):
        Settings("model", **given)
