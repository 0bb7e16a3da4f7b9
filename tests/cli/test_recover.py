from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def brief(text: Path) -> list[str]:
    """Flags of a recovery of a tiny model that is over at once."""
    settings = {
        "evaluation.context": 32,
        "evaluation.windows": 4,
        "evaluation.text": text,
        "batch_tokens": 64,
        "blocks.passes": 1,
        "distill.passes": 1,
        "distill.sequences": 4,
    }
    given = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    return ["--calibration", str(text), "--samples", "16", "--context", "32", *given]


def facts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "lowdim.json").read_text())
    return found


@pytest.mark.usefixtures("checked_here")
def test_a_pruned_model_is_recovered_verified_and_reported(run, pruned: Path, brief: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("recover", pruned, out, "--quiet", *brief)
    assert done.exit_code == 0, done.output
    assert "60% of the prunable weights are zero" in done.output
    assert (tmp_path / "out.html").exists()
    made = facts(out)
    assert made["recovery"]["stages"].keys() == {"blocks", "distill"}
    assert made["evaluation"]["perplexity"]["dense"] > 0
    assert run("verify", out).exit_code == 0


def test_the_plan_comes_first_and_alone_if_asked(run, pruned: Path, brief: list[str], tmp_path: Path) -> None:
    done = run("recover", pruned, tmp_path / "out", "--dry-run", "--stage", "blocks", *brief)
    assert done.exit_code == 0, done.output
    assert "Block by block: " in done.output and "min on this machine" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mask", "moving"], "--mask must be fixed or adaptive"),
        (["--mask", "fixed", "--method", "ast"], "Leave one of them out"),
        (["--method", "rast"], "Did you mean 'ast'"),
        (["--stage", "both", "--set", "distill.kl=0"], "nothing to train for"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], said: str, run, pruned: Path, tmp_path: Path) -> None:
    done = run("recover", pruned, tmp_path / "out", *flags)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_adaptive_masks_by_flag(run, pruned: Path, brief: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    moving = ["--mask", "adaptive", "--stage", "distill", "--set", "masks.every=1", "--set", "distill.passes=2"]
    done = run("recover", pruned, out, "--quiet", *brief, *moving)
    assert done.exit_code == 0, done.output
    assert facts(out)["recovery"]["recipe"]["masks"]["name"] == "ast"


def test_a_recipe_prunes_and_recovers(run, model: Path, brief: list[str], text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"sparsity: 0.5\nmethod: wanda\nquantize: int8\ncalibration: {{source: {text}, samples: 4, context: 32}}\n"
        f"evaluation: {{text: {text}, context: 32, windows: 4}}\n"
        "recover:\n  stage: distill\n  batch_tokens: 64\n  calibration: {samples: 16, context: 32}\n"
        "  distill: {passes: 1, sequences: 4}\n"
    )
    out = tmp_path / "out"
    done = run("prune", model, out, "--recipe", recipe, "--quiet")
    assert done.exit_code == 0, done.output
    made = facts(out)
    assert made["storage"] == "packed" and made["recipe"]["sparsity"] == 0.5
    assert made["recovery"]["recipe"]["quantize"] == "int8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.html", "out.run.json", "recipe.yaml"]


def test_the_dense_model_of_a_recipe_is_the_one_it_names(run, model: Path, text: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(model, copied)
    lines = (
        f"sparsity: 0.5\nmethod: magnitude\ncalibration: {{source: {text}, samples: 4, context: 32}}\n"
        "evaluation: {text: null}\nrecover:\n  stage: blocks\n  batch_tokens: 64\n  blocks: {passes: 1}\n"
        "  calibration: {samples: 16, context: 32}\n"
    )
    teachers = {}
    for name, more in (("own", ""), ("named", f"  teacher: {copied}\n")):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(lines + more)
        done = run("prune", model, tmp_path / name, "--recipe", recipe, "--quiet")
        assert done.exit_code == 0, done.output
        teachers[name] = facts(tmp_path / name)["recovery"]["teacher"]
    assert teachers == {"own": str(model), "named": str(copied)}


@pytest.fixture
def both(text: Path, tmp_path: Path) -> Path:
    """A recipe of both steps."""
    recipe = tmp_path / "both.yaml"
    recipe.write_text(
        f"sparsity: 0.5\nmethod: magnitude\ncalibration: {{source: {text}, samples: 4, context: 32}}\n"
        "evaluation: {text: null}\nrecover:\n  stage: distill\n  batch_tokens: 64\n"
        "  calibration: {samples: 16, context: 32}\n  distill: {sequences: 4}\n"
    )
    return recipe


def test_the_plan_of_a_recipe_is_of_both_steps(run, model: Path, both: Path, tmp_path: Path) -> None:
    done = run("prune", model, tmp_path / "out", "--recipe", both, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "50.0% of them to become zero" in done.output
    assert "Then recovery" in done.output and "50.0% of the layers' are zero" in done.output
    assert "End to end: 4 steps" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["both.yaml"]


@pytest.mark.parametrize(
    ("given", "said"),
    [("minutes=1e-5", "minutes=1e-05 is too short"), ("quantize=int3", "which has no mask. Take 'int4'")],
)
def test_what_cannot_be_recovered_is_not_pruned(
    given: str, said: str, run, model: Path, both: Path, tmp_path: Path
) -> None:
    done = run("prune", model, tmp_path / "out", "--recipe", both, "--quiet", "--set", f"recover.{given}")
    assert done.exit_code != 0
    assert said in " ".join(done.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["both.yaml"]


def test_a_step_is_timed_once_for_both_steps(
    run, model: Path, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowdim.pipeline.recover import api

    real, timed = api.plan_distill, list[int]()
    monkeypatch.setattr(api, "plan_distill", lambda stage: timed.append(1) or real(stage))
    done = run("prune", model, tmp_path / "out", "--recipe", both, "--quiet")
    assert done.exit_code == 0, done.output
    assert len(timed) == 1
