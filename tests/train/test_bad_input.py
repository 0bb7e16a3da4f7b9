"""What `SparseTraining` refuses, and says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.train.small import conv_net, hold, mlp, sgd, train
from torch import nn

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.train import CTRE, ITOP, SET, GraNet, RigL, SparseTraining, Static


class TestBadInput:
    @pytest.mark.parametrize("sparsity", [1.0, -0.1, 90, None])
    def test_sparsity(self, sparsity: Any) -> None:
        with pytest.raises(RecipeError, match="sparsity must be"):
            hold(sparsity)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"include": ["fc*"]}, "include 'fc\\*' matches no weight"),
            ({"exclude": ["1.*"]}, "exclude '1.\\*' matches no weight"),
            ({"exclude": ["*"]}, "no weight is left"),
            ({"include": "0.weight"}, "must be a list"),
            ({"method": RigL()}, "total_steps"),
            ({"method": RigL}, r"write RigL\(\)"),
            ({"method": RigL(), "total_steps": 0}, "total_steps must be"),
            ({"allocation": "erkk"}, "Did you mean 'erk'"),
            ({"allocation": {"0.weight": 0.5}}, "3.weight"),
            ({"pattern": "2:4", "exclude": ["0"]}, "sparsity"),
            ({"pattern": "7x7"}, "blocks of 7"),
            ({"pattern": "fan-out"}, "unknown pattern"),
            ({"masks": {"nothing": torch.ones(2, 2)}}, "nothing"),
            ({"masks": {"0.weight": torch.ones(2, 2)}}, "shape"),
            ({"masks": {"1.weight": torch.ones(8)}}, "cannot be sparse"),
            ({"method": GraNet(every=1), "total_steps": 9, "pattern": "fan-in"}, "changes how much"),
            ({"method": ITOP(grow="unfired"), "total_steps": 9, "pattern": "fan-in"}, "unfired"),
            ({"method": CTRE(every=2)}, "CTRE trains linear layers"),
            ({"method": SET(every=2), "pattern": "2x1", "exclude": ["0"]}, "regrow"),
        ],
    )
    def test_arguments(self, settings: dict[str, Any], match: str) -> None:
        with pytest.raises(LowdimError, match=match):
            hold(0.8, **settings)

    def test_an_optimizer_without_the_weight(self) -> None:
        model = conv_net()
        with pytest.raises(LowdimError, match=r"does not hold 0\.weight"):
            SparseTraining(model, sgd(conv_net()), sparsity=0.5, method=Static())

    def test_no_optimizer(self) -> None:
        with pytest.raises(LowdimError, match="optimizer must be"):
            SparseTraining(conv_net(), nn.Linear(1, 1), sparsity=0.5, method=Static())  # type: ignore[arg-type]

    def test_a_state_of_unknown_shape(self) -> None:
        class Odd(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                super().step(closure)
                for group in self.param_groups:
                    for p in group["params"]:
                        self.state[p]["preconditioner"] = torch.eye(3)

        model = conv_net()
        before = model[0].weight.detach().clone()  # type: ignore[operator,index,union-attr]
        with pytest.raises(LowdimError, match="Odd keeps 'preconditioner'"):
            SparseTraining(model, Odd(model.parameters(), lr=0.1), sparsity=0.5, method=SET(), total_steps=200)
        assert torch.equal(before, model[0].weight)  # type: ignore[arg-type,index,union-attr]

    def test_a_parameter_replaced_later(self) -> None:
        model, optimizer, _ = hold()
        model[6].weight = nn.Parameter(torch.zeros(32, 256))  # type: ignore[index,union-attr]
        with pytest.raises(LowdimError, match=r"6\.weight was replaced"):
            train(model, optimizer, range(1))

    def test_an_optimizer_that_calls_another_one_steps_once(self) -> None:
        class Outer(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                super().step(closure)

        model = conv_net()
        sgd(model)
        training = SparseTraining(model, Outer(model.parameters(), lr=0.1), sparsity=0.5, method=SET(every=2))
        train(model, training.optimizer, range(4))
        assert training.step == 4
        assert [entry["step"] for entry in training.history] == [2, 4]

    def test_an_optimizer_of_several_gradients_a_step(self) -> None:
        model = mlp(64, 8, 4)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        with pytest.raises(LowdimError, match="LBFGS calls its closure more than once"):
            SparseTraining(model, optimizer, sparsity=0.5, method=Static())

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"seed": 1}, "seed"),
            ({"sparsity": 0.7}, "targets"),
            ({"method": SET(every=5)}, "method"),
            ({"model": mlp(64, 32, 4)}, "layers"),
        ],
    )
    def test_a_state_of_another_run(self, settings: dict[str, Any], match: str) -> None:
        _, _, first = hold(0.8, method=SET(every=3))
        _, _, second = hold(**({"sparsity": 0.8, "method": SET(every=3)} | settings))
        before = second.masks
        with pytest.raises(LowdimError, match=f"another {match}"):
            second.load_state_dict(first.state_dict())
        assert second.masks == before

    def test_a_state_of_something_else(self) -> None:
        model, _, training = hold()
        with pytest.raises(LowdimError, match="not saved by SparseTraining"):
            training.load_state_dict(model.state_dict())

    def test_two_parameters_in_one_memory(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        model[1].weight = nn.Parameter(model[0].weight.detach())  # type: ignore[union-attr]
        with pytest.raises(LowdimError, match="same memory"):
            SparseTraining(model, sgd(model), sparsity=0.5, method=Static())

    def test_empty_and_one_row_layers(self) -> None:
        model = nn.Sequential(nn.Linear(8, 1, bias=False), nn.Linear(8, 1), nn.Linear(1, 8), nn.Linear(8, 2))
        model[0].weight = nn.Parameter(torch.empty(0, 8))  # type: ignore[union-attr]
        training = SparseTraining(model, sgd(model), sparsity=0.5, method=Static(), allocation="uniform")
        assert list(training.masks) == ["1.weight", "2.weight"]
        assert [int(mask.sum()) for mask in training.masks.values()] == [4, 4]

    def test_frozen_weights_stay_dense_unless_asked_for(self) -> None:
        model = conv_net()
        model[0].weight.requires_grad_(False)  # type: ignore[union-attr]
        _, _, training = hold(model=model)
        assert "dense (frozen)" in str(training)
        with pytest.raises(RecipeError, match="frozen"):
            hold(model=model, include=["0"])
