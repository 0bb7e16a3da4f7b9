"""`lowdim bench`, and what a pruning run measures of speed."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lowdim.cli import app
from lowdim.infer.bench import bandwidth, timing
from lowdim.infer.bench.run import _windows
from lowdim.infer.bench.settings import Settings


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "STREAMED", 2**16)
    monkeypatch.setattr(timing, "_TURN", 1e-4)
    monkeypatch.setattr(bandwidth, "BUFFER", 2**20)
    monkeypatch.setattr("lowdim.infer.bench.pair.SECONDS", math.inf)  # however busy the machine that runs the tests


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "MODEL or --shape"),
        (["m", "--shape", "llama-7b", "--sparsity", "0.5"], "not both"),
        (["--shape", "llama-7b"], "--sparsity"),
        (["m", "--dtype", "int5"], "unknown type 'int5'"),
        (["m", "--cache", "int9"], "Did you mean 'int8'"),
        (["m", "--sparsity", "70"], "Did you mean 0.7?"),
        (["m", "--text", "nowhere.txt"], "nowhere.txt"),
        (["m", "--json", "no/such/folder.json"], "no/such"),
    ],
)
def test_mistakes_are_usage_errors(run, flags, message) -> None:
    done = run("bench", *flags)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_cost_no_torch() -> None:
    program = (
        "import sys; from lowdim.cli import app\n"
        "try: app(['bench', '--shape', 'llama-7b', '--sparsity', '7'])\n"
        "except SystemExit as done: assert done.code == 2\n"
        "sys.exit(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def found(pruned: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """What `lowdim bench` prints and writes of a pruned model."""
    target = tmp_path_factory.mktemp("bench") / "found.json"
    flags = [
        "--dtype",
        "fp32",
        "--dtype",
        "int8",
        "--tokens",
        "3",
        "--threads",
        "1",
        "--text",
        str(text),
        "--cache",
        "int8",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "STREAMED", 2**16)
        patch.setattr(bandwidth, "BUFFER", 2**20)
        patch.setattr("lowdim.infer.bench.run.CONTEXT", 32)
        patch.setattr("lowdim.infer.bench.models.multiplies_bf16", lambda: True)
        done = CliRunner().invoke(app, ["bench", str(pruned), *flags, "--quiet", "--json", str(target)])
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads(target.read_text())


def test_every_form_of_a_pruned_model_is_measured(found) -> None:
    forms = found[1]["models"]
    assert [(f["engine"], f["dtype"], f["sparsity"] > 0) for f in forms] == [
        ("torch", "bf16", False),
        ("torch", "fp32", False),
        ("lowdim", "fp32", False),
        ("lowdim", "fp32", True),
        ("lowdim", "int8", False),
        ("lowdim", "int8", True),
    ]
    assert all(f["tokens_per_s"] > 0 and f["prefill_tokens_per_s"] > 0 for f in forms)
    assert forms[3]["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert found[1]["machine"]["threads"] == 1
    assert found[1]["subject"]["cache"] == "int8"


def test_sparse_forms_read_less_and_name_their_kernels(found) -> None:
    forms = found[1]["models"]
    assert forms[3]["bytes_per_token"] < 0.7 * forms[2]["bytes_per_token"]
    assert forms[0]["bytes_per_token"] * 2 == forms[1]["bytes_per_token"]
    kernels = forms[3]["kernels"]
    assert sum(kernels.values()) == 3 * 7 + 1
    assert sum(count for name, count in kernels.items() if name.startswith("packed fp32")) == 3 * 7
    assert not any(name.startswith("packed") for name in forms[2]["kernels"])
    assert [f["forms"] for f in forms[2:4]] == [[], ["21 × fp32: packed: LOWDIM_FORM=packed"]]


def test_perplexity_is_that_of_the_form(found) -> None:
    torch_fp32, own_dense, own_sparse, int8 = (found[1]["models"][i]["perplexity"] for i in (1, 2, 3, 5))
    assert own_dense == pytest.approx(torch_fp32, rel=1e-4)
    assert own_sparse == pytest.approx(torch_fp32, rel=1e-4)
    assert int8 == pytest.approx(torch_fp32, rel=0.05)
    assert int8 != own_sparse
    assert found[1]["protocol"]["context"] == 32


@pytest.mark.parametrize("recorded", ["tokenizer", "none"])
@pytest.mark.parametrize("asked", [None, "tokenizer", "none"])
def test_the_start_of_text_is_the_recorded_one_unless_asked(
    recorded: str, asked: str | None, pruned: Path, text: Path, tmp_path: Path
) -> None:
    home = tmp_path / "model"
    shutil.copytree(pruned, home)
    record = json.loads((home / "lowdim.json").read_text())
    record["recipe"]["evaluation"]["bos"] = recorded
    (home / "lowdim.json").write_text(json.dumps(record))
    made = _windows(Settings(model=str(home), text=str(text), bos=asked))
    assert made is not None and made.protocol["bos"] == (asked or recorded)
    (home / "lowdim.json").unlink()
    made = _windows(Settings(model=str(home), text=str(text), bos=asked))
    assert made is not None and made.protocol["bos"] == (asked or "tokenizer")


def test_every_shape_is_timed_and_one_over_a_range_of_sparsities(found) -> None:
    rows = found[1]["layers"]
    shapes = {(r["rows"], r["cols"]): r["count"] for r in rows}
    assert shapes == {(32, 32): 6, (16, 32): 6, (64, 32): 6, (32, 64): 3, (71, 32): 1}
    ranges = {s: {r["sparsity"] for r in rows if (r["rows"], r["cols"]) == s} for s in shapes}
    assert sum({0.3, 0.5, 0.7, 0.9} <= found for found in ranges.values()) == 1
    assert ranges[71, 32] == {0.0}


def test_what_is_printed(found) -> None:
    for part in (
        "tokens/s",
        "int8 60%",
        "packed int8",
        "21 × int8: packed: LOWDIM_FORM=packed",
        "x own dense",
        "Prefill of",
        "small model",
        "perplexity",
    ):
        assert part in found[0], part


def test_zeros_are_not_drawn_into_a_pruned_model(run, pruned: Path) -> None:
    done = run("bench", pruned, "--sparsity", "0.5", "--tokens", "2")
    assert done.exit_code == 1
    assert "60.0% zeros already" in done.stderr


def test_random_zeros_in_a_dense_model_are_said_to_be_random(run, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    flags = ["--sparsity", "0.5", "--sparsity", "0.8", "--dtype", "bf16", "--tokens", "2", "--json", target]
    done = run("bench", model, *flags)
    assert done.exit_code == 0, done.output
    assert "drawn at random" in done.stdout
    forms = json.loads(target.read_text())["models"]
    assert [f["sparsity"] for f in forms] == [0.0, 0.0, 0.5, 0.8]


def test_too_little_memory_is_said_before_the_work(run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdim.infer.bench.models.free_memory", lambda: 1000)
    done = run("bench", "--shape", "llama-7b", "--sparsity", "0.5")
    assert done.exit_code == 1
    assert "0.0 GB is free" in done.stderr


def test_a_pruning_run_sets_this_runtime_beside_torch(run, model: Path, small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = [
        "--sparsity",
        "0.6",
        "--method",
        "magnitude",
        *small,
        "--set",
        "evaluation.tokens=2",
        "--set",
        "compute=bfloat16",
    ]
    done = run("prune", model, out, *flags)
    assert done.exit_code == 0, done.output
    for stage in ("Time layers", "Build models", "Time models", "Measure perplexity", "Evaluate the sparse model"):
        assert f"{stage}: done in" in done.stderr
    speed = json.loads((tmp_path / "out.run.json").read_text())["speed"]
    assert speed["dense_tokens_per_s"] > 0
    assert "sparse in this runtime (bf16)" in speed["note"]
    forms = {(f["engine"], f["dtype"], f["sparsity"] > 0): f for f in speed["runtime"]["models"]}
    assert forms["lowdim", "bf16", True]["tokens_per_s"] == speed["sparse_tokens_per_s"]
    dense, sparse = (forms["lowdim", "bf16", zeros]["perplexity"] for zeros in (False, True))
    recorded = json.loads((out / "lowdim.json").read_text())["evaluation"]["perplexity"]
    assert dense == pytest.approx(recorded["dense"], rel=1e-2)
    assert sparse == pytest.approx(recorded["sparse"], rel=1e-2)
    assert "Speed on one machine" in (tmp_path / "out.html").read_text()


def test_a_rounded_model_is_measured_as_it_is_stored(run, model: Path, small: list[str], tmp_path: Path) -> None:
    flags = ["--sparsity", "0.5", "--method", "magnitude", "--quantize", "int8", *small]
    done = run("prune", model, tmp_path / "out", *flags, "--set", "evaluation.tokens=2")
    assert done.exit_code == 0, done.output
    speed = json.loads((tmp_path / "out.run.json").read_text())["speed"]
    assert "sparse in this runtime (int8)" in speed["note"]
    forms = {(f["engine"], f["dtype"], f["sparsity"] > 0): f for f in speed["runtime"]["models"]}
    int8 = forms["lowdim", "int8", True]
    assert int8["tokens_per_s"] == speed["sparse_tokens_per_s"]
    recorded = json.loads((tmp_path / "out" / "lowdim.json").read_text())["evaluation"]["perplexity"]["sparse"]
    assert int8["perplexity"] == pytest.approx(recorded, rel=1e-2)
    assert [key[1] for key in forms if key[2]] == ["int8"]  # in another kind nobody runs a rounded model


def test_what_the_time_was_too_short_for_is_said_where_the_comparison_would_stand(
    run, model: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowdim.infer.bench.pair.SECONDS", 0.0)
    flags = ["--sparsity", "0.5", "--method", "magnitude", *small, "--set", "evaluation.tokens=2"]
    done = run("prune", model, tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    runtime = json.loads((tmp_path / "out.run.json").read_text())["speed"]["runtime"]
    assert runtime["protocol"]["windows"] == 0
    assert f"on 0 of {runtime['protocol']['asked']} windows" in " ".join(done.stdout.split())
    assert "on 0 of" in (tmp_path / "out.html").read_text()


def test_a_run_ends_well_where_memory_is_too_small_to_measure(
    run, model: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowdim.infer.bench.models.free_memory", lambda: 1000)
    flags = ["--sparsity", "0.5", "--method", "magnitude", *small, "--set", "evaluation.tokens=2"]
    done = run("prune", model, tmp_path / "out", *flags)
    assert done.exit_code == 0, done.output
    assert "its speed was not measured (measuring" in done.stdout
    assert "dense_tokens_per_s" not in json.loads((tmp_path / "out.run.json").read_text())["speed"]
