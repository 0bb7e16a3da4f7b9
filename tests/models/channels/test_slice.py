"""A sliced network gives what the network with zeros gives."""

import copy

import pytest
import torch
from tests.models.channels.nets import NETS, images, net
from tests.train.small import sgd, train
from torch import nn

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.models.channels.cut import clear, each_part, each_read
from lowdim.train import SparseTraining, Static, find_channels, slice_channels


def some(model, seed=0):
    """Return about a third of the channels of each layer that can be cut."""
    source = torch.Generator().manual_seed(seed)
    known = find_channels(model, images())
    return known, {p.name: torch.rand(p.channels, generator=source) < 0.35 for p in known.producers}


def outputs(model):
    with torch.no_grad():
        return model.eval()(images(5, seed=1))


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("touch", [each_part, each_read], ids=["filter mask", "readers alone"])
def test_sliced_equals_masked(kind, touch):
    model = net(kind)
    known, removed = some(model)
    for producer in known.producers:
        touch(model, producer, removed[producer.name], clear)
    sliced = slice_channels(model, images())
    for producer in known.producers:
        left = producer.channels - int(removed[producer.name].sum())
        assert sliced.channels[producer.name] == (producer.channels, left)
    assert sliced.parameters[1] < sliced.parameters[0] == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(outputs(sliced.model), outputs(model), rtol=1e-5, atol=1e-5)
    assert float(outputs(model).std()) > 1e-3  # otherwise it proves nothing


@pytest.mark.parametrize("kind", NETS)
def test_named_channels_are_cut_as_if_nobody_read_them(kind):
    model = net(kind)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    known, removed = some(model)
    sliced = slice_channels(model, images(), removed=removed)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert float((outputs(sliced.model) - outputs(model)).abs().max()) > 1e-3  # they were read
    for producer in known.producers:
        each_read(model, producer, removed[producer.name], clear)
    torch.testing.assert_close(outputs(sliced.model), outputs(model), rtol=1e-5, atol=1e-5)


def test_a_filter_of_zeros_is_not_enough():
    """The norm's shift and the sigmoid's half still reach the next layer: channel 0 must stay."""
    model = net("vgg")
    with torch.no_grad():
        for parameter in (model[7].weight, model[7].bias):
            parameter[0] = 0
    sliced = slice_channels(model, images())
    assert sliced.channels["7"] == (12, 12)
    assert float(outputs(model).std()) > 1e-3
    torch.testing.assert_close(outputs(sliced.model), outputs(model))


def test_channels_that_only_unread_channels_read_go_too():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[4].weight[:, 1:] = 0  # the last layer reads channel 0
        model[2].weight[0, 2:] = 0  # which reads channels 0 and 1
    assert slice_channels(model, torch.ones(1, 2)).channels == {"0": (4, 2), "2": (3, 1)}
    with torch.no_grad():
        model[4].weight.zero_()
    assert slice_channels(model, torch.ones(1, 2)).channels["2"] == (3, 1)  # one stays


def test_counts_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    removed = {"0": torch.tensor([True, False, False, True])}
    sliced = slice_channels(model, torch.ones(1, 1, 4, 4), removed=removed)
    assert sliced.parameters == (40 + 10 + 27, 20 + 6 + 27)
    assert sliced.flops == (2 * (4 * 36 + 4 * 8 + 24), 2 * (4 * 18 + 4 * 4 + 24))
    assert "0                                     4 ->      2 channels" in str(sliced)
    assert "FLOPs                 400 ->          224 (56.0%)" in str(sliced)
    assert (sliced.model[0].out_channels, sliced.model[2].in_channels) == (2, 2)


def test_flops_of_depth_wise_and_transposed_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ConvTranspose2d(3, 2, 2, stride=2))
    sliced = slice_channels(model, torch.ones(1, 3, 4, 4))
    assert sliced.flops == (2 * (3 * 9 * 4 + 4 * 3 * 2 * 4),) * 2


def test_masks_are_cut_alike_and_training_goes_on():
    model = net("vgg")
    known, removed = some(model)
    cleared = copy.deepcopy(model)
    for producer in known.producers:
        each_part(cleared, producer, removed[producer.name], clear)
    masks = {n: (torch.rand(p.shape) < 0.5) & (p != 0) for n, p in cleared.named_parameters() if p.ndim > 1}
    training = SparseTraining(model, sgd(model), method=Static(), masks=masks)
    train(model, training.optimizer, range(3))
    sliced = slice_channels(model, images(), masks=training.masks)
    assert sliced.channels["3"] == (12, 12 - int(removed["3"].sum()))
    again = SparseTraining(sliced.model, sgd(sliced.model), method=Static(), masks=sliced.masks)
    torch.testing.assert_close(outputs(sliced.model), outputs(model), rtol=1e-5, atol=1e-5)
    assert all((again.masks[name] | (p == 0)).all() for name, p in sliced.model.named_parameters() if p.ndim > 1)
    train(sliced.model.train(), again.optimizer, range(3))
    assert sum(mask.sum() for mask in again.masks.values()) <= sum(m.sum() for m in training.masks.values())


def test_a_weight_that_a_mask_keeps_counts_as_read_even_at_zero():
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    model[1].weight.data[:, :2] = 0
    mask = torch.tensor([[True, False, True, True]])
    assert slice_channels(model, torch.ones(1, 2)).channels["0"] == (4, 2)
    sliced = slice_channels(model, torch.ones(1, 2), masks={"1.weight": mask})
    assert sliced.channels["0"] == (4, 3)
    assert sliced.masks["1.weight"].tolist() == [[True, True, True]]


def test_the_copy_shares_nothing_and_keeps_the_mode():
    model = net("mlp").train()
    sliced = slice_channels(model, images())
    assert sliced.model.training
    assert sliced.channels["1"] == (24, 24)
    with torch.no_grad():
        for parameter in sliced.model.parameters():
            parameter.add_(1)
    assert not torch.equal(model[1].weight, sliced.model[1].weight)


def test_dtypes_and_frozen_parameters_stay():
    model = net("vgg").double()
    model[3].weight.requires_grad_(False)
    sliced = slice_channels(model, images().double(), removed={"3": torch.arange(12) < 3})
    assert sliced.model[3].weight.dtype == torch.float64
    assert not sliced.model[3].weight.requires_grad
    assert sliced.difference < 1e-10


def test_half_precision_is_compared_in_single():
    model = net("vgg").bfloat16()
    sliced = slice_channels(model, images().bfloat16(), removed={"7": torch.arange(12) < 5})
    assert sliced.model[7].weight.dtype == torch.bfloat16
    assert sliced.difference < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert slice_channels(net("vgg"), images(), removed=sliced.removed).difference < 1e-5


def test_bad_requests_are_refused():
    model = net("resnet")
    for removed, message in (
        ({"stem": torch.zeros(8).bool()}, "stays whole: its channels and those of"),
        ({"blocks.0.conv9": torch.zeros(8).bool()}, "cannot be cut"),
        ({"blocks.0.conv1": torch.zeros(7).bool()}, r"must be bool \[8\]"),
        ({"blocks.0.conv1": torch.ones(8).bool()}, "at least one False"),
        ({"blocks.0.conv1": torch.zeros(8)}, "must be bool"),
    ):
        with pytest.raises(RecipeError, match=message):
            slice_channels(model, images(), removed=removed)
    with pytest.raises(RecipeError, match="the model lacks"):
        slice_channels(model, images(), masks={"stem.wait": torch.ones(8, 1, 3, 3).bool()})
    with pytest.raises(RecipeError, match="has shape"):
        slice_channels(model, images(), masks={"stem.weight": torch.ones(8).bool()})


def test_a_model_that_breaks_when_more_is_cut_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 6), nn.Linear(6, 2)

        def forward(self, x):
            y = self.a(x)
            return self.b(y) + (1.0 if y.shape[1] == 2 else 0.0)

    removed = {"a": torch.arange(6) > 1}
    with pytest.raises(LowdimError, match="differs from the masked one's"):
        slice_channels(Counting(), torch.ones(1, 2), removed=removed)
