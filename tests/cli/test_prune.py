from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lowdim.core.allocation.erk import erk
from lowdim.core.errors import RecipeError
from lowdim.core.recipe import families
from lowdim.prune.recipe import Recipe

# ---------------------------------------------------------------- flags, file, --set


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("sparsity: 0.5\nallocation: {name: owl, m: 7}\ncalibration: {samples: 16, seed: 3}\nseed: 9\n")
    return path


def test_flags_override_the_file_and_set_overrides_both(file: Path) -> None:
    recipe = Recipe.assemble(file, {"sparsity": 0.6, "calibration.samples": 32, "seed": None}, ["sparsity=0.7"])
    assert recipe.target == 0.7
    assert (recipe.calibration.samples, recipe.calibration.seed, recipe.seed) == (32, 3, 9)
    assert recipe.to_dict()["allocation"]["m"] == 7


def test_method_then_repair() -> None:
    recipe = Recipe.assemble(None, {"method": "wanda", "repair": "sparsegpt", "sparsity": 0.5}, [])
    assert [families.name_of(kind, getattr(recipe, kind)) for kind in ("score", "repair")] == [
        "wanda",
        "sparsegpt",
    ]


def test_method_replaces_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("sparsity: 0.5\nscore: magnitude\nrepair: {name: sparsegpt, block: 64}\n")
    assert families.name_of("repair", Recipe.assemble(path, {"method": "wanda"}, []).repair) == "none"
    kept = Recipe.assemble(path, {"method": "sparsegpt"}, [])
    assert kept.to_dict()["repair"]["block"] == 64


def test_a_written_recipe_is_a_recipe_file(tmp_path: Path) -> None:
    recipe = Recipe(pattern="2:4", method="sparsegpt", refine="dsnot")
    path = tmp_path / "r.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.assemble(path, {}, []) == recipe


def test_a_mistake_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("sparsity: 0.5\ncalibraton: {samples: 4}\n")
    with pytest.raises(RecipeError, match=r"'calibraton'\. Did you mean 'calibration'"):
        Recipe.assemble(path, {}, [])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--sparsity", "60"], ["sparsity", "60", "did you mean 0.6?"]),
        (["--sparsity", "1.0"], ["sparsity", "got 1", "0.9"]),
        ([], ["sparsity", "0.5"]),
        (["--pattern", "2:4", "--sparsity", "0.7"], ["2:4", "sparsity", "0.7", "1:4"]),
        (["--sparsity", "0.5", "--method", "wandda"], ["'wandda'", "Did you mean 'wanda'?"]),
        (["--sparsity", "0.5", "--allocation", "owll"], ["'owll'", "Did you mean 'owl'?"]),
        (["--sparsity", "0.5", "--storage", "pack"], ["'pack'", "Did you mean 'packed'?"]),
        (["--sparsity", "0.5", "--set", "allocation.mm=5"], ["'allocation.mm'", "'allocation.m'"]),
        (["--sparsity", "0.5", "--set", "seed"], ["KEY=VALUE", "'seed'"]),
        (["--sparsity", "0.5", "--recipe", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (
            ["--sparsity", "0.5", "--calibration", "nowhere.txt"],
            ["calibration.source", "nowhere.txt", "builtin"],
        ),
        (["--sparsity", "0.5", "--set", "evaluation.text=x.txt"], ["evaluation.text", "x.txt"]),
        (["--sparsity", "0.5", "--pattern", "16x16", "--refine", "dsnot"], ["refine=dsnot", "pattern=16x16"]),
    ],
)
def test_a_bad_recipe_is_one_paragraph_and_exit_code_2(run, tmp_path: Path, flags: list[str], parts: list[str]) -> None:
    done = run("prune", "some/model", tmp_path / "out", *flags)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_recipe_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from lowdim.cli import app\n"
        f"try: app(['prune', 'm', {str(tmp_path / 'o')!r}, '--pattern', '2:4', '--sparsity', '0.7'])\n"
        "except SystemExit as done: assert done.code == 2\n"
        "sys.exit(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_allocation_of_training_prunes(run, model: Path, tmp_path: Path, small: list[str]) -> None:
    flags = ["--sparsity", "0.6", "--method", "magnitude", "--allocation", "erk", *small]
    done = run("prune", model, tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out" / "lowdim.json").read_text())
    assert manifest["recipe"]["allocation"] == {"name": "erk", "power": 1.0}
    sizes = {name: layer["numel"] for name, layer in manifest["layers"].items()}
    kept = {name: layer["nonzeros"] for name, layer in manifest["layers"].items()}
    assert sum(kept.values()) == sum(sizes.values()) - round(0.6 * sum(sizes.values()))
    stored = load_file(model / "model.safetensors")
    density = erk({name: tuple(stored[f"{name}.weight"].shape) for name in sizes}, 0.6)
    for name, count in kept.items():
        assert abs(count - density[name] * sizes[name]) <= 1
    assert len({round(d, 6) for d in density.values()}) > 1


def test_a_model_that_is_not_there(run, tmp_path: Path, text: Path) -> None:
    done = run("prune", tmp_path / "none", tmp_path / "out", "--sparsity", "0.5", "--calibration", text)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(run, tmp_path: Path) -> None:
    done = run("prune", "m", tmp_path / "out", "--sparsity", "2", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: sparsity")


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(run, tmp_path: Path, monkeypatch, text: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowdim.prune.api.prune", interrupted)
    done = run("prune", "m", tmp_path / "out", "--sparsity", "0.5", "--calibration", text)
    assert done.exit_code == 130
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- a run


def test_a_run_writes_what_was_asked_for(pruned: Path) -> None:
    manifest = json.loads((pruned / "lowdim.json").read_text())
    assert manifest["sparsity"]["prunable"] == pytest.approx(0.6, abs=1e-4)
    assert manifest["recipe"]["score"]["name"] == "wanda"
    assert manifest["recipe"]["calibration"]["samples"] == 4
    assert set(manifest["evaluation"]["perplexity"]) >= {"dense", "sparse", "protocol"}
    assert Path(f"{pruned}.html").stat().st_size > 1000


def test_every_weight_keeps_the_type_of_the_model(pruned: Path) -> None:
    headers = [json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}") for file in pruned.glob("*.safetensors")]
    types = {entry["dtype"] for header in headers for name, entry in header.items() if name != "__metadata__"}
    assert types == {"F32"}


def test_a_run_prints_one_table_and_the_report(run, model: Path, small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("prune", model, out, "--sparsity", "0.5", "--storage", "packed", *small)
    assert done.exit_code == 0, done.output
    assert "dense" in done.stdout
    assert "Perplexity" in done.stdout
    assert "Size on disk" in done.stdout
    assert f"Report: {tmp_path / 'out.html'}" in done.stdout
    assert "blocks" in done.stderr
    assert json.loads((out / "lowdim.json").read_text())["storage"] == "packed"


def test_quiet_says_nothing_on_stderr(run, model: Path, small: list[str], tmp_path: Path) -> None:
    done = run("prune", model, tmp_path / "out", "--sparsity", "0.5", "--quiet", *small)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""


def test_dry_run_prints_the_plan_and_writes_nothing(run, model: Path, small: list[str], tmp_path: Path) -> None:
    done = run("prune", model, tmp_path / "out", "--sparsity", "0.5", "--dry-run", *small)
    assert done.exit_code == 0, done.output
    assert "model.layers.2.mlp.down_proj" in done.stdout
    assert "0.5" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_left_alone(run, pruned: Path, model: Path, small: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in pruned.iterdir()}
    done = run("prune", model, pruned, "--sparsity", "0.3", *small)
    assert done.exit_code == 1
    assert "--overwrite" in done.stderr
    assert {path.name: path.read_bytes() for path in pruned.iterdir()} == before


def test_overwrite_replaces_it(run, model: Path, small: list[str], tmp_path: Path) -> None:
    for sparsity in ("0.5", "0.25"):
        done = run(
            "prune",
            model,
            tmp_path / "out",
            "--sparsity",
            sparsity,
            "--method",
            "magnitude",
            "--overwrite",
            *small,
        )
        assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out" / "lowdim.json").read_text())
    assert manifest["sparsity"]["prunable"] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        [
            "--method",
            "sparsegpt",
            "--allocation",
            "owl",
            "--set",
            "allocation.pooling=layer",
            "--true-sequential",
        ],
        ["--method", "refit", "--refine", "dsnot"],
        ["--method", "wanda", "--repair", "refit", "--allocation", "er-plus", "--dtype", "bf16"],
    ],
)
def test_other_methods_run(run, model: Path, small: list[str], tmp_path: Path, flags: list[str]) -> None:
    done = run("prune", model, tmp_path / "out", "--sparsity", "0.5", *flags, *small)
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out" / "lowdim.json").read_text())
    assert manifest["sparsity"]["prunable"] == pytest.approx(0.5, abs=1e-3)


def test_ctrl_c_in_the_middle_then_resume_gives_the_same_bytes(
    run, model: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowdim.prune import run as stages

    flags = ["--sparsity", "0.5", "--method", "sparsegpt", *small]
    assert run("prune", model, tmp_path / "whole", *flags).exit_code == 0
    calls, prune_block = [], stages.prune_block

    def press(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return prune_block(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "prune_block", press)
        stopped = run("prune", model, tmp_path / "out", *flags)
    assert stopped.exit_code == 130
    assert "Prune: stopped at 1 of 3" in stopped.stderr
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    again = run("prune", model, tmp_path / "out", *flags)
    assert again.exit_code == 1
    assert "(--overwrite or --resume)" in again.stderr
    other = run("prune", model, tmp_path / "out", *flags, "--seed", "1", "--resume")
    assert other.exit_code == 1
    assert "seed" in other.stderr
    resumed = run("prune", model, tmp_path / "out", *flags, "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole, out = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out"))
    assert out == whole


@pytest.mark.parametrize("out", [".", "", "inner/.."])
def test_the_folder_that_one_stands_in_is_an_output_like_others(
    run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    flags = ["--sparsity", "0.5", "--method", "magnitude", "--set", "evaluation.text=null", "--quiet"]
    done = run("prune", model, out, *flags)
    monkeypatch.chdir(tmp_path)  # the folder that it stood in was replaced
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "here.html", "here.run.json"]
    assert (place / "lowdim.json").is_file()
