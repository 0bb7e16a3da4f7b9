from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.prune import one
from torch import Tensor

from lowdim.prune.recipe import Recipe
from lowdim.prune.refine.dsnot import DSnoT
from lowdim.prune.refine.swap import SEQUENCE, swap

SETTINGS: dict[str, Any] = {"max_cycles": 50, "threshold": 0.1, "power": 1.0, "same_sign": False}


def by_hand(same_sign: bool) -> list[list[bool]]:
    weight, scores = torch.tensor([[1.0, -2.0, 3.0, 0.5]]), torch.tensor([[1.5, 3.0, 6.0, 1.1]])
    mean = torch.tensor([1.0, 1.0, 0.2, 2.0]) / SEQUENCE
    variance = torch.tensor([1.0, 1.0, 1.0, 0.25])
    kept = torch.tensor([[False, True, True, False]])
    made: list[list[bool]] = swap(weight, kept, mean, variance, scores, **SETTINGS | {"same_sign": same_sign}).tolist()
    return made


def test_four_columns_by_hand() -> None:
    assert by_hand(same_sign=False) == [[False, False, True, True]]
    assert by_hand(same_sign=True) == [[False, True, True, False]]


def problem(rows: int = 40, cols: int = 48) -> dict[str, Tensor]:
    weight, x = one.matrix(rows, cols), one.inputs(500, cols)
    scores = weight.abs() * x.square().mean(0).sqrt()
    return {
        "weight": weight,
        "mask": scores > scores.median(dim=1, keepdim=True).values,
        "mean": x.mean(0),
        "variance": x.var(0, correction=0),
        "scores": scores,
    }


def errors(given: dict[str, Tensor], kept: Tensor) -> Tensor:
    return (given["weight"] * given["mean"] * SEQUENCE * ~kept).sum(1)


def naive(given: dict[str, Tensor], settings: dict[str, Any], group: int = 0) -> Tensor:
    """Swap row by row, one weight at a time."""
    rows = []
    for w, kept, s in zip(given["weight"], given["mask"], given["scores"], strict=True):
        c, kept, s = w * given["mean"] * SEQUENCE, kept.clone(), s.clone()
        pruned_at_first, kept_at_first = (~kept).nonzero()[:, 0].tolist(), kept.nonzero()[:, 0].tolist()
        gain = c / given["variance"].pow(settings["power"])
        error, first = float(c[~kept].sum()), math.copysign(1, float(c[~kept].sum()))
        grown: set[int] = set()
        dropped: set[int] = set()
        for _ in range(settings["max_cycles"]):
            up = math.copysign(1, error)
            giving = {j // group for j in kept_at_first if j not in dropped} if group else set()
            to_grow = [j for j in pruned_at_first if c[j] * up > 0 and j not in grown]
            to_grow = [j for j in to_grow if not group or j // group in giving]
            if abs(error) <= settings["threshold"] or not to_grow:
                break
            grow = max(to_grow, key=lambda j: float(gain[j] * up))
            to_drop = [j for j in kept_at_first if j not in dropped]
            if group:
                to_drop = [j for j in to_drop if j // group == grow // group]
            else:
                to_drop = [j for j in to_drop if c[j] * up < 0]
            if not to_drop:
                break
            drop = min(to_drop, key=lambda j: float(s[j]))
            proposed = error + float(c[drop]) - float(c[grow])
            if (settings["same_sign"] or group) and math.copysign(1, proposed) != first:
                break
            error = proposed
            grown.add(grow)
            dropped.add(drop)
            kept[grow], kept[drop] = True, False
        rows.append(kept)
    return torch.stack(rows)


@pytest.mark.parametrize(
    "change",
    [{}, {"same_sign": True}, {"power": 0.0}, {"power": 2.0}, {"max_cycles": 3}, {"threshold": 300.0}],
    ids=str,
)
def test_equals_the_naive_loop(change: dict[str, Any]) -> None:
    given = problem()
    made = swap(**given, **SETTINGS | change)
    assert torch.equal(made, naive(given, SETTINGS | change))
    assert not torch.equal(made, given["mask"])


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (3, 8), (1, 4), (1, 8), (2, 16), (1, 2)])
def test_equals_the_naive_loop_within_groups(keep: int, group: int) -> None:
    given = problem()
    best = given["scores"].reshape(-1, group).argsort(dim=1, descending=True)[:, :keep]
    kept = torch.zeros(len(best), group, dtype=torch.bool).scatter_(1, best, True)
    given["mask"] = kept.reshape(given["weight"].shape)
    made = swap(**given, **SETTINGS, group=group)
    assert torch.equal(made, naive(given, SETTINGS, group))
    assert not torch.equal(made, given["mask"])
    assert (made.reshape(-1, group).sum(1) == keep).all()


def test_a_group_with_nothing_to_give_does_not_end_its_row() -> None:
    weight = torch.tensor([[0.1, 3.0, 2.0, 0.0, 0.1, 1.5, 0.0, 0.0]])
    kept = torch.zeros(1, 8, dtype=torch.bool)
    kept[0, [0, 4]] = True
    given = {"weight": weight, "mask": kept, "mean": torch.full((8,), 1 / SEQUENCE), "variance": torch.ones(8)}
    given["scores"] = torch.where(kept, 9.0, 1.0)
    once, done = (swap(**given, **SETTINGS | {"max_cycles": n}, group=4) for n in (1, 50))
    assert errors(given, once).item() == pytest.approx(3.6)
    assert errors(given, done).item() == pytest.approx(2.2)


@pytest.mark.parametrize(("keep", "group"), [(1, 4), (1, 8), (3, 16)])
def test_a_row_that_stops_in_groups_has_no_step_left_that_it_may_take(keep: int, group: int) -> None:
    given = problem()
    best = given["scores"].reshape(-1, group).argsort(dim=1, descending=True)[:, :keep]
    first = torch.zeros(len(best), group, dtype=torch.bool).scatter_(1, best, True).reshape(given["weight"].shape)
    given["mask"] = first
    made = swap(**given, **SETTINGS, group=group)
    giving = (first & made).reshape(len(made), -1, group).any(2).repeat_interleave(group, 1)
    for row, error in enumerate(errors(given, made).tolist()):
        c = given["weight"][row] * given["mean"] * SEQUENCE
        left = [j for j in range(48) if c[j] * error > 0 and not first[row, j] and not made[row, j] and giving[row, j]]
        if left and abs(error) > SETTINGS["threshold"]:  # then the next step would have turned the sign
            grow = max(left, key=lambda j: float(c[j].abs() / given["variance"][j]))
            span = range(grow // group * group, (grow // group + 1) * group)
            drop = min(
                (j for j in span if first[row, j] and made[row, j]), key=lambda j: float(given["scores"][row, j])
            )
            assert (error + c[drop] - c[grow]) * error <= 0


@pytest.mark.parametrize("same_sign", [False, True])
def test_rows_keep_their_counts_and_the_mask_given_is_left_alone(same_sign: bool) -> None:
    given = problem()
    before = given["mask"].clone()
    made = swap(**given, **SETTINGS | {"same_sign": same_sign})
    assert torch.equal(made.sum(1), before.sum(1))
    assert torch.equal(given["mask"], before)


def test_with_the_sign_check_no_row_gets_worse() -> None:
    given = problem()
    made = swap(**given, **SETTINGS | {"same_sign": True})
    before, after = errors(given, given["mask"]).abs(), errors(given, made).abs()
    assert (after <= before + 1e-3).all()
    assert after.mean() < 0.5 * before.mean()


@pytest.mark.parametrize("change", [{"max_cycles": 0}, {"threshold": math.inf}], ids=str)
def test_nothing_to_do_returns_the_mask(change: dict[str, Any]) -> None:
    given = problem()
    assert torch.equal(swap(**given, **SETTINGS | change), given["mask"])


def test_inputs_of_mean_zero_cause_no_swap() -> None:
    given = problem() | {"mean": torch.zeros(48)}
    assert torch.equal(swap(**given, **SETTINGS), given["mask"])


@pytest.mark.parametrize("cols", [1, 2, 3])
def test_narrow_layers_run_out_of_candidates_and_stop(cols: int) -> None:
    given = problem(30, cols)
    given["mask"] = torch.arange(cols).expand(30, cols) % 2 == 0
    made = swap(**given, **SETTINGS | {"threshold": 0.0})
    assert torch.equal(made.sum(1), given["mask"].sum(1))


@pytest.mark.parametrize("full", [True, False])
def test_rows_that_keep_all_or_nothing_stay(full: bool) -> None:
    given = problem()
    given["mask"][3] = full
    assert torch.equal(swap(**given, **SETTINGS)[3], given["mask"][3])


def test_constant_inputs_have_no_variance_and_still_swap_finitely() -> None:
    given = problem()
    given["variance"] = torch.zeros(48)
    made = swap(**given, **SETTINGS)
    assert torch.equal(made.sum(1), given["mask"].sum(1))


class TestSettings:
    def refined(self, settings: DSnoT, name: str = "blocks.0.attn.q_proj", **more: Any) -> Tensor:
        recipe = Recipe(score=more.pop("score", "wanda"), refine=settings, **{"sparsity": 0.6} | more)
        return one.prune(recipe, one.matrix(24, 64), one.inputs(300, 64), name=name)[0] != 0

    @pytest.mark.parametrize(
        "change",
        [{"max_cycles": 2}, {"threshold": 500.0}, {"power": 0.0}, {"same_sign": True}],
        ids=str,
    )
    def test_each_changes_the_mask(self, change: dict[str, Any]) -> None:
        usual = DSnoT()
        assert not torch.equal(self.refined(usual), self.refined(replace(usual, **change)))

    def test_the_mlp_is_left_alone_unless_asked_for(self) -> None:
        plain = one.prune(Recipe(sparsity=0.6), one.matrix(24, 64), one.inputs(300, 64))[0] != 0
        assert torch.equal(self.refined(DSnoT(), "blocks.0.mlp.up_proj"), plain)
        assert not torch.equal(self.refined(DSnoT(mlp=True), "blocks.0.mlp.up_proj"), plain)

    def test_kept_weights_are_untouched_without_a_repair(self) -> None:
        recipe = Recipe(sparsity=0.6, refine="dsnot")
        made, outcome = one.prune(recipe, one.matrix(24, 64), one.inputs(300, 64))
        assert torch.equal(made, one.matrix(24, 64) * outcome.mask)

    def test_a_repair_works_on_the_refined_mask(self) -> None:
        recipe = Recipe(sparsity=0.6, refine="dsnot", repair="refit")
        made, _ = one.prune(recipe, one.matrix(24, 64), one.inputs(300, 64))
        assert torch.equal(made != 0, self.refined(DSnoT()))

    def test_the_length_of_the_calibration_samples_does_not_matter(self) -> None:
        x = one.inputs(300, 64)
        recipe = Recipe(sparsity=0.6, refine="dsnot")
        once, _ = one.prune(recipe, one.matrix(24, 64), x)
        thrice, _ = one.prune(recipe, one.matrix(24, 64), x.repeat(4, 1))
        assert torch.equal(once != 0, thrice != 0)
