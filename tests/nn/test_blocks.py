from __future__ import annotations

import re

import pytest
import torch
import transformers as t
from tests.models.tiny_configs import tiny_config
from tests.models.zoo import ZOO
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.nn.blocks import evaluating, find_blocks

NAMES = {
    "gpt2": "transformer.h",
    "gpt-neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "falcon": "transformer.h",
    "bloom": "transformer.h",
}


@pytest.mark.parametrize("kind", ZOO)
def test_the_decoder_blocks_of_every_architecture(kind: str) -> None:
    model = ZOO[kind]()
    name, blocks = find_blocks(model)
    assert name == NAMES.get(kind, "model.layers")
    assert model.get_submodule(name) is blocks
    assert len(blocks) == model.config.num_hidden_layers == 3


def linears(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(2, 2) for _ in range(count))


def test_experts_inside_blocks_do_not_count_however_many() -> None:
    layers = nn.ModuleList(nn.ModuleDict({"experts": linears(9)}) for _ in range(2))
    assert find_blocks(nn.ModuleDict({"layers": layers}))[0] == "layers"


def test_lists_of_unlike_modules_do_not_count() -> None:
    mixed = nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)])
    assert find_blocks(nn.ModuleDict({"mixed": mixed, "layers": linears(2)}))[0] == "layers"


VISION = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.mark.parametrize("deeper", [1, 4])
def test_a_vision_tower_is_not_the_decoder_however_deep(deeper: int) -> None:
    config = tiny_config("gemma3_text").to_dict()
    both = t.Gemma3Config(
        text_config=config, vision_config=VISION | {"num_hidden_layers": deeper}, mm_tokens_per_image=4
    )
    name, blocks = find_blocks(t.Gemma3ForConditionalGeneration(both))
    assert name == "model.language_model.layers"
    assert len(blocks) == config["num_hidden_layers"]


@pytest.mark.parametrize("kind", ["jamba", "bamba", "gemma4", "qwen3_5", "phi4_multimodal", "longcat_flash"])
def test_blocks_of_two_classes_and_of_composite_models(kind: str) -> None:
    with torch.device("meta"):
        model = t.AutoModelForCausalLM.from_config(tiny_config(kind))
    name, _ = find_blocks(model)
    assert re.fullmatch(r"model\.(language_model\.)?layers", name)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(LowdimError, match="no decoder blocks found in Sequential"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    model[1].eval()

    def interrupted() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [module.training for module in model.modules()] == [True, True, False, False]
