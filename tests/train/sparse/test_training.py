"""`SparseTraining` in the loops that people write: optimizers, accumulation, clipping, AMP, compile, resume, faults."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.train.small import Reader, batch, conv_net, hold, mlp, sgd, train
from torch import Tensor, nn
from torch.nn import functional as F

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.train import SET, Method, RigL, SparseTraining, Static

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}
# What a method needs beside its defaults, and the network it trains if that is not a convolutional one.
SETTINGS: dict[str, dict[str, Any]] = {"chase": {"channels": 0.0}, "st-rnn": {"gates": 4}}
NETS = {"ctre": lambda seed: nn.Sequential(nn.Flatten(), *mlp(64, 48, 32, 4, seed=seed)), "selfish-rnn": Reader}
METHODS = [
    pytest.param(
        method.load()(**({"every": 3} if "every" in method.settings() else {}), **SETTINGS.get(method.name, {})),
        NETS.get(method.name, conv_net),
        id=method.name,
    )
    for method in (registry.find("training", name) for name in registry.names("training"))
]
Make = Callable[[int], nn.Module]


def off(model: nn.Module, training: SparseTraining) -> Tensor:
    weights = dict(model.named_parameters())
    return torch.cat([weights[name].detach()[~mask] for name, mask in training.masks.items()])


def leaks(training: SparseTraining) -> float:
    """Return the largest thing that an optimizer remembers of a weight that is off."""
    worst = 0.0
    for layer in training.layers:
        for value in training.optimizer.state[layer.parameter].values():
            if isinstance(value, Tensor) and value.shape == layer.parameter.shape:
                worst = max(worst, float(value[~layer.mask()].abs().sum()))
    return worst


class TestEveryMethod:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize(("method", "net"), METHODS)
    def test_keeps_exact_counts_and_leaks_nothing(self, method: Method, net: Make, optimizer: str) -> None:
        model = net(0)
        made = OPTIMIZERS[optimizer](model.parameters())
        training = SparseTraining(model, made, sparsity=0.8, method=method, total_steps=12)
        numel = sum(layer.size for layer in training.layers)
        for step in range(12):
            train(model, made, range(step, step + 1))
            assert not off(model, training).any()
            assert leaks(training) == 0.0
        assert sum(int(mask.sum()) for mask in training.masks.values()) == round(0.2 * numel)
        assert training.sparsity() == pytest.approx(0.8, abs=1e-4)
        assert training.step == 12

    @pytest.mark.parametrize("order", ["before", "between", "after"])
    @pytest.mark.parametrize(("method", "net"), METHODS)
    def test_resumes_to_the_bit(self, method: Method, net: Make, order: str) -> None:
        """The model's weights are read before masks are made, after that, or after the masks are read."""

        def fresh(weights: Any = None) -> tuple[nn.Module, Any, SparseTraining]:
            model = net(5)
            if weights:
                model.load_state_dict(weights)
            return hold(method=method, total_steps=14, model=model)

        whole_model, whole_optimizer, whole = fresh()
        train(whole_model, whole_optimizer, range(14))

        model, optimizer, training = fresh()
        train(model, optimizer, range(7))
        file = io.BytesIO()
        torch.save([x.state_dict() for x in (model, optimizer, training)], file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        torch.rand(7)
        model, optimizer, training = fresh(states[0] if order == "before" else None)
        if order == "between":
            model.load_state_dict(states[0])
        training.load_state_dict(states[2])
        if order == "after":
            model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        train(model, optimizer, range(7, 14))

        assert training.masks.hash() == whole.masks.hash()
        assert training.history == whole.history
        assert training.explored() == whole.explored()
        for a, b in zip(model.state_dict().values(), whole_model.state_dict().values(), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize(("method", "net"), METHODS)
    def test_neither_reads_nor_moves_the_global_generator(self, method: Method, net: Make) -> None:
        hashes = []
        for seed in (1, 2):
            model, optimizer, training = hold(method=method, total_steps=9, model=net(0))
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            train(model, optimizer, range(9))
            assert torch.equal(before, torch.get_rng_state())
            hashes.append(training.masks.hash())
        assert hashes[0] == hashes[1]

    def test_a_mask_of_ones_changes_nothing(self) -> None:
        dense = conv_net()
        expected = train(dense, sgd(dense), range(6))
        model, optimizer, _ = hold(0.0, method=Static())
        assert train(model, optimizer, range(6)) == expected


class TestLoops:
    def test_the_forward_sees_the_masked_weights_from_the_start(self) -> None:
        model, _, training = hold(0.9)
        assert not off(model, training).any()

    def test_static_equals_masking_by_hand(self) -> None:
        model, optimizer, training = hold(0.7)
        twin = copy.deepcopy(model)
        twin_optimizer = sgd(twin)
        weights = dict(twin.named_parameters())
        for step in range(5):
            train(model, optimizer, range(step, step + 1))
            x, y = batch(step)
            F.cross_entropy(twin(x), y).backward()
            for name, mask in training.masks.items():
                weights[name].grad.mul_(mask)  # type: ignore[union-attr]
            twin_optimizer.step()
            twin_optimizer.zero_grad()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_clipping_sees_active_weights_alone(self) -> None:
        model, _, training = hold(0.9)
        x, y = batch(0)
        F.cross_entropy(model(x), y).backward()
        for name, mask in training.masks.items():
            gradient = dict(model.named_parameters())[name].grad
            assert gradient is not None
            assert not gradient[~mask].any()
            assert gradient[mask].any()

    def test_accumulation_grows_by_the_sum_of_the_gradients(self) -> None:
        results = []
        for pieces in (1, 4):
            model, optimizer, training = hold(0.8, model=mlp(64, 32, 4), method=RigL(every=1), total_steps=4)
            for step in range(4):
                x, y = batch(step, 16)
                for part_x, part_y in zip(x.flatten(1).chunk(pieces), y.chunk(pieces), strict=True):
                    (F.cross_entropy(model(part_x), part_y) / pieces).backward()
                optimizer.step()
                optimizer.zero_grad()
            results.append(training.masks.hash())
        assert results[0] == results[1]

    def test_gradscaler_skips_and_counts_nothing(self) -> None:
        model, optimizer, training = hold(0.8, model=mlp(64, 32, 4), method=RigL(every=2), total_steps=8)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(6):
            x, y = batch(step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x.flatten(1)), y)
            if step == 3:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert training.step == 5
        assert [entry["step"] for entry in training.history] == [2, 4]
        assert not off(model, training).any()

    def test_a_nan_gradient_skips_the_update_and_says_so(self) -> None:
        model, optimizer, training = hold(0.8, model=mlp(64, 32, 4), method=RigL(every=1), total_steps=8)
        before = training.masks
        x, y = batch(0)
        F.cross_entropy(model(x.flatten(1)), y).backward()
        next(model.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
        with pytest.warns(UserWarning, match=r"update of step 1 is skipped.*0\.weight holds NaN"):
            optimizer.step()
        assert training.masks == before
        assert "NaN" in training.history[0]["skipped"]

    def test_compile(self) -> None:
        losses = []
        for compiled in (False, True):
            model, optimizer, training = hold(0.8, model=mlp(64, 32, 4), method=RigL(every=2), total_steps=8)
            forward = torch.compile(model, backend="aot_eager") if compiled else model
            losses.append(train(forward, optimizer, range(6), flat=True))  # type: ignore[arg-type]
            assert not off(model, training).any()
        assert losses[0] == pytest.approx(losses[1])

    def test_names_of_a_compiled_model_are_plain(self) -> None:
        model = torch.compile(mlp(64, 32, 4), backend="eager")
        training = SparseTraining(model, sgd(model), sparsity=0.5, method=Static())  # type: ignore[arg-type]
        assert list(training.masks) == ["0.weight"]

    @pytest.mark.parametrize("method", [RigL(every=2), SET(every=2)], ids=["rigl", "set"])
    def test_a_closure_computes_the_same(self, method: Method) -> None:
        runs = []
        for closed in (False, True):
            model, optimizer, training = hold(0.8, model=mlp(64, 32, 4), method=method, total_steps=8)
            for step in range(6):
                x, y = batch(step)

                def compute(model: nn.Module = model, x: Tensor = x, y: Tensor = y) -> Tensor:
                    loss = F.cross_entropy(model(x.flatten(1)), y)
                    loss.backward()
                    return loss

                if closed:
                    optimizer.step(compute)
                else:
                    compute()
                    optimizer.step()
                optimizer.zero_grad()
            runs.append((training.masks.hash(), float(next(model.parameters()).detach().sum()), training.step))
        assert runs[0] == runs[1]

    def test_a_moving_average_is_masked_on_request(self) -> None:
        model, optimizer, training = hold(0.8, method=SET(every=1))
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        for step in range(4):
            train(model, optimizer, range(step, step + 1))
            average.update_parameters(model)
        assert off(average.module, training).any()
        training.apply_(average)
        assert not off(average.module, training).any()

    def test_tied_weights_have_one_mask(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
                self.b.weight = self.a.weight

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.out(self.b(self.a(x).relu()))
                return out

        model = Tied()
        training = SparseTraining(model, sgd(model), sparsity=0.5, method=RigL(every=1), total_steps=4)
        assert list(training.masks) == ["a.weight"]
        for _ in range(3):
            model(torch.randn(4, 16)).sum().backward()
            training.optimizer.step()
        assert int((model.b.weight != 0).sum()) == 128
        ones = torch.ones(16, 16).bool()
        with pytest.raises(RecipeError, match="two masks to one tied weight"):
            SparseTraining(model, sgd(model), method=Static(), masks={"a.weight": ones, "b.weight": ones})

    def test_shaking(self) -> None:
        model, optimizer, training = hold(0.8, model=mlp(64, 32, 4))
        before = training.masks["0.weight"]
        training.shake(0.8)
        train(model, optimizer, range(1), flat=True)
        both = (before & training.masks["0.weight"]).sum() / (before | training.masks["0.weight"]).sum()
        assert 1 / 9 - 0.01 <= float(both) < 0.9
        after = training.masks["0.weight"]
        train(model, optimizer, range(1, 3), flat=True)
        assert torch.equal(after, training.masks["0.weight"])
        with pytest.raises(RecipeError, match="fraction"):
            training.shake(0)

    def test_removing_sets_the_weights_free(self) -> None:
        model, optimizer, training = hold(0.8)
        training.remove()
        train(model, optimizer, range(2))
        assert off(model, training).any()

    def test_masks_are_handed_over(self) -> None:
        _, _, first = hold(0.8)
        model, optimizer, second = hold(sparsity=None, masks=first.masks, model=conv_net(seed=3))  # type: ignore[arg-type]
        assert second.masks == first.masks
        train(model, optimizer, range(3))
        assert second.masks == first.masks

    def test_the_table_names_every_layer(self) -> None:
        _, _, training = hold(0.8)
        text = str(training)
        assert "8.weight" in text
        assert "dense (head" in text
        assert "80.00% zeros" in text
