"""A model that brings its own Python code runs where that is allowed, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.turns import turns

from lowdim.data.questions import Question
from lowdim.evaluate.quality import tasks

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TRUST = "--trust-remote-code"
REFUSAL = r"brings its own Python code. Read that code, and if you trust it, allow it with trust_remote_code=True."


@pytest.fixture(scope="module")
def own(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as one of an architecture that Transformers does not know."""
    path = tmp_path_factory.mktemp("own") / "own"
    shutil.copytree(model, path)
    (path / "modeling_own.py").write_text(CODE)
    config = json.loads((path / "config.json").read_text()) | {
        "model_type": "own_llama",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Transformers put the code that it imports where it is cleared away."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every task be the same two questions."""
    asked = [Question(("ab",) * 2, (" x", " y"), label) for label in (0, 1)]
    monkeypatch.setattr(tasks, "load", lambda name: asked)


def stages(out: Path, text: Path) -> Path:
    """Write a recipe of stages that all open the model anew."""
    calibration = {"source": str(text), "samples": 64, "context": 32}
    recover = {"stage": "blocks", "calibration": calibration, "blocks": {"passes": 0.5}, "batch_tokens": 256}
    prune = {"prune": {"sparsity": 0.5, "method": "magnitude"}}
    recipe = out.with_name("stages.yaml")
    recipe.write_text(
        json.dumps(
            {
                "stages": [
                    prune,
                    {"edit": {"edits": "builtin:edits", "steps": 1}},
                    "round",
                    {"recover": recover | {"quantize": "int8"}},
                ]
            }
        )
    )
    return recipe


def arguments(command: str, own: Path, out: Path, text: Path, small: list[str]) -> list[str | Path]:
    prompt = ["abc", "--max-tokens", "2"]
    texts = ["--text", text, "--context", "32", "--windows", "2", "--calibration", text, "--samples", "2"]
    return {
        "prune": [own, out, "--sparsity", "0.5", "--method", "wanda", *small],
        "evaluate": [own, "--text", text, "--context", "32", "--windows", "2"],
        "inspect": [own, "--calibration", text, "--samples", "2", "--context", "16", "--no-alpha"],
        "generate": [own, *prompt],
        "bench": [own, "--sparsity", "0.5", "--dtype", "fp32", "--tokens", "2"],
        "front": [own, "--out", out, "--forms", "dense-bf16,dense-int8,sparse-50-int8", *texts, "--tokens", "2"],
        "stress": [own, "--out", out, "--grid", "0.5", *texts],
        "compose": [own, out, "--recipe", stages(out, text), "--text", text, "--set", "evaluation.context=32"],
    }[command]


@pytest.mark.parametrize(
    "command", ["prune", "evaluate", "inspect", "generate", "bench", "serve", "front", "stress", "compose"]
)
def test_it_is_refused_with_the_flag_that_allows_it(
    command: str, own: Path, text: Path, small, tmp_path: Path, run
) -> None:
    given = [own] if command == "serve" else arguments(command, own, tmp_path / "out", text, small)
    done = run(command, *given)
    assert done.exit_code == 1
    assert " ".join(done.output.split()).count(REFUSAL + f" ({TRUST})") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("command", turns(["evaluate", "front", "generate", "stress", "compose", "inspect"], of=2))
def test_allowed_it_runs(command: str, own: Path, text: Path, small, tmp_path: Path, run) -> None:
    done = run(command, *arguments(command, own, tmp_path / "out", text, small), TRUST)
    assert done.exit_code == 0, done.output


def test_pruned_it_is_checked_and_loaded(own: Path, text: Path, small, tmp_path: Path, run) -> None:
    import lowdim

    done = run("prune", *arguments("prune", own, tmp_path / "out", text, small), TRUST, "--storage", "packed")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "modeling_own.py").read_text() == CODE
    recorded = json.loads((tmp_path / "out" / "lowdim.json").read_text())["recipe"]
    assert recorded["trust_remote_code"] is True
    again = run("generate", tmp_path / "out", "abc", "--max-tokens", "2", TRUST)
    assert again.exit_code == 0, again.output
    assert type(lowdim.load(tmp_path / "out", trust_remote_code=True)).__name__ == "OwnForCausalLM"
    with pytest.raises(ValueError, match="brings its own Python code"):
        lowdim.load(tmp_path / "out")


@pytest.mark.slow
def test_verify_takes_the_flag(own: Path, text: Path, small, tmp_path: Path, run) -> None:
    assert run("prune", *arguments("prune", own, tmp_path / "out", text, small), TRUST).exit_code == 0
    assert run("verify", tmp_path / "out", "--text", text).exit_code == 1
    done = run("verify", tmp_path / "out", "--text", text, TRUST)
    assert done.exit_code == 0, done.output


def test_a_recipe_says_it_only_where_it_is_so() -> None:
    from lowdim.prune.recipe import Recipe

    assert "trust_remote_code" not in Recipe(sparsity=0.5).to_dict()
    trusting = Recipe(sparsity=0.5, trust_remote_code=True)
    assert trusting.to_dict()["trust_remote_code"] is True
    assert Recipe.from_yaml(trusting.to_yaml()) == trusting


def test_it_is_trained_on(run, own: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{word} and {word} " * 9}) + "\n" for word in ("this", "that", "it")))
    settings = {"model": own, "data.source": text, "length": 8, "batch": 2, "steps": 2, "device": "cpu"}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert "brings its own Python code" in run("pretrain", *given, "--out", tmp_path / "out").stderr
    done = run("pretrain", *given, "--set", "trust_remote_code=true", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "pretraining.json").exists()
