"""Gradients of the loss, streamed block by block, against one backward pass of the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.zoo import ZOO
from tests.prune import tiny
from torch.nn.functional import cross_entropy

from lowdim.core.allocation import LayerInfo
from lowdim.core.errors import NumericalError
from lowdim.core.progress import Silent
from lowdim.data.batch import Batch
from lowdim.models.walk.gradients import loss_gradients
from lowdim.models.walk.inputs import model_inputs
from lowdim.models.walk.opened import open_model
from lowdim.models.walk.stream import Stream


def infos(stream: Stream) -> list[LayerInfo]:
    return [
        LayerInfo(layer.name, index, tuple(layer.shape))
        for index in range(len(stream))
        for layer in stream.describe(index)[0]
    ]


@pytest.mark.parametrize("padding", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", ZOO)
def test_they_are_those_of_one_backward_pass(kind: str, padding: bool) -> None:
    model = tiny.model(kind).eval()
    batch = Batch(**tiny.padded()[0]) if padding else Batch(tiny.tokens())
    stream = Stream(model)
    found = loss_gradients(stream, infos(stream), [batch.rows(0, 2), batch.rows(2, 6)], Silent())
    assert not any(parameter.grad is not None for parameter in model.parameters())

    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    real = (mask[:, 1:] * mask[:, :-1]).bool()
    logits = model(**model_inputs(model, batch)).logits
    cross_entropy(logits[:, :-1][real], batch.input_ids[:, 1:][real]).backward()
    for layer in (layer for index in range(len(stream)) for layer in stream.describe(index)[0]):
        expected = model.get_parameter(layer.parameter).grad
        assert expected is not None
        if expected.dim() == 3:
            expected = expected[int(layer.name.rsplit(".", 2)[1])]
        expected = expected.t() if layer.transposed else expected
        assert torch.allclose(found[layer.name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_model_on_disk_has_those_of_the_model_in_memory(tmp_path: Path) -> None:
    memory, disk = Stream(tiny.model()), open_model(tiny.save(tmp_path / "llama"), compute="float32").stream
    batches = [Batch(tiny.tokens())]
    chosen = infos(memory)[10:]
    one, other = (loss_gradients(stream, chosen, batches, Silent()) for stream in (memory, disk))
    assert list(one) == list(other)
    assert len(one) == len(chosen)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_flags_are_put_back_and_nan_names_the_layer() -> None:
    model = tiny.model()
    model.requires_grad_(False)
    stream = Stream(model)
    loss_gradients(stream, infos(stream), [Batch(tiny.tokens())], Silent())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NumericalError, match=r"with respect to 'model\.layers\.2\..*'wanda'"):
        loss_gradients(stream, infos(stream), [Batch(tiny.tokens())], Silent())
