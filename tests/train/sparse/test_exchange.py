"""The hand-computed examples of the papers' rules, driven through the optimizer's hooks."""

from __future__ import annotations

import pytest
import torch
from tests.train.small import one_row, step_with

from lowdim.core.errors import RecipeError
from lowdim.core.transition import drop_by_sign
from lowdim.train import ITOP, SET, GradualMagnitude, GraNet, NeurRev, RigL, SparseTraining, Static

WEIGHTS, MASK = [0.9, -0.1, 0.5, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0]


def rigl(**settings: object) -> RigL:
    return RigL(every=1, until=1.0, drop=0.4, schedule="constant", **settings)  # type: ignore[arg-type]


class TestRigL:
    def test_drops_the_smallest_and_grows_the_largest_gradient(self) -> None:
        model, training = one_row(WEIGHTS, MASK, rigl())
        assert step_with(model, training, [9, 0.2, 9, 0.3, 0.7, 0.1]) == [1, 0, 1, 0, 1, 0]
        assert model.weight[0].tolist() == pytest.approx([0.9, 0, 0.5, 0, 0, 0])

    def test_a_weight_just_dropped_may_come_back_as_it_was(self) -> None:
        model, training = one_row(WEIGHTS, MASK, rigl())
        assert step_with(model, training, [9, 0.8, 9, 0.3, 0.7, 0.1]) == MASK
        assert model.weight[0].tolist() == pytest.approx([0.9, -0.1, 0.5, 0, 0, 0])

    def test_unless_only_new_weights_are_candidates(self) -> None:
        model, training = one_row(WEIGHTS, MASK, rigl(candidates="new"))
        assert step_with(model, training, [9, 0.8, 9, 0.3, 0.7, 0.1]) == [1, 0, 1, 0, 1, 0]

    @pytest.mark.parametrize("gradient", [[[1.0, 2, 0, 0], [9, 9, 9, 9], [0, 0, 5, 0]]])
    def test_or_only_weights_of_outputs_that_keep_one(self, gradient: list[list[float]]) -> None:
        masks = []
        for candidates in ("any", "live"):
            model = torch.nn.Linear(4, 3, bias=False)
            mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
            training = SparseTraining(
                model,
                torch.optim.SGD(model.parameters(), lr=0.0),
                method=rigl(candidates=candidates),
                masks={"weight": mask},
                total_steps=4,
            )
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[5.0, 0, 1, 2], [0, 0, 0, 0], [6, 7, 0, 0]]))
            model.weight.grad = torch.tensor(gradient)
            training.optimizer.step()
            masks.append(training.masks["weight"].int().tolist())
        assert masks[0] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
        assert masks[1] == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]

    def test_an_update_takes_the_place_of_the_optimizer_step(self) -> None:
        model, training = one_row(WEIGHTS, MASK, rigl())
        training.optimizer.param_groups[0]["lr"] = 1.0
        step_with(model, training, [9, 0.2, 9, 0.3, 0.7, 0.1])
        assert model.weight[0].tolist() == pytest.approx([0.9, 0, 0.5, 0, 0, 0])
        assert not training.optimizer.state
        assert model.weight.grad is not None
        assert model.weight.grad[0].tolist() == pytest.approx([9, 0, 9, 0, 0.7, 0])

    def test_or_follows_it(self) -> None:
        model, training = one_row(WEIGHTS, MASK, rigl(order="after_step"))
        training.optimizer.param_groups[0]["lr"] = 0.1
        assert step_with(model, training, [1, 0.2, 1, 0.3, 0.7, 0.1]) == [1, 0, 1, 0, 1, 0]
        assert model.weight[0].tolist() == pytest.approx([0.8, 0, 0.4, 0, 0, 0])

    @pytest.mark.parametrize("share", [0.0, 1e-3])
    def test_nothing_to_drop_is_static(self, share: float) -> None:
        model, training = one_row(WEIGHTS, MASK, RigL(every=1, drop=share))
        assert step_with(model, training, [1, 2, 3, 4, 5, 6]) == MASK

    def test_stops_before_its_end(self) -> None:
        method = RigL(every=100, until=0.75)
        assert [t for t in range(1, 1001) if method.due(t, 1000)] == [100, 200, 300, 400, 500, 600, 700]

    def test_grown_weights_start_without_momentum(self) -> None:
        model, training = one_row(WEIGHTS, MASK, RigL(every=2, until=1.0, drop=0.4, schedule="constant"))
        step_with(model, training, [1, 1, 1, 9, 9, 9])
        momentum = training.optimizer.state[model.weight]["momentum_buffer"]
        assert momentum[0].tolist() == [1, 1, 1, 0, 0, 0]
        assert step_with(model, training, [1, 1, 1, 0, 2, 0]) == [1, 0, 1, 0, 1, 0]
        assert momentum[0].tolist() == [1, 0, 1, 0, 0, 0]

    @pytest.mark.parametrize(
        ("setting", "value", "match"),
        [
            ("drop", 1.5, "drop must be"),
            ("every", 0, "every"),
            ("until", -1, "until"),
            ("order", "before", "order"),
        ],
    )
    def test_bad_settings(self, setting: str, value: object, match: str) -> None:
        with pytest.raises(RecipeError, match=match):
            RigL(**{setting: value})  # type: ignore[arg-type]


class TestSET:
    VALUES = (0.01, 0.02, 0.5, 0.9, -0.6, -0.7, -0.8, -0.9)

    def dropped(self, method: SET, values: tuple[float, ...] = VALUES) -> set[float]:
        model, training = one_row([*values, *[0.0] * 40], [1] * 8 + [0] * 40, method)
        before = model.weight.detach().clone()
        step_with(model, training, [0.0] * 48)
        assert int(training.masks["weight"].sum()) == 8
        changed = (model.weight.detach() != before)[0, :8]
        return {round(float(w), 4) for w in before[0, :8][changed]}

    def test_each_sign_loses_its_share(self) -> None:
        assert self.dropped(SET(every=1, drop=0.25)) == {0.01, -0.6}

    def test_the_paper_example(self) -> None:
        assert self.dropped(SET(every=1, drop=0.25), (0.05, 0.2, 0.5, 0.9, -0.1, -0.3, -0.4, -0.8)) == {
            0.05,
            -0.1,
        }

    def test_equal_counts_differ_where_signs_do(self) -> None:
        values = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, -0.6, -0.7)
        assert self.dropped(SET(every=1, drop=0.5), values) == {0.01, 0.02, 0.03, -0.6}
        assert self.dropped(SET(every=1, drop=0.5, rule="sign-count"), values) == {0.01, 0.02, -0.6, -0.7}

    def test_new_weights_are_normal(self) -> None:
        torch.manual_seed(0)
        weights = torch.randn(1000).tolist()
        model, training = one_row(weights + [0.0] * 3000, [1] * 1000 + [0] * 3000, SET(every=1, drop=0.3))
        step_with(model, training, [0.0] * 4000)
        grown = model.weight.detach()[0, 1000:][training.masks["weight"][0, 1000:]]
        assert len(grown) > 150
        assert 0.08 < float(grown.std()) < 0.12

    def test_new_weights_are_always_trained(self) -> None:
        assert [t for t in range(1, 41) if SET(every=10).due(t, 40)] == [10, 20, 30]
        assert SET(every=10).due(40, None)

    def test_zero_share_is_static(self) -> None:
        assert self.dropped(SET(every=1, drop=0.0)) == set()

    def test_exact_zeros_go_first_among_the_positive(self) -> None:
        weights = torch.tensor([0.5, 0.0, 0.9, 0.0, -0.1, -0.2])
        assert drop_by_sign(weights, 0.5).tolist() == [True, False, True, False, False, True]


class TestITOP:
    def test_rate_counts_every_weight_that_was_ever_active(self) -> None:
        weights, mask = [1.0, 2, 3, 4, *[0.0] * 12], [1] * 4 + [0] * 12
        model, training = one_row(weights, mask, ITOP(every=1, drop=0.5, floor=0.5, grow="unfired"))
        assert training.explored() == 4 / 16
        step_with(model, training, [0.0] * 16)
        step_with(model, training, [0.0] * 16)
        assert training.explored() == training.explored("weight") == 8 / 16
        assert [entry["grown"]["weight"] for entry in training.history] == [2, 2]

    def test_the_count_is_rounded_up(self) -> None:
        model, training = one_row(
            [1.0, 2, 3, *[0.0] * 9], [1] * 3 + [0] * 9, ITOP(every=1, drop=0.4, floor=0.4)
        )
        step_with(model, training, [0.0] * 12)
        assert training.history[0]["dropped"]["weight"] == 2 or training.history[0]["grown"]["weight"] < 2
        assert int(training.masks["weight"].sum()) == 3

    def test_taylor_drops_what_changes_the_loss_least(self) -> None:
        method = ITOP(every=1, drop=0.25, floor=0.25, death="taylor", grow="gradient")
        model, training = one_row([1.0, 2, 3, 4, 0, 0], [1, 1, 1, 1, 0, 0], method)
        assert step_with(model, training, [9, 9, 0.1, 9, 1, 2]) == [1, 1, 0, 1, 0, 1]

    def test_static_masks_explore_nothing(self) -> None:
        model, training = one_row(WEIGHTS, MASK, Static())
        for _ in range(3):
            step_with(model, training, [1.0] * 6)
        assert training.explored() == 0.5

    def test_dead_zeros_are_dropped_one_by_one(self) -> None:
        method = ITOP(every=1, drop=0.25, floor=0.25, grow="gradient")
        model, training = one_row([0.0, 0, 0, 4, 0, 0], [1, 1, 1, 1, 0, 0], method)
        assert step_with(model, training, [0, 0, 0, 0, 1, 2]) == [1, 1, 0, 1, 0, 1]

    def test_random_growth_explores_as_expected(self) -> None:
        rates = []
        for seed in range(20):
            weights = [1.0] * 100 + [0.0] * 900
            model, training = one_row(
                weights,
                [1] * 100 + [0] * 900,
                ITOP(every=1, drop=0.3, floor=0.3, candidates="new"),
                seed=seed,
            )
            for _ in range(10):
                step_with(model, training, [0.0] * 1000)
            rates.append(training.explored())
        expected = 1 - 0.9 * (1 - 30 / 900) ** 10
        assert sum(rates) / 20 == pytest.approx(expected, abs=0.01)


class TestGradual:
    def test_reaches_the_target_exactly_and_never_grows(self) -> None:
        weights = [float(i + 1) for i in range(100)]
        model, training = one_row(
            weights, [1] * 100, GradualMagnitude(every=2, until=0.8), sparsity=0.9, total_steps=10
        )
        kept = [sum(step_with(model, training, [0.0] * 100)) for _ in range(10)]
        assert kept == [100, 48, 48, 21, 21, 11, 11, 10, 10, 10]
        assert training.masks["weight"][0, 90:].all()

    def test_granet_without_churn_is_gradual_pruning(self) -> None:
        torch.manual_seed(0)
        weights = torch.randn(60).tolist()
        runs = []
        for method in (GradualMagnitude(every=1, until=0.5), GraNet(every=1, until=0.5, drop=0.0, floor=0.0)):
            model, training = one_row(weights, [1] * 60, method, sparsity=0.75, total_steps=8)
            runs.append([step_with(model, training, [1.0] * 60) for _ in range(8)])
        assert runs[0] == runs[1]

    def test_granet_regenerates_after_pruning_has_ended(self) -> None:
        weights = torch.linspace(1, 2, 40).tolist()
        method = GraNet(every=1, until=0.5, drop=0.5, floor=0.5)
        model, training = one_row(weights, [1] * 40, method, sparsity=0.75, total_steps=8)
        gradient = torch.linspace(2, 1, 40)
        kept = [sum(step_with(model, training, gradient.roll(7 * i).tolist())) for i in range(8)]
        assert kept == sorted(kept, reverse=True)
        assert kept[4:] == [10] * 4
        assert sum(training.history[-1]["grown"].values()) > 0

    def test_granet_from_sparse_to_sparse_equals_itop_when_the_density_stands(self) -> None:
        torch.manual_seed(1)
        weights, mask = torch.randn(40).tolist(), [1] * 10 + [0] * 30
        settings = {"every": 1, "drop": 0.4, "floor": 0.1}
        runs = []
        for method in (GraNet(start=0.75, **settings), ITOP(grow="gradient", **settings)):  # type: ignore[arg-type]
            model, training = one_row(weights, mask, method, sparsity=0.75, total_steps=6)
            runs.append([step_with(model, training, torch.arange(40.0).tolist()) for _ in range(6)])
        assert runs[0] == runs[1]

    def test_a_start_beyond_the_target(self) -> None:
        with pytest.raises(RecipeError, match="start must be at most"):
            GraNet(start=0.9).initial(0.5)


class TestNeurRev:
    def test_frees_a_dormant_neuron(self) -> None:
        method = NeurRev(every=1, until=1.0, drop=0.34, schedule="constant", rho=1.0)
        model, training = one_row([0.2, 0.3, -2.0, 0.0], [1, 1, 1, 0], method)
        x = torch.ones(1, 4)
        assert float(model(x).detach().relu()) == 0.0
        assert step_with(model, training, [0, 0, 0, 1]) == [1, 1, 0, 1]
        assert float(model(x).detach().relu()) == pytest.approx(0.5)

    def test_without_its_share_it_is_rigl(self) -> None:
        torch.manual_seed(0)
        weights, mask = torch.randn(30).tolist(), [1] * 15 + [0] * 15
        runs = []
        for method in (RigL(every=1), NeurRev(every=1, rho=0.0)):
            model, training = one_row(weights, mask, method)
            runs.append([step_with(model, training, torch.arange(30.0).tolist()) for _ in range(7)])
        assert runs[0] == runs[1]
