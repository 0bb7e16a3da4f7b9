"""Encoders: what they are made of, without their weights; with them, what they were seen to say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from lowdim.data.labelled.source import Source
from lowdim.models.encoders.efficientnet import EfficientNetLite0, SameConv, _names, efficientnet_lite0
from lowdim.models.encoders.encode import ENCODERS, Headed, features
from lowdim.models.encoders.minilm import MiniLM, minilm, tokenized


def test_the_network_has_the_layers_and_parameters_of_its_paper() -> None:
    net = EfficientNetLite0()
    assert sum(p.numel() for p in net.parameters()) == 3_371_008  # 4,652,008 without the classifier of 1,000
    names = dict(_names(net))
    assert set(names) == set(net.state_dict()) and len(set(names.values())) == len(names)


@pytest.mark.parametrize("size", [96, 97])
def test_pictures_of_any_size_give_as_many_features(size: int) -> None:
    net = EfficientNetLite0().eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, size, size)).shape == (2, 1280)


def test_odd_padding_goes_to_the_end() -> None:
    layer = SameConv(1, 1, 3, 2, bias=False)
    nn.init.ones_(layer.weight)
    found = layer(torch.ones(1, 1, 4, 4))
    assert found[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]]  # a row and a column of zeros at the end alone


def test_padding_does_not_change_the_features_of_a_text() -> None:
    torch.manual_seed(0)
    inner = BertModel(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32),
        add_pooling_layer=False,
    ).eval()
    net = MiniLM(inner, 16)
    short = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 1, 2, 3]])
    with torch.no_grad():
        assert torch.allclose(net(short)[0], net(padded)[0], atol=1e-6)


def test_features_are_standardised_and_told_of() -> None:
    told: list[int] = []
    found = features(nn.Flatten(), torch.randn(150, 2, 2) * 7 + 3, told.append)
    assert told == [64, 64, 22] and found.shape == (150, 4)
    assert torch.allclose(found.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(found.std(0), torch.ones(4), atol=1e-5)


def test_a_head_depends_on_the_seed_alone() -> None:
    one, two, other = (Headed(nn.Identity(), 4, 2, seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_small_grey_pictures_are_brought_to_what_the_encoder_takes() -> None:
    x = torch.full((3, 1, 28, 28), 255, dtype=torch.uint8)
    source = Source("t", "image", x, torch.tensor([0, 1, 0]), ("a", "b"), ("1", "2", "3"))
    found = ENCODERS["efficientnet-lite0"].inputs(source)
    assert found.shape == (3, 3, 96, 96) and torch.allclose(found, torch.ones(1))


@pytest.mark.nightly
def test_sentences_that_mean_the_same_are_near() -> None:
    x = tokenized(["A man is eating food.", "A man is eating a piece of bread.", "The sky is blue today."])
    with torch.no_grad():
        found = nn.functional.normalize(minilm()(x))
    near, far = float(found[0] @ found[1]), float(found[0] @ found[2])
    assert near == pytest.approx(0.755, abs=0.01) and abs(far) < 0.1


@pytest.mark.nightly
def test_trained_weights_tell_pictures_apart() -> None:
    net = efficientnet_lite0()
    with torch.no_grad():
        found = net((torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 60).clamp(-1, 1))
    assert bool(found.isfinite().all()) and found.shape == (2, 1280) and float((found > 0).float().mean()) > 0.01
