"""Recipes of training: every default spelled out, every mistake named, no torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lowdim.core.errors import RecipeError
from lowdim.models.small.nets import MLP, NETS, parse
from lowdim.train.compare.recipe import TrainingRecipe


def test_defaults_depend_on_the_data() -> None:
    image, text = TrainingRecipe(), TrainingRecipe(data="wiki-topics")
    assert (image.net.name, image.optimizer.name, image.optimizer.lr) == ("mlp", "sgd", 0.05)
    assert (text.net.name, text.optimizer.name, text.optimizer.lr) == ("text", "adamw", 0.001)


@pytest.mark.parametrize("given", [{}, {"data": "wine", "epochs": 2}, {"net": "conv", "include": "blocks.*"}])
def test_yaml_brings_it_back(given: dict[str, Any]) -> None:
    recipe = TrainingRecipe(**given)
    assert TrainingRecipe.from_yaml(recipe.to_yaml()) == recipe
    assert TrainingRecipe(**recipe.to_dict()).fingerprint() == recipe.fingerprint()


def test_method_is_another_word_for_training() -> None:
    assert TrainingRecipe(method="set") == TrainingRecipe(training="set")


def test_twins_come_in_their_order_and_may_be_none() -> None:
    assert TrainingRecipe(twins="static, dense").twins == ("dense", "static")
    assert TrainingRecipe(twins="none").twins == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"net": "mpl"}, "unknown net 'mpl'. Did you mean 'mlp'"),
        ({"net": {"name": "mlp", "hiden": [3]}}, "Did you mean 'net.hidden'"),
        ({"net": {"name": "mlp", "hidden": [0]}}, "net.hidden.0 must be greater than or equal to 1"),
        ({"net": 5}, "net must be a name or a mapping"),
        ({"training": {"name": "rigl", "evry": 3}}, "Did you mean 'training.every'"),
        ({"training": "rgil"}, "Did you mean 'rigl'"),
        ({"training": "set", "method": "rigl"}, "two words for one key"),
        ({"data": "fashion"}, "Did you mean 'fashion-mnist'"),
        (
            {"data": "digits", "net": "text"},
            "does not take the image data 'digits'. Choose one of: mlp, conv",
        ),
        ({"data": "wine", "net": "conv"}, "Choose one of: mlp"),
        ({"sparsity": "90%"}, "Did you mean 0.9"),
        ({"include": "re:("}, "'re:(' is not a regular expression"),
        ({"sparsity": 1.0}, "sparsity must be less than 1"),
        ({"twins": "dens"}, "Did you mean 'dense'"),
        ({"epocs": 3}, "Did you mean 'epochs'"),
        ({"allocation": "erkk"}, "Did you mean 'erk'"),
        ({"optimizer": "adam"}, "Did you mean 'adamw'"),
        ({"optimizer": {"lr": 0.0}}, "optimizer.lr must be greater than 0"),
        ({"batch": 0}, "batch must be greater than or equal to 1"),
        ({"batch": 1}, "net.norm: none"),
        ({"executor": "csr", "net": "conv"}, "does not work with net 'conv'"),
        ({"executor": "csr", "training": "granet"}, "changes how many weights are kept"),
        ({"executor": "csr", "pattern": "2:4"}, "does not work with pattern '2:4'"),
        ({"limit": 3}, "Did you mean 'data.limit'"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        TrainingRecipe(**given)
    assert message in str(caught.value)


@pytest.mark.parametrize("allocation", ["alpha", "owl", "er-plus", {"0.weight": 0.5}])
def test_every_allocation_that_training_can_use(allocation: Any) -> None:
    assert TrainingRecipe(net="mlp", allocation=allocation).to_dict()["allocation"] == allocation


def test_inputs_are_measured_at_linear_layers_alone() -> None:
    with pytest.raises(RecipeError, match="inputs of linear layers, and net 'conv' has convolutions"):
        TrainingRecipe(net="conv", allocation="owl")
    assert TrainingRecipe(net="conv", allocation="alpha").allocation == "alpha"


def test_a_recipe_costs_no_torch() -> None:
    program = (
        "import sys; from lowdim.train.compare.recipe import TrainingRecipe as R; R(method='granet', net='conv'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", NETS)
def test_half_as_wide(name: str) -> None:
    net = parse(name)
    half = net.scaled(0.5)
    widths = [value for value in net.model_dump().values() if isinstance(value, tuple)]
    assert [v for v in half.model_dump().values() if isinstance(v, tuple)] == [
        tuple(round(width / 2) for width in each) for each in widths
    ]


def test_the_widest_network_within_a_budget_by_hand() -> None:
    from tests.train.compare.conftest import made

    data = made(side=2, classes=4)  # 4 inputs, 4 classes: 9 h + 4 parameters with h hidden
    net = MLP(hidden=(10,), norm="none")
    assert net.parameters(data) == 94
    assert [net.within(data, budget).hidden for budget in (50, 49, 48, 1)] == [(5,), (5,), (4,), (1,)]
    assert MLP(hidden=(10,)).parameters(data) == 94 + 20


def test_text_reads_words_and_ignores_what_stands_behind_the_end() -> None:
    import torch

    from lowdim.data.classification import Known, cut
    from lowdim.data.raw import Raw

    texts = [f"common word{i % 7} more{i % 3}" for i in range(60)]
    raw = Raw(texts, torch.arange(60) % 3, ("a", "b", "c"))
    data = cut(Known("w", "text", "none", ""), raw, validation=0.1, limit=None, seed=0)
    net = parse("text").build(data, 0)
    one = data.train.x[:2]
    assert torch.equal(net(one), net(one[:, :10]))  # the rest is zeros


@pytest.mark.parametrize("training", ["rigl", "set", "itop", "granet", "gradual-magnitude"])
def test_the_interval_comes_from_the_length_of_the_run(training: str) -> None:
    short, long = TrainingRecipe(training=training).sized(66), TrainingRecipe(training=training).sized(10**6)
    last = short.training.last(66)
    assert sum(short.training.due(step, 66) for step in range(1, 67)) >= 10
    assert short.training.every == int(last) // 10
    assert long.training == TrainingRecipe(training=training).training
    assert TrainingRecipe.from_yaml(short.to_yaml()).sized(66) == short


@pytest.mark.parametrize("channels", [0.0, 0.5])
def test_the_intervals_of_chase_come_from_the_length_of_the_run(channels: float) -> None:
    asked = {"name": "chase", "channels": channels}
    for steps in (11, 66, 400):
        found = TrainingRecipe(training=asked).sized(steps).training
        assert sum(found.due(step, steps) for step in range(1, steps + 1)) >= 10
        assert any(found.removes(step, steps) for step in range(1, steps + 1)) == bool(channels)
    long = TrainingRecipe(training=asked)
    assert long.sized(10**6).training == long.training
    given = TrainingRecipe(training=asked | {"every": 20}).sized(66).training
    assert (given.every, given.channel_every) == (20, 5 if channels else long.training.channel_every)
    if channels:
        given = TrainingRecipe(training=asked | {"channel_every": 40}).sized(66).training
        assert (given.every, given.channel_every) == (5, 40)


@pytest.mark.parametrize(
    "given",
    [
        {"training": {"name": "chase", "every": 100, "channels": 0.0}},
        {"training": {"name": "rigl", "every": 100}},
        {"training": {"name": "granet", "every": 100}},
        {"training": {"name": "set", "every": 66}},
        {"training": {"name": "rigl", "until": 0.0}},
    ],
)
def test_a_schedule_that_can_do_nothing_is_refused_first(given: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"would never (prune|move a mask)"):
        TrainingRecipe(**given).sized(66)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"initialisation": "snip", "allocation": "uniform"}, "both say how the sparsity is spread"),
        ({"initialisation": "random", "allocation": {"0.weight": 0.5}}, "both say how the sparsity is spread"),
        (
            {"initialisation": "snip", "allocation": "er", "training": "granet"},
            "both say .* GraNet prunes all layers alike",
        ),
        (
            {"allocation": "uniform", "training": "granet"},
            r"allocation .* changes nothing: .* GraNet prunes all layers",
        ),
        ({"initialisation": "snip", "allocation": "er", "training": "chase"}, "both say .* Chase ranks the weights"),
        ({"optimizer": {"name": "adamw", "momentum": 0.5}}, "optimizer.momentum is a setting of sgd"),
    ],
)
def test_two_settings_for_one_thing(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TrainingRecipe(**given)
    TrainingRecipe(training={"name": "granet", "scope": "layer"}, initialisation="snip", allocation="uniform")
