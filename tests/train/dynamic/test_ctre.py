"""CTRE: cosines by hand, growth by them, and the networks it refuses."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.train.small import batch, mlp, sgd, train
from torch import Tensor, nn

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.train import CTRE, SparseTraining
from lowdim.train.dynamic.correlation import Correlation


def watched(*sizes: int, **settings: Any) -> tuple[nn.Sequential, SparseTraining]:
    model = mlp(*sizes)
    return model, SparseTraining(model, sgd(model), sparsity=0.7, method=CTRE(every=2, **settings))


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(y.t()[:, None], x.t()[None], dim=-1).abs()


class TestCorrelation:
    def test_the_example_of_two_columns(self) -> None:
        model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
        model[0].weight.data.fill_(1.0)  # type: ignore[operator]
        seen = Correlation("0", model[0], model[1], model)  # type: ignore[arg-type]
        for x in torch.eye(2):
            model(x[None])
        assert seen.cosine()[0].tolist() == pytest.approx([0.5**0.5] * 2)
        seen.clear()
        model(torch.tensor([[1.0, -1.0], [2.0, -2.0]]))
        assert seen.cosine()[0].tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("activations", ["pass", "training"])
    def test_batches_add_up_to_one_pass_over_all_behind_the_activation(self, activations: str) -> None:
        model, training = watched(6, 5, 4, 3, activations=activations)
        x = torch.randn(12, 6)
        for part in x.chunk(3):
            model(part)
        first, second = training._observers.values()
        hidden = [model[0](x).relu(), model[2](model[0](x).relu()).relu()]
        assert torch.allclose(first.cosine(), cosine(x, hidden[0]), atol=1e-5)
        # the head stays dense, yet what leaves the second layer is seen where it enters the head
        assert torch.allclose(second.cosine(), cosine(hidden[0], hidden[1]), atol=1e-5)

    def test_the_last_layer_has_a_softmax(self) -> None:
        model = mlp(6, 5, 3)
        training = SparseTraining(model, sgd(model), sparsity=0.5, method=CTRE(every=2), include=["*"])
        x = torch.randn(9, 6)
        out = model(x)
        last = list(training._observers.values())[-1]
        assert torch.allclose(last.cosine(), cosine(model[0](x).relu(), out.softmax(-1)), atol=1e-5)

    @pytest.mark.parametrize("other", ["evaluation", "overflow"])
    def test_what_does_not_count(self, other: str) -> None:
        model, training = watched(6, 5, 3)
        model(torch.randn(4, 6))
        seen = training._observers["0.weight"]
        before = seen.cosine()
        model.train(other != "evaluation")
        model(torch.randn(4, 6) * (1e30 if other == "overflow" else 1.0))
        assert torch.equal(seen.cosine(), before)

    def test_a_watched_model_can_be_copied_and_pickled(self) -> None:
        model, training = watched(6, 5, 4, 3)
        copied = copy.deepcopy(model)
        copied(torch.randn(4, 6))
        torch.save(model, io.BytesIO())
        with pytest.raises(LowdimError, match="saw no training batch"):
            training._observers["0.weight"].cosine()


class TestPasses:
    def trained(self, activations: str) -> tuple[nn.Sequential, SparseTraining, Tensor]:
        """Return a network with dropout whose weights have moved since it saw the batches."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        training = SparseTraining(
            model,
            sgd(model, lr=0.5),
            sparsity=0.5,
            method=CTRE(every=9, activations=activations),  # type: ignore[arg-type]
        )
        x = torch.randn(20, 6)
        for part in x.split(10):
            model(part).square().sum().backward()
            training.optimizer.step()
        return model, training, x

    def test_the_pass_has_no_dropout_and_the_weights_of_the_moment(self) -> None:
        model, training, x = self.trained("pass")
        found = training._observers["0.weight"].cosine()
        assert model.training
        with torch.no_grad():
            expected = cosine(x, model[0](x).relu())
        assert torch.allclose(found, expected, atol=1e-5)
        other = self.trained("training")[1]._observers["0.weight"].cosine()
        assert not torch.allclose(other, expected, atol=1e-2)

    def test_batches_that_come_later_count_too(self) -> None:
        model, training, x = self.trained("pass")
        seen = training._observers["0.weight"]
        seen.cosine()
        more = torch.randn(5, 6)
        model(more)
        x = torch.cat([x, more])
        with torch.no_grad():
            assert torch.allclose(seen.cosine(), cosine(x, model[0](x).relu()), atol=1e-5)

    def test_no_more_is_held_than_an_update_looks_at(self) -> None:
        model = mlp(64, 32, 4)
        method = CTRE(every=2, until=0.2)
        training = SparseTraining(model, sgd(model), sparsity=0.7, method=method, total_steps=20)
        held = []
        for step in range(8):
            train(model, training.optimizer, range(step, step + 1), flat=True)
            held.append(len(training._observers["0.weight"]._passes.inputs))
        assert [entry["step"] for entry in training.history] == [2, 4]
        assert held == [1, 0, 1, 0, 1, 2, 2, 2]
        training.shake(0.5)
        train(model, training.optimizer, range(8, 9), flat=True)
        assert training.history[-1]["step"] == 9

    def test_arguments_by_name_are_run_again(self) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

            def forward(self, *, x: Tensor, scale: float) -> Any:
                return self.b(self.a(x * scale).relu())

        model = Named()
        training = SparseTraining(model, sgd(model), sparsity=0.5, method=CTRE(every=1))
        x = torch.randn(9, 6)
        model(x=x, scale=2.0)
        x.zero_()  # a buffer that the next batch overwrites
        assert training._observers["a.weight"].cosine().any()


class TestGrowth:
    def test_new_weights_are_uniform_by_the_inputs(self) -> None:
        model = mlp(64, 32, 4)
        training = SparseTraining(model, sgd(model, lr=0.0), sparsity=0.7, method=CTRE(every=1, drop=0.5))
        before = training.masks["0.weight"]
        train(model, training.optimizer, range(1), flat=True)
        new = training.masks["0.weight"] & ~before
        values = model[0].weight.detach()[new].abs()  # type: ignore[operator]
        bound = (6 / 64) ** 0.5
        assert 0.95 * bound < float(values.max()) < bound
        assert float(values.mean()) == pytest.approx(bound / 2, rel=0.1)

    def test_of_those_dropped_a_sequential_one_goes_on(self) -> None:
        model = mlp(4, 1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        mask = {"0.weight": torch.tensor([[True, True, True, False]])}
        method = CTRE(every=1, drop=0.67, mode="sequential", noise=0.0)
        training = SparseTraining(model, optimizer, masks=mask, method=method, total_steps=10)
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[3.0, 0.25, 0.5, 0.0]]))  # type: ignore[operator]
            model[0].bias.fill_(5.0)  # type: ignore[operator]
        # the output is (8, 8, 8.25): cosines 1 / sqrt(3) for single pulses, 1 for the constant fourth input
        model(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]])).sum().backward()
        optimizer.step()
        assert training.masks["0.weight"].tolist() == [[True, True, False, True]]
        after = model[0].weight.tolist()[0]  # type: ignore[operator]
        assert after[:3] == [3.0, 0.25, 0.0]
        assert 0 < abs(after[3]) < (6 / 4) ** 0.5

    def update(self, mode: str, step: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mask before and after one update, and the cosines it was made by."""
        model = mlp(6, 8, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        method = CTRE(every=1, drop=0.5, mode=mode, noise=0.0)
        training = SparseTraining(model, optimizer, sparsity=0.75, method=method, total_steps=10)
        training.step = step - 1
        x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        model(x).sum().backward()
        scores = cosine(x, model[0](x).relu()).detach()
        before = training.masks["0.weight"]
        optimizer.step()
        return before, training.masks["0.weight"], scores

    def kept(self, before: Tensor) -> Tensor:
        weight = mlp(6, 8, 3)[0].weight.detach().abs() * before  # type: ignore[operator]
        order = weight.flatten().argsort(descending=True)[: int(before.sum()) - int(before.sum()) // 2]
        return torch.zeros(48, dtype=torch.bool).index_fill(0, order, True).reshape(8, 6)

    def test_sequential_takes_the_best_just_dropped_or_not(self) -> None:
        before, after, scores = self.update("sequential")
        kept = self.kept(before)
        best = scores.masked_fill(kept, -1.0).flatten().topk(int(before.sum()) // 2).indices
        assert torch.equal(after, kept.flatten().index_fill(0, best, True).reshape(8, 6))

    def test_similarity_refuses_those_just_dropped(self) -> None:
        before, after, scores = self.update("similarity")
        kept = self.kept(before)
        dropped = before & ~kept
        best = torch.zeros(48, dtype=torch.bool)
        best[scores.masked_fill(kept, -1.0).flatten().topk(int(dropped.sum())).indices] = True
        assert not (after & dropped).any()
        assert (after | ~(best.reshape(8, 6) & ~dropped)).all()
        assert int(after.sum()) == int(before.sum())

    def test_sequential_grows_at_random_after_the_switch(self) -> None:
        assert not torch.equal(self.update("sequential", 6)[1], self.update("sequential", 1)[1])

    def test_an_update_sees_the_batches_since_the_last_one_alone(self) -> None:
        model, training = watched(64, 32, 4)
        train(model, training.optimizer, range(2), flat=True)
        assert not training._observers["0.weight"]._cross.any()

    def test_resumes_to_the_bit(self) -> None:
        whole_model, whole = watched(64, 32, 16, 4)
        train(whole_model, whole.optimizer, range(7), flat=True)
        model, training = watched(64, 32, 16, 4)
        train(model, training.optimizer, range(3), flat=True)
        states = [copy.deepcopy(x.state_dict()) for x in (model, training.optimizer, training)]
        model, training = watched(64, 32, 16, 4)
        for target, state in zip((model, training.optimizer, training), states, strict=True):
            target.load_state_dict(state)
        train(model, training.optimizer, range(3, 7), flat=True)
        assert training.masks == whole.masks


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(x).relu().mean(1)).relu())


class Parallel(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.a(x).repeat(1, 1, 2) * self.b(x))


class Backwards(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.a(self.b(x).relu()))


class TestOtherNetworks:
    @pytest.mark.parametrize("make", [Pooled, Parallel])
    def test_layers_that_are_not_chained(self, make: Callable[[], nn.Module]) -> None:
        model = make()
        SparseTraining(model, sgd(model), sparsity=0.5, method=CTRE(every=1))
        with pytest.raises(LowdimError, match="is fed with something else"):
            model(torch.randn(4, 5, 8))

    def test_layers_defined_in_another_order(self) -> None:
        model = Backwards()
        with pytest.raises(RecipeError, match="takes 8 inputs where this one has 16"):
            SparseTraining(model, sgd(model), sparsity=0.5, method=CTRE(every=1))

    def test_a_model_that_is_not_in_training_mode(self) -> None:
        model, training = watched(64, 32, 4)
        with pytest.raises(LowdimError, match=r"no training batch.*0\.weight"):
            train(model.eval(), training.optimizer, range(2), flat=True)

    def test_groups(self) -> None:
        model = mlp(8, 8, 4)
        with pytest.raises(RecipeError, match="similarity"):
            SparseTraining(model, sgd(model), method=CTRE(every=1), pattern="2:4")
        training = SparseTraining(
            model, sgd(model), method=CTRE(every=1, mode="sequential"), pattern="2:4", total_steps=9
        )
        model(batch(0)[0].flatten(1)[:, :8]).sum().backward()
        training.optimizer.step()
        assert (training.masks["0.weight"].reshape(-1, 4).sum(1) == 2).all()
