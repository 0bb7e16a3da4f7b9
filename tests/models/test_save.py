"""What can be saved is saved as it was given; what cannot is refused before a weight is touched."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.prune import tiny
from transformers import PreTrainedModel

from lowdim.core.errors import CheckpointError
from lowdim.models.load import load
from lowdim.prune.api import prune

Change = Callable[[PreTrainedModel], None]


def _generation(**values: Any) -> Change:
    def change(model: PreTrainedModel) -> None:
        for name, value in values.items():
            setattr(model.generation_config, name, value)

    return change


AT_FAULT: dict[str, dict[str, Any]] = {
    "a temperature without sampling": {"do_sample": False, "temperature": 0.9},
    "top_p without sampling": {"do_sample": False, "top_p": 0.5, "top_k": 7},
    "beams that stop early without beams": {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
}


@pytest.mark.parametrize("case", AT_FAULT)
def test_a_generation_config_at_fault_is_written_as_it_was_given(case: str, tmp_path: Path) -> None:
    model, given = tiny.model(), AT_FAULT[case]
    _generation(**given)(model)
    prune(model, tiny.recipe(), calibration=tiny.tokens(), out=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {name: written.get(name) for name in given if name in written} == {
        name: value for name, value in given.items() if name in written
    }
    assert set(given) - written.keys() <= {"do_sample", "num_beams"}  # their defaults
    assert all(getattr(model.generation_config, name) == value for name, value in given.items())
    assert load(tmp_path / "out").generation_config.to_diff_dict().items() >= written.items() - {
        ("transformers_version", written["transformers_version"])
    }


def _unreadable(model: PreTrainedModel) -> None:
    model.config.own = object()


def _sampling_in_the_config(model: PreTrainedModel) -> None:
    model.config.temperature = 0.5


@pytest.mark.parametrize("change", [_unreadable, _sampling_in_the_config])
def test_a_config_that_cannot_be_saved_is_refused_before_anything_is_pruned(change: Change, tmp_path: Path) -> None:
    model = tiny.model()
    change(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"the model's config cannot be saved: .*Mend it first"):
        prune(model, tiny.recipe(), calibration=tiny.tokens(), out=tmp_path / "out")
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"), ("layers.0.mlp.up_proj", "layers.1.mlp.up_proj")],
)
def test_so_are_layers_that_share_a_weight_without_a_word(one: str, other: str, tmp_path: Path) -> None:
    model = tiny.model()
    model.model.get_submodule(other).weight = model.model.get_submodule(one).weight
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"are one weight, and nothing in LlamaForCausalLM says so"):
        prune(model, tiny.recipe(method="magnitude"), out=tmp_path / "out")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []
    assert prune(model, tiny.recipe(method="magnitude")).sparsity > 0.59


class NoTokenizer:
    def save_pretrained(self, place: Path) -> None:
        raise ValueError("there is nothing to save")


def test_so_is_a_tokenizer(tmp_path: Path) -> None:
    model = tiny.model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"the model's tokenizer cannot be saved: there is nothing to save"):
        prune(model, tiny.recipe(), calibration=tiny.tokens(), tokenizer=NoTokenizer(), out=tmp_path / "out")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_memory_that_fails_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token"):
        prune(tiny.model(), tiny.recipe(), calibration=["text"], out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert prune(tiny.model(), tiny.recipe(), calibration=tiny.tokens(), out=tmp_path / "out").sparsity > 0.6
