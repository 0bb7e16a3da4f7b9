"""Chase: the soft bound, the removal of channels, and the network that is left."""

import math
from itertools import combinations

import pytest
import torch
from tests.models.channels.nets import images, net
from tests.train.small import batch, mlp, one_row, sgd, train
from torch import nn
from torch.nn import functional as F

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.models.channels.cut import each_part
from lowdim.train import Chase, SparseTraining, Static, slice_channels
from lowdim.train.dynamic.chase_channels import Removal, filter_means, filter_shares

SHORT = {"every": 4, "channel_every": 8, "beta": 0.2}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


def chased(kind, steps=48, optimizer="sgd", sparsity=0.85, run=None, **settings):
    """Train a network with Chase; return it with its training."""
    model = net(kind)
    made = OPTIMIZERS[optimizer](model.parameters())
    training = SparseTraining(model, made, sparsity=sparsity, method=Chase(**(SHORT | settings)), total_steps=steps)
    train(model, made, range(steps if run is None else run))
    return model, training


def removal(training) -> Removal:
    return training._observers["channels"]


def removed_parts(model, training):
    """Return every parameter with the marks of what belongs to removed channels."""
    found = {}

    def note(module, name, axis, where):
        parameter = module._parameters.get(name)
        if parameter is not None:
            marks = found.setdefault(id(parameter), (parameter, torch.zeros_like(parameter, dtype=torch.bool)))[1]
            marks.movedim(axis, 0)[where] = True

    for name, (producer, _) in removal(training).producers.items():
        each_part(model, producer, removal(training).removed[name], note)
    return list(found.values())


# ---------------------------------------------------------------- schedules


def test_the_soft_bound_falls_along_a_cosine_to_the_target():
    method = Chase(every=10, soft=0.8, extra=0.05)
    bonus = [method.bonus(t, 100) for t in (0, 20, 40, 60, 80, 90)]
    expected = [0.05, 0.025 * (1 + math.cos(math.pi / 4)), 0.025, 0.025 * (1 - math.cos(math.pi / 4)), 0, 0]
    assert bonus == pytest.approx(expected)
    assert Chase(every=30, soft=0.8).bonus(60, 100) == 0  # the last soft update leaves the target, not more


def test_the_share_of_channels_is_cubic_and_reached():
    method = Chase(every=10, channel_every=20, channel_until=0.8, channels=0.4)
    assert method.share(15, 100) == pytest.approx(0.4 * (1 - (1 - 15 / 75) ** 3))
    assert method.share(75, 100) == 0.4
    assert not any(method.removes(t, 100) and t % 10 == 0 for t in range(101))


def test_the_official_clock():
    """CIFAR-100, VGG-19: dT = 8000 with updates every 1000 of 80000 steps."""
    method = Chase(channel_every=8000)
    steps = [t for t in range(80001) if method.removes(t, 80000)]
    assert steps == [7500 + 8000 * k for k in range(8)]
    assert [t for t in (500, 999, 1000, 1500) if Chase().due(t, 80000)] == [500, 1000, 1500]


# ---------------------------------------------------------------- which channels go


def filters(rows):
    """Return a sparse layer with given filters."""
    weight = torch.tensor(rows)
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    training = SparseTraining(model, sgd(model), method=Static(), masks={"weight": weight != 0})
    with torch.no_grad():
        model.weight.copy_(weight)
    return training.layers[0]


def test_zeros_count_in_the_mean():
    """The card's example: the second filter goes, although it is denser."""
    layer = filters([[0.0, 0.0, 0.6, 0.0], [0.1, 0.1, 0.1, 0.1]])
    assert filter_means(layer, 0).tolist() == pytest.approx([0.15, 0.1])
    assert filter_means(layer, 0, active=True).tolist() == pytest.approx([0.6, 0.1])
    assert filter_means(layer, 1).tolist() == pytest.approx([0.05, 0.05, 0.35, 0.05])


def test_connections_and_kernels_that_are_not_zero_count():
    weight = torch.zeros(2, 3, 2, 2)  # filter 0: four weights in one kernel, filter 1: three in two
    weight[0, 1], weight[1, 0, 0, 0], weight[1, 2, :, 1] = 0.5, -0.1, 0.2
    for axis, held in ((0, weight), (1, weight.transpose(0, 1).contiguous())):
        kind = nn.Conv2d(3, 2, 2, bias=False) if axis == 0 else nn.ConvTranspose2d(3, 2, 2, bias=False)
        mask = held != 0
        mask[0, 0, 1, 1] = True  # grown, and zero still: it does not count
        training = SparseTraining(kind, sgd(kind), method=Static(), masks={"weight": mask})
        with torch.no_grad():
            kind.weight.copy_(held)
        layer = training.layers[0]
        assert filter_shares(layer, axis, kernels=False).tolist() == pytest.approx([4 / 12, 3 / 12])
        assert filter_shares(layer, axis, kernels=True).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_a_filter_without_weights_ranks_last():
    assert filter_means(filters([[0.0, 0.0], [0.0, -0.1]]), 0, active=True).tolist() == pytest.approx([0.0, 0.1])


def by_hand(first, second):
    """Return the removal of two layers whose filters have given means."""
    model = nn.Sequential(nn.Linear(2, len(first)), nn.Linear(len(first), len(second)), nn.Linear(len(second), 1))
    training = SparseTraining(
        model, sgd(model), sparsity=0.0, method=Chase(**SHORT), total_steps=40, include=["0", "1"]
    )
    with torch.no_grad():
        for layer, means in ((model[0], first), (model[1], second)):
            layer.weight.copy_(torch.tensor(means)[:, None].expand_as(layer.weight))
    model(torch.ones(1, 2))
    return removal(training)


def chosen(found):
    return {name: channels.nonzero().flatten().tolist() for name, channels in found.items()}


def test_the_lowest_channels_of_all_layers_go():
    found = by_hand([1.0, 0.2, 3.0, 0.1], [0.5, 0.3, 0.6, 9.0])
    assert chosen(found.choose(3 / 8, 0.5, 0.5, False)) == {"0": [1, 3], "1": [1]}
    found.take(found.choose(3 / 8, 0.5, 0.5, False))
    assert chosen(found.choose(4 / 8, 0.5, 0.5, False)) == {"0": [], "1": [0]}
    assert chosen(found.choose(3 / 8, 0.5, 0.5, False)) == {"0": [], "1": []}


def test_no_layer_falls_below_its_floor_and_others_give_what_it_keeps():
    found = by_hand([0.1, 0.2, 0.3, 0.4], [5.0, 6.0, 7.0, 8.0])
    assert chosen(found.choose(0.5, 0.5, 1.0, False)) == {"0": [0, 1], "1": [0, 1]}
    assert chosen(found.choose(0.5, 0.5, 0.75, False)) == {"0": [0, 1], "1": [0, 1]}  # ceil(1.5) stay
    assert chosen(found.choose(0.5, 0.5, 0.5, False)) == {"0": [0, 1, 2], "1": [0]}
    assert chosen(found.choose(0.9, 0.9, 0.0, False)) == {"0": [0, 1, 2], "1": [0, 1, 2]}  # one stays


def test_removals_follow_the_schedule_and_never_come_back():
    model, training = chased("vgg", run=0)
    method, before = training.method, {}
    for step in range(1, 49):
        train(model, training.optimizer, range(step - 1, step))
        now = {name: channels.clone() for name, channels in removal(training).removed.items()}
        total = sum(producer.channels for producer, _ in removal(training).producers.values())
        if method.removes(step, 48):
            assert sum(int(c.sum()) for c in now.values()) == round(method.share(step, 48) * total)
        else:
            assert all(torch.equal(now[name], before[name]) for name in now)
        assert all((now[name] | ~channels).all() for name, channels in before.items())
        before = now


def test_scores_differ_in_what_they_remove():
    removed = [removal(chased("vgg", score=score)[1]).removed for score in ("mean", "active", "connection", "kernel")]
    for one, other in combinations(removed, 2):
        assert any(not torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_floors_hold_over_a_run():
    _, training = chased("vgg", beta=1.0, channels=0.4)
    for name, (producer, _) in removal(training).producers.items():
        left = producer.channels - int(removal(training).removed[name].sum())
        assert left >= math.ceil(0.6 * producer.channels - 1e-9)


# ---------------------------------------------------------------- exact counts


def test_density_over_a_run():
    _, training = chased("vgg", steps=64)
    target, size = sum(training.targets.values()), sum(layer.size for layer in training.layers)
    kept = {entry["step"]: sum(entry["kept"].values()) for entry in training.history}
    for step in range(4, 65, 4):
        assert kept[step] == target + round(training.method.bonus(step, 64) * size)
    assert max(kept.values()) > target == kept[52] == kept[64] == sum(layer.kept for layer in training.layers)
    total = sum(producer.channels for producer, _ in removal(training).producers.values())
    assert sum(int(c.sum()) for c in removal(training).removed.values()) == round(0.5 * total)


def test_a_removal_after_the_last_exploration_is_refilled():
    _, training = chased("vgg", steps=52, every=10, channel_every=56, channel_until=1.0, channels=0.3)
    assert training.history[-1]["step"] == 51
    assert sum(layer.kept for layer in training.layers) == sum(training.targets.values())
    assert sum(training.history[-1]["grown"].values()) > 0


def test_many_new_weights_at_zero_do_not_make_the_net_dense():
    """Grown weights of zero tie with one another, and with what is off, at the threshold of the next update."""
    model, training = one_row([1.0, 2.0] + [0.0] * 6, [1, 1] + [0] * 6, Chase(every=2, extra=0.5, channels=0.0))
    kept = []
    for _ in range(4):
        model.weight.grad = torch.zeros(1, 8)
        training.optimizer.step()
        kept.append(training.layers[0].kept)
    assert kept == [2, 5, 5, 4]  # 2 + round(8 * b), b = 0.25 * (1 + cos(pi * step / 8)) at steps 2 and 4
    for _ in range(4):
        model.weight.grad = torch.zeros(1, 8)
        training.optimizer.step()
    assert training.masks["weight"].tolist() == [[True] * 2 + [False] * 6]


def test_without_bonus_and_channels_it_is_global_drop_and_grow():
    """Against a plain account of the rule, in dense tensors."""
    model = mlp(64, 24, 16, 4)
    method = Chase(every=2, extra=0.0, soft=0.0, channels=0.0)
    training = SparseTraining(
        model, torch.optim.SGD(model.parameters(), 0.05), sparsity=0.6, method=method, total_steps=12
    )
    names = list(training.masks)
    for step in range(12):
        x, y = batch(step)
        F.cross_entropy(model(x.flatten(1)), y).backward()
        weights = dict(model.named_parameters())
        gradients = {n: weights[n].grad.clone() for n in names}
        values = {n: (weights[n].detach() - 0.05 * gradients[n]) * training.masks[n] for n in names}
        masks = torch.cat([training.masks[n].flatten() for n in names])
        if (step + 1) % 2 == 0:
            flat = torch.cat([values[n].flatten() for n in names]).abs()
            count = math.ceil(method.churn(step + 1, 12) * int(masks.sum()))
            order = torch.where(masks, flat, torch.inf).argsort(stable=True)
            masks[order[:count]] = False
            scores = torch.cat([gradients[n].flatten() for n in names]).abs()
            masks[torch.where(masks, -1.0, scores).argsort(descending=True, stable=True)[:count]] = True
        training.optimizer.step()
        training.optimizer.zero_grad()
        assert torch.equal(torch.cat([training.masks[n].flatten() for n in names]), masks)


def test_a_weight_that_drops_and_grows_in_one_update_starts_again():
    model, training = one_row([0.1, 1.0, 0.0], [1, 1, 0], Chase(every=1, soft=0.0, channels=0.0, drop=0.5))
    model.weight.grad = torch.tensor([[9.0, 0.0, 1.0]])
    training.optimizer.step()
    assert model.weight.tolist() == [[0.0, 1.0, 0.0]]
    assert training.masks["weight"].tolist() == [[True, True, False]]
    assert training.optimizer.state[model.weight]["momentum_buffer"][0, 0] == 0


def test_too_few_weights_in_the_remaining_channels_are_told_once():
    with pytest.warns(UserWarning, match="the channels that remain have room for") as seen:
        _, training = chased("vgg", sparsity=0.5, channels=0.7, beta=0.0)
    assert len(seen) == 1
    living = sum(layer.size - len(removal(training).excluded(layer)) for layer in training.layers)
    assert sum(layer.kept for layer in training.layers) == living < sum(training.targets.values())


# ---------------------------------------------------------------- removed for good


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_of_a_removed_channel_is_zero_and_stays_so(optimizer):
    model, training = chased("vgg", optimizer=optimizer, run=20)
    first = {name: channels.clone() for name, channels in removal(training).removed.items()}
    assert sum(int(c.sum()) for c in first.values()) > 5
    for step in range(20, 48):
        train(model, training.optimizer, range(step, step + 1))
        for parameter, marks in removed_parts(model, training):
            assert not parameter[marks].any()
            for state in training.optimizer.state[parameter].values():
                assert state.shape != parameter.shape or not state[marks].any()
    assert all((removal(training).removed[name] | ~channels).all() for name, channels in first.items())
    for layer in training.layers:
        assert not layer.mask().flatten()[removal(training).excluded(layer)].any()


def test_gradients_of_removed_channels_are_cleared_before_they_are_clipped():
    model, training = chased("vgg", run=20)
    x, y = batch(99)
    F.cross_entropy(model(x), y).backward()
    for parameter, marks in removed_parts(model, training):
        assert not parameter.grad[marks].any()


def test_the_shift_of_a_norm_does_not_leak():
    """Half of a sigmoid and the shift of a norm are in every removed channel: only its readers' zeros stop them."""
    model, training = chased("vgg")
    before = model.eval()(images())
    with torch.no_grad():
        for name, channels in removal(training).removed.items():
            if (producer := removal(training).producers[name][0]).carriers:
                model.get_submodule(producer.carriers[0].name).bias[channels] = 7.0
    torch.testing.assert_close(model(images()), before)


def test_the_residual_stream_stays_whole():
    model, training = chased("resnet", channels=0.7, beta=0.0)
    assert set(removal(training).removed) == {f"blocks.{k}.conv1" for k in range(3)}
    sliced = slice_channels(model, images())
    assert sliced.model.stem.out_channels == 8
    assert sliced.model.blocks[2].conv2.out_channels == 12
    assert sliced.model.blocks[2].conv1.out_channels < 12


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("vgg", "sgd"), ("vgg", "adamw"), ("resnet", "adafactor"), ("mlp", "sgd"), ("joined", "sgd")],
)
def test_sliced_equals_masked_after_training(kind, optimizer):
    model, training = chased(kind, optimizer=optimizer)
    sliced = slice_channels(model, images(), masks=training.masks)
    model.eval(), sliced.model.eval()
    gone = removal(training).removed
    for name, (old, new) in sliced.channels.items():
        assert new <= old - int(gone[name].sum())
    assert sum(int(channels.sum()) for channels in gone.values()) > 0
    x = images(16, seed=5)
    torch.testing.assert_close(sliced.model(x), model(x), rtol=1e-5, atol=1e-6)
    assert float(model(x).detach().std(0).mean()) > 1e-4
    assert sliced.masks.kept() <= training.masks.kept()


# ---------------------------------------------------------------- resume, shake, faults


@pytest.mark.parametrize(("at", "optimizer"), [(2, "adamw"), (13, "sgd"), (20, "adamw"), (44, "sgd")])
def test_resume_is_bit_exact(at, optimizer):
    whole, training = chased("vgg", optimizer=optimizer)
    half, before = chased("vgg", optimizer=optimizer, run=at)
    states = half.state_dict(), before.optimizer.state_dict(), before.state_dict()
    model = net("vgg", seed=9)
    made = OPTIMIZERS[optimizer](model.parameters())
    again = SparseTraining(model, made, sparsity=0.85, method=Chase(**SHORT), total_steps=48)
    if at == 20:  # a forward pass may come before or after
        model(images())
    model.load_state_dict(states[0])
    made.load_state_dict(states[1])
    again.load_state_dict(states[2])
    train(model, made, range(at, 48))
    assert again.masks.hash() == training.masks.hash()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    assert again.history == training.history


def test_shakes_leave_removed_channels_alone():
    model, training = chased("vgg", run=40)
    kept = sum(layer.kept for layer in training.layers)
    training.shake(0.8)
    train(model, training.optimizer, range(40, 41))
    assert sum(training.history[-1]["dropped"].values()) > 0.2 * kept
    assert sum(layer.kept for layer in training.layers) == kept
    assert not any(p[marks].any() for p, marks in removed_parts(model, training))


def test_hooks_come_off():
    model, training = chased("vgg", run=20)
    training.remove()
    train(model, training.optimizer, range(20, 22))
    assert any(p[marks].any() for p, marks in removed_parts(model, training))


def test_the_first_forward_changes_nothing():
    model = net("vgg")
    made = sgd(model)
    SparseTraining(model, made, sparsity=0.5, method=Chase(**SHORT), total_steps=48)
    plain = net("vgg")
    plain.load_state_dict(model.state_dict())
    state = torch.get_rng_state()
    assert torch.equal(model(images()), plain(images()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_a_compiled_model_finds_its_channels():
    model = net("mlp")
    compiled = torch.compile(model, backend="eager")
    made = sgd(model)
    training = SparseTraining(compiled, made, sparsity=0.7, method=Chase(**SHORT), total_steps=48)
    train(compiled, made, range(48))
    assert slice_channels(compiled, images()).channels["1"][1] < 24
    assert removal(training).removed


def test_settings_are_checked():
    for settings, message in (
        ({"channels": 1.0}, "channels must be at least 0 and below 1"),
        ({"extra": -0.1}, "extra must be between 0 and 1"),
        ({"every": 0}, "every must be a whole number"),
        ({"score": "meen"}, "Did you mean"),
    ):
        with pytest.raises(RecipeError, match=message):
            Chase(**settings)
    model = net("vgg")
    for settings, message in (
        ({"total_steps": 10, "method": Chase()}, "channel_every is 1000"),
        (
            {"total_steps": 100, "method": Chase(**SHORT), "pattern": "2x2", "include": ["3"]},
            "pattern 'unstructured'",
        ),
        ({"method": Chase(**SHORT)}, "give total_steps"),
    ):
        with pytest.raises(RecipeError, match=message):
            SparseTraining(model, sgd(model), sparsity=0.5, **settings)


def test_a_network_without_channels_to_remove_says_why():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    SparseTraining(model, sgd(model), sparsity=0.5, method=Chase(**SHORT), total_steps=40)
    with pytest.raises(
        RecipeError, match=r"no sparse layer whose channels can be removed(.|\n)*its channels meet what 1"
    ):
        model(torch.ones(2, 4))


def test_a_model_that_was_never_called_is_noticed():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    training = SparseTraining(model, sgd(model), sparsity=0.5, method=Chase(**SHORT), total_steps=40)

    def step():
        model[2](model[0](torch.ones(1, 4))).sum().backward()
        training.optimizer.step()

    for _ in range(5):
        step()
    with pytest.raises(LowdimError, match="has not seen a forward pass"):
        step()
