"""Masks that are given: what contradicts them is refused, whatever they are made of is understood."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.small import Reader, mlp, sgd, train
from torch import Tensor, nn

from lowdim.core import registry
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.nn.csr.swap import sparse_
from lowdim.train import SET, Chase, GradualMagnitude, GraNet, RandomMasks, RigL, SparseTraining, Static


def masks(sparsity: float) -> dict[str, Tensor]:
    return RandomMasks().masks(mlp(64, 32, 16, 4), sparsity=sparsity)


def training(given: Any, **settings: Any) -> SparseTraining:
    model = mlp(64, 32, 16, 4)
    return SparseTraining(model, sgd(model), masks=given, **({"method": Static(), "total_steps": 20} | settings))


def settings_of(name: str) -> dict[str, Any]:
    """Return settings with which a method moves masks in twenty steps."""
    short = {"every": 2} if "every" in registry.find("training", name).settings() else {}
    return short | {"chase": {"channels": 0.0}, "st-rnn": {"gates": 1}}.get(name, {})


class TestTwoArgumentsForOneQuantity:
    @pytest.mark.parametrize("method", [Static(), RigL(every=2), SET(every=2)], ids=repr)
    @pytest.mark.parametrize("asked", [0.9, 0.5])
    def test_a_method_that_keeps_the_density(self, method: Any, asked: float) -> None:
        with pytest.raises(
            RecipeError, match=rf"masks keeps 768 of 2560 units \(70\.00% zeros\), sparsity is {asked:.2%}"
        ):
            training(masks(0.7), method=method, sparsity=asked)

    @pytest.mark.parametrize("method", [GradualMagnitude(every=2), GraNet(every=2)], ids=repr)
    def test_one_that_prunes_goes_up_alone(self, method: Any) -> None:
        with pytest.raises(RecipeError, match="does not get from one to the other"):
            training(masks(0.7), method=method, sparsity=0.5)
        model = mlp(64, 32, 16, 4)
        made = SparseTraining(model, sgd(model), masks=masks(0.7), method=method, sparsity=0.9, total_steps=20)
        train(model, made.optimizer, range(20), flat=True)
        assert made.sparsity() == pytest.approx(0.9, abs=1e-3)

    @pytest.mark.parametrize("asked", [0.5, 0.9])
    def test_one_that_refills_goes_either_way(self, asked: float) -> None:
        model = mlp(64, 32, 16, 4)
        method = Chase(every=2, channels=0.0, extra=0.0)
        made = SparseTraining(model, sgd(model), masks=masks(0.7), method=method, sparsity=asked, total_steps=20)
        train(model, made.optimizer, range(20), flat=True)
        assert made.sparsity() == pytest.approx(asked, abs=1e-3)

    @pytest.mark.parametrize("pattern", ["unstructured", "fan-in", "4x4"])
    def test_what_agrees_to_rounding_is_taken(self, pattern: str) -> None:
        model = mlp(64, 32, 16, 4)
        first = SparseTraining(model, sgd(model), sparsity=0.7, method=Static(), pattern=pattern)
        assert training(first.masks, sparsity=0.7, pattern=pattern).masks == first.masks

    @pytest.mark.parametrize("allocation", ["uniform", {"0.weight": 0.5, "2.weight": 0.5}], ids=["name", "shares"])
    @pytest.mark.parametrize("sparsity", [None, 0.7])
    def test_an_allocation(self, allocation: Any, sparsity: float | None) -> None:
        with pytest.raises(RecipeError, match="Leave allocation out"):
            training(masks(0.7), allocation=allocation, sparsity=sparsity)

    @pytest.mark.parametrize("sparsity", [None, 0.9])
    @pytest.mark.parametrize("name", registry.names("training"))
    @pytest.mark.parametrize("change", [{}, {"scope": "layer"}, {"scope": "uniform"}], ids=str)
    def test_an_allocation_changes_something_or_is_refused(
        self, name: str, change: Any, sparsity: float | None
    ) -> None:
        if not change.keys() <= (found := registry.find("training", name)).settings().keys():
            return
        method = found.load()(**settings_of(name), **change)
        if not method.changes_density:
            sparsity = sparsity and 0.7
        recurrent = name == "selfish-rnn"
        accepted = change == {"scope": "layer"} and sparsity is not None

        def made(allocation: Any) -> SparseTraining:
            model: nn.Module = Reader() if recurrent else mlp(64, 32, 16, 4)
            given = RandomMasks().masks(model, sparsity=0.7)
            asked: dict[str, Any] = {"sparsity": sparsity, "allocation": allocation, "total_steps": 20}
            return SparseTraining(model, sgd(model), method=method, masks=given, **asked)

        others: list[Any] = ["uniform", {"0.weight": 0.92, "2.weight": 0.82}]
        if not accepted:
            remedy = "Give sparsity, or leave" if change == {"scope": "layer"} else "Leave"
            for allocation in others:
                with pytest.raises(RecipeError, match=rf"{type(method).__name__} .*\. {remedy} allocation out"):
                    made(allocation)
        ends = []
        for allocation in ("erk", *others) if accepted else ("erk",):
            training = made(allocation)
            train(training.model, training.optimizer, range(20), flat=not recurrent)
            ends.append({layer.name: layer.kept for layer in training.layers})
        assert all(a != b for a, b in combinations(ends, 2))

    @pytest.mark.parametrize("name", registry.names("training"))
    @pytest.mark.parametrize("change", [{}, {"scope": "layer"}, {"scope": "uniform"}], ids=str)
    @pytest.mark.parametrize("start", [0.0, 0.3])
    def test_so_does_one_that_is_given_without_masks(self, name: str, change: Any, start: float) -> None:
        known = registry.find("training", name).settings().keys()
        change = change | ({"start": start} if "start" in known else {})
        if not change.keys() <= known or (start and "start" not in known):
            return
        method = registry.find("training", name).load()(**settings_of(name), **change)

        def kept(allocation: str) -> list[dict[str, int]]:
            model: nn.Module = Reader() if name == "selfish-rnn" else mlp(64, 32, 16, 4)
            made = SparseTraining(model, sgd(model), method=method, sparsity=0.7, allocation=allocation, total_steps=20)
            first = {layer.name: layer.kept for layer in made.layers}
            train(model, made.optimizer, range(20), flat=name != "selfish-rnn")
            return [first, {layer.name: layer.kept for layer in made.layers}]

        if start or "start" not in known or change.get("scope") == "layer":
            assert kept("uniform") != kept("erk")
        else:
            with pytest.raises(RecipeError, match=r"allocation .* changes nothing: .* Leave allocation out"):
                kept("uniform")

    @pytest.mark.parametrize("sparsity", [None, 0.7])
    def test_truly_sparse_layers_are_masks_too(self, sparsity: float | None) -> None:
        model = mlp(64, 32, 16, 4)
        sparse_(model, masks(0.7))
        for method in (Static(), RigL(every=2), GraNet(every=2)):
            with pytest.raises(RecipeError, match=r"the CSRLinear layers say .*\. Leave allocation out"):
                SparseTraining(
                    model, sgd(model), method=method, sparsity=sparsity, allocation="uniform", total_steps=20
                )
        gradual = GradualMagnitude(every=2, scope="layer")
        if sparsity is None:
            with pytest.raises(RecipeError, match="Give sparsity, or leave allocation out"):
                SparseTraining(model, sgd(model), method=gradual, allocation="uniform", total_steps=20)
            return
        made = SparseTraining(model, sgd(model), method=gradual, sparsity=0.9, allocation="uniform", total_steps=20)
        train(model, made.optimizer, range(20), flat=True)
        assert [round(1 - layer.kept / layer.size, 2) for layer in made.layers] == [0.9, 0.9]


def test_frozen_layers_are_no_hindrance_and_take_no_mask() -> None:
    model = mlp(64, 32, 16, 4)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    given = masks(0.7)
    with pytest.raises(RecipeError, match=r"masks names '0\.weight', which is frozen"):
        SparseTraining(model, optimizer, method=Static(), masks=given)
    made = SparseTraining(model, optimizer, method=Static(), masks={"2.weight": given["2.weight"]})
    assert list(made.masks) == ["2.weight"]
    assert "dense (no mask given)" in str(made)


class TestWhatMasksAreMadeOf:
    @pytest.mark.parametrize("of", [np.asarray, np.uint8, Tensor.float, Tensor.tolist], ids=lambda of: of.__name__)
    def test_bools_and_ones_of_any_kind(self, of: Any) -> None:
        given = masks(0.7)
        same = {name: of(mask.numpy() if isinstance(of, type) else mask) for name, mask in given.items()}
        assert training(same).masks == Masks.from_dict(given)
        assert Masks.from_dict(same) == Masks.from_dict(given)
        assert sparse_(mlp(64, 32, 16, 4), same)[0].kept == int(given["0.weight"].sum())  # type: ignore[index]

    @pytest.mark.parametrize("wrong", [torch.rand(32, 64), np.full((32, 64), np.nan), "0.weight", None, [[1, 0], [1]]])
    def test_anything_else_is_refused_by_name(self, wrong: Any) -> None:
        for take in (training, Masks.from_dict, lambda given: sparse_(mlp(64, 32, 4), given)):
            with pytest.raises(LowdimError, match=r"the mask of 0\.weight"):
                take({"0.weight": wrong})

    def test_an_empty_mask_warns(self) -> None:
        with pytest.warns(UserWarning, match=r"left no weight in 0\.weight"):
            training({"0.weight": torch.zeros(32, 64).bool()})
        with pytest.raises(RecipeError, match="masks names no weight"):
            training({})


def per_output(mask: Tensor, groups: int) -> set[int]:
    """Return how many weights each output of a transposed convolution keeps, [in, out / groups, kernel...]."""
    return set(mask.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2).sum(2).flatten().tolist())


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize(("groups", "pattern"), [(1, "fan-in"), (2, "fan-in"), (4, "fan-in"), (4, "2:4"), (2, "2x2")])
def test_patterns_of_grouped_transposed_convolutions(kind: Any, groups: int, pattern: str) -> None:
    rank = int(kind.__name__[-2])
    model = nn.Sequential(kind(32, 16, 2, groups=groups), nn.Flatten(), nn.Linear(16 * 3**rank, 2))
    settings: dict[str, Any] = {"method": RigL(every=1), "total_steps": 8, "include": ["0"], "sparsity": 0.5}
    made = SparseTraining(model, sgd(model), pattern=pattern, **settings)
    for _ in range(3):
        model(torch.randn(2, 32, *[2] * rank)).square().sum().backward()
        made.optimizer.step()
        mask = made.masks["0.weight"]
        if pattern == "fan-in":
            assert per_output(mask, groups) == {32 // groups * 2**rank // 2}
        elif pattern == "2:4":  # four inputs that reach one output through one place of the kernel
            runs = mask.unflatten(0, (groups, -1, 4)).sum(2)
            assert set(runs.flatten().tolist()) == {2}
        else:
            blocks = mask.reshape(groups, 8, 2, 16 // groups // 2, 2, -1).sum((2, 4, 5))
            assert set(blocks.flatten().tolist()) == {0, 4 * 2**rank}
