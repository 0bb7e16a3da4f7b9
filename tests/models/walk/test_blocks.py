from __future__ import annotations

import pytest
from tests.models.zoo import ZOO
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.models.walk.blocks import evaluating, find_blocks

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
