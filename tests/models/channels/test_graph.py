"""Which channels can go, found by what networks do with them."""

import pytest
import torch
from tests.models.channels.nets import Attention, images, net, randomised
from torch import nn
from torch.nn import functional as F

from lowdim.core.errors import LowdimError
from lowdim.train import find_channels


def parts(found, name):
    producer = next(p for p in found.producers if p.name == name)
    return {s.name for s in producer.carriers}, {s.name for s in producer.readers}


def names(found):
    return {p.name for p in found.producers}


class Code(nn.Module):
    """Two layers with some code in between."""

    def __init__(self, code, inner, outer, **parts):
        super().__init__()
        self.inner, self.outer, self.code = inner, outer, code
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.outer(self.code(self, self.inner(x)))


def why(code, inner, outer, x, **parts):
    found = find_channels(Code(code, inner, outer, **parts), x)
    return found.whole.get("inner", "")


def test_a_chain_of_convolutions_norms_and_a_flatten():
    found = find_channels(net("vgg"), images())
    assert {p.name: p.channels for p in found.producers} == {"0": 8, "3": 12, "7": 12, "11": 16}
    assert parts(found, "3") == ({"4"}, {"7"})
    assert found.whole == {"13": "its channels are part of the model's output"}
    flat = next(p for p in found.producers if p.name == "7").readers[0]
    assert flat.source.tolist() == [channel for channel in range(12) for _ in range(4)]


def test_channels_of_a_residual_sum_stay():
    found = find_channels(net("resnet"), images())
    assert names(found) == {"blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"}
    assert parts(found, "blocks.1.conv1") == ({"blocks.1.bn1"}, {"blocks.1.conv2"})
    assert "stem" in found.whole["blocks.0.conv2"]
    assert "blocks.1.short" in found.whole["blocks.1.conv2"]


def test_concatenated_channels_keep_apart_and_depth_wise_ones_are_carried():
    found = find_channels(net("joined"), images())
    assert names(found) == {"a", "b", "c", "up"}
    assert parts(found, "a") == ({"depth", "norm", "act"}, {"b", "c"})
    assert parts(found, "b") == ({"depth", "norm", "act"}, {"c"})
    reader = next(p for p in found.producers if p.name == "b").readers[0]
    assert reader.source.tolist() == [-1] * 4 + [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_and_gates_stay_and_the_plain_feed_forward_goes(heads):
    found = find_channels(randomised(lambda: Attention(heads)), torch.randn(2, 5, 8))
    assert names(found) == {"wide"}
    assert set(found.whole) == {"q", "k", "v", "o", "gate", "up", "down", "narrow", "head"}


def test_torch_transformer_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = find_channels(nn.Sequential(layer, nn.Linear(8, 2)), torch.randn(2, 5, 8))
    assert names(found) == {"0.linear1"}
    assert found.whole["0.self_attn.out_proj"] == "it is not called on the example"


CONV = {"inner": nn.Conv2d(1, 4, 3, padding=1), "outer": nn.Conv2d(4, 2, 1), "x": images()}
LINEAR = {"inner": nn.Linear(3, 4), "outer": nn.Linear(4, 2), "x": torch.randn(5, 3)}


def test_norms_over_several_channels_keep_them():
    assert "holds" in why(lambda m, x: m.norm(x), **LINEAR, norm=nn.LayerNorm(4))
    assert "holds" in why(lambda m, x: m.norm(x), **CONV, norm=nn.GroupNorm(2, 4))
    assert "mixed" in why(lambda m, x: F.layer_norm(x, (4,)), **LINEAR)
    assert why(lambda m, x: m.norm(x), **CONV, norm=nn.GroupNorm(4, 4)) == ""
    assert why(lambda m, x: m.norm(x), **CONV, norm=nn.InstanceNorm2d(4, affine=True)) == ""


def test_parameters_of_unknown_layers_keep_channels():
    scale = nn.Parameter(torch.ones(4))
    assert "the model holds" in why(lambda m, x: x * m.scale, **LINEAR, scale=scale)


def test_grouped_convolutions_stay_whole():
    found = find_channels(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), images())
    assert names(found) == set()
    assert "groups" in found.whole["1"]


def test_code_that_counts_on_sizes_keeps_channels():
    flat = nn.Linear(256, 2)
    assert why(lambda m, x: x.flatten(1), CONV["inner"], flat, images()) == ""
    assert "fewer channels" in why(lambda m, x: x.view(-1, 256), CONV["inner"], flat, images())
    assert "fewer channels" in why(lambda m, x: torch.cat(x.chunk(2, -1)[::-1], -1), **LINEAR)
    assert "fewer channels" in why(lambda m, x: x + torch.ones(4), **LINEAR)


def test_mixed_channels_stay():
    assert "mixed" in why(lambda m, x: F.glu(x), nn.Linear(3, 4), nn.Linear(2, 2), torch.randn(5, 3))
    assert "mixed" in why(lambda m, x: F.pixel_shuffle(x, 2), CONV["inner"], nn.Conv2d(1, 2, 1), images())
    assert "mixed" in why(lambda m, x: x.cumsum(-1), **LINEAR)


def test_permuted_channels_are_followed():
    found = find_channels(Code(lambda m, x: x.flip(-1), **{k: LINEAR[k] for k in ("inner", "outer")}), LINEAR["x"])
    assert found.producers[0].readers[0].source.tolist() == [3, 2, 1, 0]


def test_tied_unused_and_computed_weights_stay():
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    assert (
        find_channels(nn.Sequential(shared, tied, nn.Linear(4, 2)), torch.ones(1, 4)).whole["0"] == "its weight is tied"
    )
    unused = Code(lambda m, x: x, nn.Linear(3, 4), nn.Linear(4, 2), other=nn.Linear(4, 4))
    assert find_channels(unused, torch.ones(1, 3)).whole["other"] == "it is not called on the example"
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    assert "computed" in find_channels(nn.Sequential(computed, nn.Linear(4, 2)), torch.ones(1, 3)).whole["0"]


def test_channels_that_also_leave_the_model_stay():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, scale=1.0):
            a = self.a(x) * scale
            return {"out": self.b(a), "hidden": [a]}

    found = find_channels(Both(), {"x": torch.ones(2, 3), "scale": 2.0})
    assert found.whole["a"] == "its channels are part of the model's output"
    assert names(find_channels(Both(), (torch.ones(2, 3), 2.0))) == set()


def test_zeros_hide_nothing_and_the_model_is_left_as_it_was():
    model = net("vgg").train()
    plain = find_channels(model, images())
    for parameter in model.parameters():
        parameter.data.zero_()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    found = find_channels(nn.Sequential(nn.Dropout(0.5), model), images())
    assert names(found) == {f"1.{name}" for name in names(plain)}
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_wrappers_are_looked_through():
    assert names(find_channels(nn.DataParallel(net("mlp")), images())) == {"1", "3"}


def test_models_that_cannot_be_followed_are_refused():
    broken = net("mlp")
    broken[1].weight.data[0, 0] = torch.nan
    with pytest.raises(LowdimError, match="NaN on the example"):
        find_channels(broken, images())
    moody = Code(
        lambda m, x: m.other(x) if x.isnan().any() else x,
        **{k: LINEAR[k] for k in ("inner", "outer")},
        other=nn.Linear(4, 4),
    )
    with pytest.raises(LowdimError, match="calls other layers"):
        find_channels(moody, LINEAR["x"])


def test_the_table_names_every_layer():
    text = str(find_channels(net("resnet"), images()))
    assert "blocks.0.conv1                        8 channels, with their parts in blocks.0.bn1, blocks.0.conv2" in text
    assert "fc                               stays whole: its channels are part of the model's output" in text
