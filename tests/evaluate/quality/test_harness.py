"""The bridge to the evaluation harness, with a stub in its place."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.quality.harness import run_harness


def test_a_missing_harness_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EvaluationError, match=r"pip install 'lowdim\[eval\]'"):
        run_harness(None, None, ["arc_easy"])  # type: ignore[arg-type]


def test_a_harness_that_lacks_something_else_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "lm_eval":
                raise ModuleNotFoundError("No module named 'jsonlines'", name="jsonlines")

    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="jsonlines"):
        run_harness(None, None, ["arc_easy"])  # type: ignore[arg-type]


def test_the_model_is_handed_over_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    harness, models, huggingface = (ModuleType(n) for n in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface"))
    huggingface.HFLM = lambda **options: options  # type: ignore[attr-defined]

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        asked.update(options)
        return {"results": {"arc_easy": {"acc,none": 0.5}}}

    harness.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    for module in (harness, models, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    model: Any = object()
    assert run_harness(model, "tokenizer", ("arc_easy",), limit=3) == {"arc_easy": {"acc,none": 0.5}}
    assert asked["model"]["pretrained"] is model
    assert (asked["tasks"], asked["limit"]) == (["arc_easy"], 3)
