"""Steps that break off or do nothing, optimizers shared or nested, and settings that would quietly do harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.train.small import batch, hold, mlp, one_row, sgd, step_with, train
from torch import Tensor, nn
from torch.nn import functional as F

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.train import ITOP, SET, GradualMagnitude, GraNet, Method, NeurRev, RigL, SparseTraining, Static
from lowdim.train.sparse.method import Periodic
from lowdim.train.sparse.moment import Moment
from lowdim.train.sparse.state import per_weight


class Fragile(torch.optim.SGD):
    """Breaks off in its second step: in the closure, or after the gradients are there."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if closure:
            closure()
        if self.steps == 2:
            raise MemoryError
        return super().step()


class Nested(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure and (lambda: closure()))


def off(training: SparseTraining) -> float:
    pairs = [(layer.parameter.detach(), layer.mask()) for layer in training.layers]
    return max(float(weight[~mask].abs().max()) for weight, mask in pairs)


def computing(model: nn.Module, step: int) -> Callable[[], Tensor]:
    def compute() -> Tensor:
        x, y = batch(step)
        model.zero_grad()
        loss = F.cross_entropy(model(x.flatten(1)), y)
        loss.backward()
        return loss

    return compute


class TestStepsThatBreakOff:
    @pytest.mark.parametrize("closed", [False, True])
    @pytest.mark.parametrize("method", [RigL(every=2), SET(every=2)], ids=["RigL", "SET"])
    def test_training_goes_on(self, method: Method, closed: bool) -> None:
        model = mlp(64, 32, 4)
        optimizer = Fragile(model.parameters(), lr=0.1)
        training = SparseTraining(model, optimizer, sparsity=0.8, method=method, total_steps=20)
        for step in range(8):
            compute = computing(model, step)
            try:
                if not closed:
                    compute()
                optimizer.step(compute if closed else None)
            except MemoryError:
                assert step == 1
            assert step == 1 or off(training) == 0.0
        assert training.step == 7
        assert {entry["step"] for entry in training.history} == {2, 4, 6}
        assert all(p.grad is not None for p in model.parameters())

    def test_a_closure_that_breaks_off(self) -> None:
        model, optimizer, training = hold(0.8, model=mlp(64, 32, 4), method=SET(every=2))

        def broken() -> Tensor:
            raise MemoryError

        for step in range(6):
            compute = computing(model, step)
            if step == 1:
                with pytest.raises(MemoryError):
                    optimizer.step(broken)
            optimizer.step(compute)
        assert training.step == 6
        assert off(training) == 0.0

    @pytest.mark.parametrize("closed", [False, True])
    def test_a_step_within_a_step_counts_once(self, closed: bool) -> None:
        model = mlp(64, 32, 4)
        optimizer = Nested(model.parameters(), lr=0.1)
        training = SparseTraining(model, optimizer, sparsity=0.8, method=RigL(every=2), total_steps=20)
        for step in range(4):
            compute = computing(model, step)
            if not closed:
                compute()
            optimizer.step(compute if closed else None)
        assert [entry["step"] for entry in training.history] == [2, 4]
        assert training.step == 4

    def test_a_fused_optimizer_that_skips_by_itself_is_not_counted(self) -> None:
        model = mlp(64, 32, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        training = SparseTraining(model, optimizer, sparsity=0.8, method=RigL(every=2), total_steps=12)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(6):
            x, y = batch(step)
            loss = F.cross_entropy(model(x.flatten(1)), y)
            scaler.scale(loss * float("inf") if step == 3 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert training.step == 5
        assert [entry["step"] for entry in training.history] == [2, 4]
        assert off(training) == 0.0


class TestSharedOptimizers:
    @pytest.mark.parametrize("order", ["replace_step", "after_step"])
    def test_two_trainings_of_other_layers(self, order: Any) -> None:
        model = mlp(64, 32, 16, 4)
        optimizer = sgd(model)
        common: dict[str, Any] = {"total_steps": 12}
        first = SparseTraining(model, optimizer, sparsity=0.8, method=RigL(every=2), include=["0"], **common)
        other = RigL(every=3, order=order)
        second = SparseTraining(model, optimizer, sparsity=0.5, method=other, include=["2"], **common)
        train(model, optimizer, range(8), flat=True)
        assert [entry["step"] for entry in first.history] == [2, 4, 6, 8]
        assert [entry["step"] for entry in second.history] == [3, 6]
        assert off(first) == off(second) == 0.0
        assert all(sum(entry["grown"].values()) for entry in second.history)

    def test_two_trainings_of_one_layer(self) -> None:
        model = mlp(64, 32, 4)
        first = SparseTraining(model, sgd(model), sparsity=0.5, method=Static())
        before = model[0].weight.detach().clone()  # type: ignore[operator]
        with pytest.raises(LowdimError, match=r"already keeps 0\.weight sparse.*remove\(\)"):
            SparseTraining(model, sgd(model), sparsity=0.9, method=Static())
        assert torch.equal(before, model[0].weight)  # type: ignore[arg-type]
        first.remove()
        SparseTraining(model, sgd(model), sparsity=0.9, method=Static())


class TestOptimizerStates:
    def test_a_weight_of_one_number(self) -> None:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        training = SparseTraining(model, optimizer, sparsity=0.0, method=Static())
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        assert set(per_weight(optimizer, training.layers[0].parameter, "weight")) == {"exp_avg", "exp_avg_sq"}

    def test_a_weight_grown_with_a_new_value_has_no_past(self) -> None:
        model, training = one_row([1.0, 2.0, 3.0], [1, 1, 1], SET(every=2, drop=0.4))
        for _ in range(2):  # the only free position is the one that was just dropped
            step_with(model, training, [1.0, 1.0, 1.0])
        assert model.weight[0].tolist()[1:] == [2.0, 3.0]
        assert model.weight[0, 0] != 1.0
        momentum = training.optimizer.state[model.weight]["momentum_buffer"][0]
        assert (momentum == 0).tolist() == [True, False, False]

    def test_lists_of_matrices(self) -> None:
        model, optimizer, training = hold(0.5, model=mlp(64, 32, 4), method=SET(), total_steps=200)
        optimizer.state[training.layers[0].parameter]["GG"] = [torch.eye(32), torch.eye(64)]
        with pytest.raises(LowdimError, match="keeps 'GG' of shape"):
            train(model, optimizer, range(1), flat=True)


class TestSettings:
    @pytest.mark.parametrize(
        "method", [RigL(candidates="new"), NeurRev(candidates="new"), ITOP(candidates="new")], ids=repr
    )
    @pytest.mark.parametrize("pattern", ["2:4", "fan-in"])
    def test_new_candidates_alone_in_groups(self, method: Method, pattern: str) -> None:
        with pytest.raises(RecipeError, match="candidates='new' does not work with groups"):
            hold(0.5, model=mlp(64, 32, 4), method=method, total_steps=500, pattern=pattern)

    @pytest.mark.parametrize("method", [GradualMagnitude(every=9), GraNet(every=9)], ids=repr)
    def test_pruning_that_would_never_come(self, method: Method) -> None:
        with pytest.raises(RecipeError, match="would never prune: every is 9"):
            hold(0.5, model=mlp(64, 32, 4), method=method, total_steps=12)

    def test_blocks_have_no_sign(self) -> None:
        with pytest.raises(RecipeError, match="NeurRev drops by sign"):
            hold(0.5, model=mlp(64, 32, 4), method=NeurRev(), total_steps=500, pattern="4x4")

    def test_neurrev_breaks_ties_by_its_noise(self) -> None:
        weights, mask = [-5.0, *[1.0] * 19, *[0.0] * 20], [1] * 20 + [0] * 20
        runs = set()
        for seed in range(4):
            method = NeurRev(every=1, drop=0.2, schedule="constant", rho=0.25, reading="value")
            model, training = one_row(weights, mask, method, seed=seed)
            kept = step_with(model, training, [0.0] * 20 + [1.0] * 20)
            assert not kept[0]
            assert sum(kept) == 20
            runs.add(tuple(kept[:20]))
        assert len(runs) > 1

    def test_schedules_stay_where_they_ended(self) -> None:
        method = GraNet(every=1, start=0.5)
        assert method.share(150, 100) == pytest.approx(method.floor)
        assert method.sparsity(150, 100, 0.9) == pytest.approx(0.9)
        assert ITOP(until=0.5).share(50, 100) == pytest.approx(0.2525)  # over the whole run, wherever masks stop
        assert RigL(schedule="power").share(100, 100) == RigL().share(100, 100) == 0.0

    def test_a_shaken_share_is_not_rounded_twice(self) -> None:
        model, training = one_row([1.0] * 100 + [0.0] * 100, [1] * 100 + [0] * 100, Static())
        training.shake(0.29)
        step_with(model, training, [0.0] * 100 + [1.0] * 100)
        assert training.history[0]["dropped"] == {"weight": 29}


class TestTransposedWeights:
    @pytest.mark.parametrize("pattern", ["2:4", "fan-in", "4x2"])
    def test_patterns_run_along_the_inputs(self, pattern: str) -> None:
        model = nn.Sequential(nn.ConvTranspose2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 25, 2))
        training = SparseTraining(
            model,
            sgd(model),
            sparsity=0.5,
            method=RigL(every=1),
            pattern=pattern,
            total_steps=8,
            include=["0"],
        )
        for _ in range(3):
            model(torch.randn(2, 8, 3, 3)).sum().backward()
            training.optimizer.step()
        mask = training.masks["0.weight"].transpose(0, 1)  # [out, in, kernel...]
        if pattern == "2:4":
            assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all()
        elif pattern == "fan-in":
            assert (mask.flatten(1).sum(1) == 36).all()
        else:
            blocks = mask.reshape(1, 4, 4, 2, 9).sum((1, 3, 4))
            assert set(blocks.flatten().tolist()) == {0, 72}
        assert off(training) == 0.0


def test_a_method_that_forgets_to_ask_for_the_gradient() -> None:
    @dataclass(frozen=True)
    class Greedy(Periodic):
        def update(self, moment: Moment) -> None:
            for layer in moment.layers:
                layer.top_gradient(1, layer.positions())

    model, optimizer, _ = hold(0.8, method=Greedy(every=2))
    train(model, optimizer, range(1))
    with pytest.raises(LowdimError, match="wants_gradient"):
        train(model, optimizer, range(1, 2))


def test_what_does_not_look_at_the_gradient_clips_by_active_weights_at_updates_too() -> None:
    for method, cleared in ((SET(every=1), True), (RigL(every=1, order="after_step"), False)):
        model, _, training = hold(0.9, method=method, total_steps=9)
        x, y = batch(0)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        weights = dict(model.named_parameters())
        gradients = [weights[name].grad[~mask] for name, mask in training.masks.items()]  # type: ignore[index]
        assert (not any(g.any() for g in gradients)) is cleared
