"""The verdict on a model, from its config alone, is what a run says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tests.models.every_causal_lm import build, recipe, tokens
from tests.models.tiny_configs import tiny_config

from lowdim.core.errors import LowdimError
from lowdim.core.score.base import GRADIENT
from lowdim.evaluate.inspect import inspect
from lowdim.models.walk.support import verdict
from lowdim.prune.api import plan, prune
from lowdim.prune.recipe import Recipe
from lowdim.prune.session import open_session

REFUSED = {"zamba": "blocks 1 and 3 share the weight", "hrm_text": "calls block 0 more than once"}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for a hub that holds configs, and record what is asked of it."""
    made: list[Any] = []

    def download(spec: str, allow_patterns: Any, **options: Any) -> str:
        made.append(allow_patterns)
        path = tmp_path / spec.partition("/")[2]
        tiny_config(path.name).save_pretrained(path)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return made


def test_the_config_is_enough(fetched: list[Any]) -> None:
    assert verdict("org/llama") == "supported"
    for kind, why in REFUSED.items():
        assert verdict(f"org/{kind}").startswith("refused: ")
        assert why in verdict(f"org/{kind}")
    assert verdict("org/bert").startswith("refused: 'org/bert' is not a causal language model (model_type 'bert')")
    assert all("model.safetensors" not in patterns and "*.safetensors" not in patterns for patterns in fetched)


def test_inspect_refuses_before_weights_are_fetched(fetched: list[Any]) -> None:
    with pytest.raises(LowdimError, match=REFUSED["hrm_text"]):
        inspect("org/hrm_text", calibration=torch.stack([ids[:9] for ids in tokens()]))
    assert all("*.safetensors" not in patterns for patterns in fetched)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_gives_the_same_reason_before_it_looks_at_data(kind: str, tmp_path: Path) -> None:
    build(kind, tmp_path / "in")
    said = verdict(str(tmp_path / "in")).removeprefix("refused: ")
    assert REFUSED[kind] in said
    with pytest.raises(LowdimError) as planned:
        plan(str(tmp_path / "in"), recipe())
    with pytest.raises(LowdimError) as run:
        prune(str(tmp_path / "in"), recipe(), calibration=object(), out=tmp_path / "out")  # type: ignore[arg-type]
    assert str(planned.value) == str(run.value) == said


def test_what_looks_at_weights_alone_needs_no_walk(tmp_path: Path) -> None:
    build("hrm_text", tmp_path / "in")
    magnitude = Recipe(sparsity=0.5, score="magnitude", evaluation={"text": None})
    made = prune(str(tmp_path / "in"), magnitude, out=tmp_path / "out")
    assert made.sparsity == pytest.approx(0.5, abs=0.01)
    found = inspect(str(tmp_path / "in"), alpha=False)
    assert found.support.startswith("refused: HrmTextForCausalLM cannot be walked")
    assert found.support in found.summary()
    assert found.to_dict()["support"] == found.support


def test_gradients_through_blocks_that_hand_each_other_more_are_refused(tmp_path: Path) -> None:
    build("zaya", tmp_path / "in")
    taylor = recipe().model_copy(update={"score": Recipe(sparsity=0.5, score="taylor").score})
    assert GRADIENT in taylor.needs
    with pytest.raises(LowdimError, match=r"score='taylor' needs gradients.*hand each other more"):
        open_session(str(tmp_path / "in"), taylor)
    shutil.rmtree(tmp_path / "in")
    build("llama", tmp_path / "in")
    assert open_session(str(tmp_path / "in"), taylor).layers


@pytest.mark.parametrize(("kind", "why"), REFUSED.items())
def test_a_model_in_memory_is_judged_too(kind: str, why: str, tmp_path: Path) -> None:
    model = build(kind, tmp_path / "in")
    found = inspect(model, calibration=None, alpha=False)
    assert found.support.startswith("refused: ")
    assert why in found.support
    with pytest.raises(LowdimError, match=why):
        inspect(model, calibration=torch.stack([ids[:9] for ids in tokens()]), alpha=False)
