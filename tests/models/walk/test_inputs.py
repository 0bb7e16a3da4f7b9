from __future__ import annotations

import pytest
import torch
from tests.models.zoo import ZOO

from lowdim.data.batch import Batch
from lowdim.models.walk.inputs import model_inputs

IDS = torch.tensor([[7, 5, 6]])


@pytest.mark.parametrize("kind", ZOO)
def test_no_cache_is_asked_for_and_nothing_that_the_model_does_not_take(kind: str) -> None:
    model = ZOO[kind]()
    given = model_inputs(model, Batch(IDS, torch.tensor([[0, 1, 1]])))
    assert given["use_cache"] is False
    assert torch.equal(given["input_ids"], IDS)
    assert torch.equal(given["attention_mask"], torch.tensor([[0, 1, 1]]))
    model(**given)


def test_without_padding_there_is_no_mask_and_there_are_no_positions() -> None:
    assert sorted(model_inputs(ZOO["llama"](), Batch(IDS))) == ["input_ids", "use_cache"]


def test_positions_of_real_tokens_count_from_zero() -> None:
    batch = Batch(IDS.repeat(3, 1), torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1]]))
    positions = model_inputs(ZOO["llama"](), batch)["position_ids"]
    assert positions.tolist() == [[0, 0, 1], [0, 1, 1], [0, 1, 2]]
