"""Wrapping models: order, modes, padding and checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowdim.data.batch import Batch
from lowdim.data.errors import DataError
from lowdim.data.tokens import pad
from lowdim.evaluate.quality.forward import as_forward, of_model

ROWS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit_of_a_token(model: Any, side: str) -> None:
    padded = Batch(*pad(ROWS, 9, side, fill=1))
    (together,) = of_model(model)([padded])
    alone = of_model(model)([Batch(torch.tensor([row])) for row in ROWS])
    for i, logits in enumerate(alone):
        assert padded.attention_mask is not None
        own = together[i][padded.attention_mask[i].bool()]
        torch.testing.assert_close(own, logits[0], rtol=1e-5, atol=1e-5)


def test_batches_come_in_order_and_one_at_a_time(llama: Any) -> None:
    seen: list[int] = []
    hook = llama.register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        walk = of_model(llama)([Batch(torch.full((1, n), 3)) for n in (2, 5, 3)])
        assert next(walk).shape[1] == 2
        assert len(seen) == 1
        assert [logits.shape[1] for logits in walk] == [5, 3]
    finally:
        hook.remove()


def test_modes_come_back_and_gradients_stay_on(llama: Any) -> None:
    llama.train()
    llama.model.norm.eval()
    walk = of_model(llama)([Batch(torch.tensor([[3, 4]]))] * 2)
    logits = next(walk)
    assert not llama.training
    assert not logits.requires_grad
    assert torch.is_grad_enabled()
    walk.close()
    assert llama.training
    assert not llama.model.norm.training


def test_what_the_model_cannot_take_is_refused(llama: Any) -> None:
    with pytest.raises(DataError, match="token id 99, but the model's embedding has 37 rows"):
        list(of_model(llama)([Batch(torch.tensor([[99]]))]))
    with pytest.raises(DataError, match="context=65 is longer than the model's 64 positions"):
        list(of_model(llama)([Batch(torch.zeros(1, 65, dtype=torch.int64))]))


def test_a_forward_passes_through() -> None:
    def forward(batches: Any) -> Any:
        return iter(())

    assert as_forward(forward) is forward
    assert as_forward(nn.Embedding(2, 2)) is not None
