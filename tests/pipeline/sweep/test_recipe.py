"""What a sweep's recipe becomes, and what it refuses before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from lowdim.core.errors import RecipeError
from lowdim.core.recipe.override import assignments
from lowdim.pipeline.sweep.command import Command, as_yaml
from lowdim.pipeline.sweep.recipe import SweepRecipe

PRUNE = Command(
    "prune",
    out="OUT",
    again="--resume",
    places=("MODEL",),
    switches={"--fast": ("--fast", "--no-fast"), "--quick": ("--quick", "")},
    keys=("allocation.m", "pattern"),
    sets=True,
)
EVALUATE = Command("evaluate", json=True, places=("MODEL",))


def recipe(**values: Any) -> SweepRecipe:
    return SweepRecipe(**{"command": "prune", "grid": {"--seed": [0, 1]}} | values)


def test_every_combination_is_a_run_with_a_name_of_its_own() -> None:
    grid = {"MODEL": ["runs/a", "b"], "--seed": [0, 1], "allocation.m": [5.5], "--fast": [True, False]}
    runs = recipe(grid=grid, arguments="--samples 8").runs(PRUNE)
    assert [run.index for run in runs] == list(range(8))
    assert len({run.name for run in runs}) == 8
    assert runs[0].name == "MODEL=runs-a,seed=0,allocation.m=5.5,fast=True"
    assert runs[0].arguments == ("--samples", "8", "runs/a", "--seed=0", "--set", "allocation.m=5.5", "--fast")
    assert runs[7].arguments == ("--samples", "8", "b", "--seed=1", "--set", "allocation.m=5.5", "--no-fast")


def test_several_grids_are_run_one_behind_the_other() -> None:
    runs = recipe(grid=[{"--seed": [0, 1]}, {"--seed": [0], "pattern": ["2:4", "4:8"]}]).runs(PRUNE)
    assert [run.name for run in runs] == ["seed=0", "seed=1", "seed=0,pattern=2:4", "seed=0,pattern=4:8"]


def test_a_flag_without_value_and_a_flag_left_out() -> None:
    runs = recipe(grid={"--quick": [True, False], "--tokens": [None, 5]}).runs(PRUNE)
    assert [run.arguments for run in runs] == [("--quick",), ("--quick", "--tokens=5"), (), ("--tokens=5",)]


@pytest.mark.parametrize(
    "value", [3, 2.5, 1e-6, True, None, "2:4", "5", "true", "a b", " a", "*x", [1, "b"], {"name": "x"}]
)
def test_what_set_is_given_is_read_back(value: Any) -> None:
    assert list(assignments([f"key={as_yaml(value)}"])) == [("key", value)]


def test_long_names_are_cut_and_stay_apart() -> None:
    runs = recipe(grid={"--text": ["x" * 200 + "1", "x" * 200 + "2"]}).runs(PRUNE)
    assert all(len(run.name) <= 120 for run in runs)
    assert runs[0].name != runs[1].name


def test_the_axis_of_seeds() -> None:
    assert recipe().repeated() == "--seed"
    assert recipe(grid={"data.seed": [1], "--seeds": [2]}).repeated() == "data.seed"
    assert recipe(grid={"--lr": [1]}).repeated() is None
    assert recipe(grid={"--lr": [1], "--seed": [1]}, over="--lr").repeated() == "--lr"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"grid": {}}, r"grid: must be a mapping such as '--seed: \[0, 1, 2\]'"),
        ({"grid": []}, r"grid: must be a mapping such as .* got \[\]"),
        ({"grid": {"--seed": []}}, "--seed must be a list of at least one value, got \\[\\]"),
        ({"grid": {"--seed": 3}}, "--seed must be a list of at least one value, got 3"),
        ({"grid": {"--seed": [0, 0]}}, "runs 0 and 1 would both be in the directory 'seed=0'"),
        ({"grid": {"--text": ["a b", "a-b"]}}, "would both be in the directory 'text=a-b'"),
        ({"grid": [{"--seed": [0]}, {"--seed": [0]}]}, "runs 0 and 1 would both be in the directory"),
        ({"grid": {"--out": ["a"]}}, "a sweep gives --out itself"),
        ({"arguments": "m --resume"}, "a sweep gives --resume itself"),
        ({"arguments": ["--json=x"]}, "a sweep gives --json itself"),
        ({"grid": {"TEACHER": ["a"]}}, "unknown key 'TEACHER'"),
        ({"grid": {"alocation.m": [1]}}, "unknown key 'alocation.m'. Did you mean 'allocation.m'"),
        ({"grid": {"--fast": [1]}}, "--fast takes no value, so its values are true and false; got 1"),
        ({"over": "--lr"}, r"over must be an axis of the grid \(--seed\), got '--lr'"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        recipe(**values).runs(PRUNE)


def test_a_command_judges_its_own_arguments() -> None:
    def refuse(words: Any) -> None:
        assert words[-1] == "OUT"
        raise RecipeError("No such option: --sed Did you mean --seed?")

    command = Command("prune", out="OUT", parse=refuse)
    with pytest.raises(RecipeError, match=r"run 0 \(sed=0\): No such option: --sed Did you mean --seed\?"):
        recipe(grid={"--sed": [0]}).runs(command)


def test_commands_without_set_or_without_results() -> None:
    with pytest.raises(RecipeError, match=r"evaluate has no --set, so 'windows' is no key of it\. Write '--windows'"):
        recipe(grid={"windows": [1]}).runs(EVALUATE)
    with pytest.raises(RecipeError, match="leaves no results that could be compared"):
        recipe().runs(Command("serve"))
    assert EVALUATE.results("OUT", "FILE") == ["--json=FILE"]
