"""The zeros of a pruned model as its masks, and masks that are not of a model's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks


def net() -> Any:
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[1].weight.data.copy_(torch.tensor([[1.0, 0.0, 2.0, -0.0], [0.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0]]))
    model[3].weight.data.fill_(1.0)
    return model


def test_by_hand() -> None:
    masks = Masks.of(net())
    assert list(masks) == ["1.weight"]  # neither what has no zero nor the padding of the embedding
    assert masks["1.weight"].int().tolist() == [[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    masks.check(net())
    assert Masks.of(torch.compile(net(), backend="eager")) == masks  # type: ignore[arg-type]


@pytest.mark.parametrize(("zeros", "pruned"), [(17, False), (18, True)])
def test_a_hundredth_is_pruned(zeros: int, pruned: bool) -> None:
    layer = nn.Linear(60, 30)
    layer.weight.data.fill_(1.0).view(-1)[:zeros] = 0.0
    if pruned:
        assert Masks.of(layer).kept() == 1800 - zeros
    else:
        with pytest.raises(LowdimError, match="17 of the 1800 weights that pruning might have zeroed are zero"):
            Masks.of(layer)


def test_a_tied_head_is_an_embedding() -> None:
    model = ZOO["llama"]()
    model.lm_head.weight.data[:4] = 0.0
    with pytest.raises(LowdimError, match=r"0 of the .* was not pruned"):
        Masks.of(model)


def test_what_is_not_of_these_weights() -> None:
    model, masks = net(), Masks.of(net())
    model[1].weight.data[0, 1:] = 1.0
    with pytest.raises(LowdimError, match=r"2 of the 3 weights of 1\.weight that the masks switch off are not zero"):
        masks.check(model)
    assert model[1].weight[0, 1] == 1.0
    masks.apply_(model)
    masks.check(model)
    masks.check({"1.weight": model[1].weight})
    with pytest.raises(LowdimError, match=r"no weight is named '1\.weight'"):
        masks.check({})
