"""What optimizers remember of weights that are off: nothing, whoever filled their state, and whoever replaces them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.train.small import batch, mlp, sgd, train
from torch import Tensor, nn
from torch.nn import functional as F

from lowdim.core.errors import LowdimError
from lowdim.nn.csr.swap import sparse_
from lowdim.train import SET, RandomMasks, RigL, SparseTraining, Static
from lowdim.train.sparse.state import begin, per_weight

REFUSED = {"LBFGS", "SparseAdam"}  # several gradients in a step; gradients that are stored sparsely
NAMES = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and name not in {"Optimizer", *REFUSED}
)


def make(name: str, model: nn.Module) -> torch.optim.Optimizer:
    cls = getattr(torch.optim, name)
    extra: dict[str, Any] = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    chosen = [p for p in model.parameters() if p.ndim == 2] if name == "Muon" else model.parameters()
    made: torch.optim.Optimizer = cls(chosen, lr=0.01, **extra)
    return made


def leaks(training: SparseTraining) -> dict[str, int]:
    """Count what an optimizer remembers of weights that are off, by key."""
    found: dict[str, int] = {}
    for layer in training.layers:
        for key, state in per_weight(training.optimizer, layer.parameter, layer.name).items():
            start = begin(training.optimizer, layer.parameter, key)
            found[key] = found.get(key, 0) + int((state[~layer.mask()] != start).sum())
    return found


class TestStateFromBefore:
    """Of a dense warm-up, of a checkpoint, of a dense run's optimizer."""

    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_cleared_at_construction_and_after_loading(self, name: str) -> None:
        model = mlp(64, 32, 16, 4)
        optimizer = make(name, model)
        train(model, optimizer, range(3), flat=True)
        dense = copy.deepcopy(optimizer.state_dict())
        training = SparseTraining(model, optimizer, sparsity=0.8, method=RigL(every=2), total_steps=20)
        assert not any(leaks(training).values())
        train(model, optimizer, range(3, 6), flat=True)
        optimizer.load_state_dict(dense)
        assert not any(leaks(training).values())
        train(model, optimizer, range(6, 9), flat=True)
        assert not any(leaks(training).values())
        assert all(not layer.astray() for layer in training.layers)

    @pytest.mark.parametrize("order", ["optimizer first", "training first", "before construction"])
    @pytest.mark.parametrize("name", ["AdamW", "Rprop", "Adagrad"])
    def test_what_the_checkpoint_knows_of_its_own_weights_stays(self, name: str, order: str) -> None:
        model = mlp(64, 32, 4)
        optimizer = make(name, model)
        training = SparseTraining(model, optimizer, sparsity=0.8, method=SET(every=2), seed=1)
        train(model, optimizer, range(5), flat=True)
        states = copy.deepcopy([x.state_dict() for x in (model, optimizer, training)])

        again = mlp(64, 32, 4, seed=3)
        again.load_state_dict(states[0])
        other = make(name, again)
        if order == "before construction":
            other.load_state_dict(states[1])
        resumed = SparseTraining(again, other, sparsity=0.8, method=SET(every=2), seed=1)
        if order == "optimizer first":
            other.load_state_dict(states[1])
        resumed.load_state_dict(states[2])
        if order == "training first":
            other.load_state_dict(states[1])
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            for key, value in optimizer.state[a].items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.state[b][key])), key


class Free(torch.optim.Optimizer):
    """Schedule-free descent: weights in training are between the iterate z and the average that is evaluated."""

    def __init__(self, params: Any, lr: float = 0.05, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "train_mode": False, "k": 0})

    @torch.no_grad()
    def _turn(self, on: bool, weight: Callable[[float], float]) -> None:
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != on else []:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight(group["beta"]))
            group["train_mode"] = on

    def train(self) -> None:
        self._turn(True, lambda beta: 1 - beta)

    def eval(self) -> None:
        self._turn(False, lambda beta: 1 - 1 / beta)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("not in train mode")
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                z = state.setdefault("z", p.clone())
                p.lerp_(z, 1 / group["k"])
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["k"]) - 1))
                z.sub_(p.grad, alpha=group["lr"])


@pytest.mark.parametrize("method", [Static(), SET(every=2)], ids=["static", "set"])
def test_the_weights_that_schedule_free_evaluates_are_zero_too(method: Any) -> None:
    model = mlp(64, 32, 16, 4)
    optimizer = Free(model.parameters())
    optimizer.train()
    train(model, optimizer, range(5), flat=True)
    training = SparseTraining(model, optimizer, sparsity=0.8, method=method)
    for turn in range(3):
        optimizer.train()
        train(model, optimizer, range(5 * turn, 5 * turn + 5), flat=True)
        optimizer.eval()
        assert all(not layer.astray() for layer in training.layers)
        assert training.sparsity() == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("stored", ["masked", "csr"])
def test_what_schedule_free_grows_with_a_value_has_it_in_both_copies(stored: str) -> None:
    model = mlp(64, 32, 4)
    if stored == "csr":
        sparse_(model, RandomMasks().masks(model, sparsity=0.8))
    optimizer = Free(model.parameters())
    optimizer.train()
    given = {} if stored == "csr" else {"sparsity": 0.8}
    training = SparseTraining(model, optimizer, method=SET(every=2), **given)  # type: ignore[arg-type]
    train(model, optimizer, range(1), flat=True)
    before = training.masks["0.weight"]
    train(model, optimizer, range(1, 2), flat=True)
    grown = (training.masks["0.weight"] & ~before).flatten()
    layer = training.layers[0]
    at = grown[layer.positions()] if stored == "csr" else grown
    weight, z = (t.detach().flatten()[at] for t in (layer.parameter, optimizer.state[layer.parameter]["z"]))
    assert weight.any()
    assert torch.equal(weight, z)


class Coded(torch.optim.SGD):
    """Keeps its momentum in eight bits, as 8-bit optimizers do."""

    kept: Callable[[Tensor], Any] = staticmethod(lambda p: torch.zeros_like(p, dtype=torch.uint8))

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["state1"] = self.kept(p)
        return super().step(closure)


class Wrapped(Coded):
    """In tensors of a class of their own."""

    kept = staticmethod(lambda p: torch.zeros_like(p).as_subclass(type("Tensor8bit", (Tensor,), {})))


class Blockwise(Coded):
    """With a scale for each block."""

    kept = staticmethod(lambda p: torch.zeros(p.numel() // 256))


class Eigen(Coded):
    """With a matrix of its own, as Shampoo and SOAP keep."""

    kept = staticmethod(lambda p: [torch.eye(s) for s in p.shape])


class TestRefusedAtConstruction:
    @pytest.mark.parametrize("cls", [Coded, Wrapped, Blockwise, Eigen, torch.optim.LBFGS], ids=lambda cls: cls.__name__)
    def test_before_anything_is_changed(self, cls: Any) -> None:
        model = mlp(64, 32, 4)
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        with pytest.raises(LowdimError, match=cls.__name__):
            SparseTraining(model, cls(model.parameters(), lr=0.1), sparsity=0.5, method=SET(), total_steps=200)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert torch.equal(state, torch.get_rng_state())
        SparseTraining(model, sgd(model), sparsity=0.5, method=Static())

    def test_one_that_cannot_be_made_again_shows_at_its_first_step(self) -> None:
        class Choosy(Coded):
            def __init__(self, params: Any, must: str) -> None:
                super().__init__(params, lr=0.1)

        model = mlp(64, 32, 4)
        optimizer = Choosy(model.parameters(), "be given")
        SparseTraining(model, optimizer, sparsity=0.5, method=SET(), total_steps=200)
        with pytest.raises(LowdimError, match="Choosy keeps 'state1'"):
            train(model, optimizer, range(1), flat=True)

    @pytest.mark.parametrize("cls", [Coded, Wrapped, Blockwise, Eigen], ids=lambda cls: cls.__name__)
    def test_only_where_masks_move(self, cls: Any) -> None:
        model = mlp(64, 32, 16, 4)
        optimizer = cls(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        training = SparseTraining(model, optimizer, sparsity=0.5, method=Static())
        train(model, optimizer, range(4), flat=True)
        weights = dict(model.named_parameters())
        assert all(torch.equal(weights[name] != 0, mask) for name, mask in training.masks.items())
        training.shake(0.5)
        with pytest.raises(LowdimError, match=f"{cls.__name__} keeps 'state1'"):
            train(model, optimizer, range(4, 5), flat=True)


class Outer(torch.optim.Optimizer):
    """Steps another optimizer, as Lookahead does."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class TestReplaced:
    @pytest.mark.parametrize("closed", [False, True])
    def test_another_optimizer_is_refused_before_its_step(self, closed: bool) -> None:
        model, other = mlp(64, 32, 16, 4), mlp(64, 8, 4)
        optimizer = sgd(model)
        training = SparseTraining(model, optimizer, sparsity=0.8, method=RigL(every=2), total_steps=20, include=["2"])
        train(model, optimizer, range(3), flat=True)
        before = copy.deepcopy(model.state_dict())
        new = torch.optim.AdamW(model.parameters())
        x, y = batch(3)

        def closure() -> Tensor:
            new.zero_grad()
            loss = F.cross_entropy(model(x.flatten(1)), y)
            loss.backward()
            return loss

        if not closed:
            closure()
        with pytest.raises(LowdimError, match=r"this AdamW would step 2\.weight.*\(SGD\).*masks=training\.masks"):
            new.step(closure if closed else None)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        train(other, torch.optim.AdamW(other.parameters()), range(1), flat=True)
        training.remove()
        again = SparseTraining(model, new, method=RigL(every=2), total_steps=20, masks=training.masks)
        train(model, new, range(3, 7), flat=True)
        assert again.step == 4
        assert again.sparsity() == pytest.approx(0.8, abs=1e-2)

    def test_one_without_gradients_for_the_weights_may_step(self) -> None:
        model = mlp(64, 32, 16, 4)
        SparseTraining(model, sgd(model), sparsity=0.8, method=Static(), include=["0"])
        F.mse_loss(model[4](torch.ones(1, 16)), torch.ones(1, 4)).backward()  # type: ignore[operator,index]
        torch.optim.AdamW(model.parameters()).step()

    def test_one_that_holds_the_optimizer_may_step(self) -> None:
        model = mlp(64, 32, 4)
        inner = sgd(model)
        training = SparseTraining(model, inner, sparsity=0.8, method=RigL(every=2), total_steps=20)
        train(model, Outer(inner), range(4), flat=True)
        assert training.step == 4
