from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from tests.models.every_causal_lm import build
from tests.models.zoo import ZOO
from transformers.cache_utils import Cache

from lowdim.data.batch import Batch
from lowdim.models.walk.inputs import joined, model_inputs, unpadded
from lowdim.models.walk.stream import Stream

IDS = torch.tensor([[7, 5, 6]])


@pytest.mark.parametrize("kind", ZOO)
def test_no_cache_is_asked_for_and_nothing_that_the_model_does_not_take(kind: str) -> None:
    model = ZOO[kind]()
    given = model_inputs(model, Batch(IDS, torch.tensor([[0, 1, 1]])))
    assert given["use_cache"] is False
    assert torch.equal(given["input_ids"], IDS)
    assert torch.equal(given["attention_mask"], torch.tensor([[0, 1, 1]]))
    model(**given)


def test_a_cache_is_refused_where_kwargs_alone_take_the_word(tmp_path: Path) -> None:
    model = build("granitemoe", tmp_path)
    assert "use_cache" not in inspect.signature(model.forward).parameters
    assert model_inputs(model, Batch(IDS))["use_cache"] is False
    [made] = Stream(model).capture([Batch(IDS)])
    given = [value for args, kwargs in made.calls for value in (*args, *kwargs.values())]
    assert not any(isinstance(value, Cache) for value in given)


def test_parts_without_padding_come_back_to_their_places() -> None:
    padded = Batch(torch.arange(12).view(3, 4), torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]]))
    whole = Batch(torch.arange(12, 20).view(2, 4))
    parts = [part for batch in (padded, whole) for _, part in unpadded(batch)]
    assert [part.input_ids.tolist() for part in parts] == [
        [[1, 2], [10, 11]],
        [[4, 5, 6, 7]],
        [[12, 13, 14, 15], [16, 17, 18, 19]],
    ]
    first, second = joined([padded, whole], iter([part.input_ids[..., None] for part in parts]))
    assert first[..., 0].tolist() == [[0, 1, 2, 0], [4, 5, 6, 7], [0, 0, 10, 11]]
    assert torch.equal(second[..., 0], whole.input_ids)


def test_without_padding_there_is_no_mask_and_there_are_no_positions() -> None:
    assert sorted(model_inputs(ZOO["llama"](), Batch(IDS))) == ["input_ids", "use_cache"]


def test_positions_of_real_tokens_count_from_zero() -> None:
    batch = Batch(IDS.repeat(3, 1), torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1]]))
    positions = model_inputs(ZOO["llama"](), batch)["position_ids"]
    assert positions.tolist() == [[0, 0, 1], [0, 1, 1], [0, 1, 2]]
