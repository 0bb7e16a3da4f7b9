"""The commands that work on what `lowdim prune` wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lowdim.cli.verify import recorded_text
from lowdim.core.masks import Masks
from lowdim.core.random import generator
from lowdim.models.load import load
from lowdim.models.structure.selection import select
from lowdim.models.subnets import Subnet, Subnets
from lowdim.models.ticket import Ticket


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_evaluate_measures_what_the_run_measured(run, pruned: Path, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    done = run("evaluate", pruned, "--text", text, "--context", "32", "--windows", "4", "--json", target)
    assert done.exit_code == 0, done.output
    found = json.loads(target.read_text())
    recorded = json.loads((pruned / "lowdim.json").read_text())["evaluation"]["perplexity"]
    assert found["perplexity"]["value"] == pytest.approx(recorded["sparse"], rel=1e-3)
    assert found["perplexity"]["protocol"]["text"] == recorded["protocol"]["text"]
    assert f"perplexity {found['perplexity']['value']:.4f}" in done.stdout
    assert "4 windows" in done.stdout


def test_evaluate_measures_tasks_from_a_file(run, model: Path, tmp_path: Path) -> None:
    questions = tmp_path / "mine.jsonl"
    lines = [{"question": f"{a} + 1?", "choices": [str(a), str(a + 1)], "label": 1} for a in range(6)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = tmp_path / "results.json"
    done = run("evaluate", model, "--text", "none", "--tasks", questions, "--limit", "4", "--json", target, "--quiet")
    assert done.exit_code == 0, done.output
    task = json.loads(target.read_text())["tasks"][str(questions)]
    assert len(task["correct"]) == 4
    assert "perplexity" not in done.stdout
    assert done.stderr == ""


def test_the_start_of_text_token_goes_where_it_is_asked_for(run, model: Path, text: Path, tmp_path: Path) -> None:
    questions = tmp_path / "mine.json"
    questions.write_text(json.dumps([{"question": "1 + 1?", "choices": ["2", "3"], "label": 0}] * 4))
    found = {}
    for bos in ("tokenizer", "none", "window"):
        target = tmp_path / f"{bos}.json"
        size = ["--context", "32", "--windows", "4", "--tasks", questions, "--bos", bos, "--json", target]
        done = run("evaluate", model, "--text", text, *size)
        assert done.exit_code == 0, done.output
        assert f"bos {bos}" in done.stdout
        found[bos] = json.loads(target.read_text())
        assert found[bos]["perplexity"]["protocol"]["bos"] == bos
        assert found[bos]["tasks"][str(questions)]["bos"] == bos
    values = {bos: each["perplexity"]["value"] for bos, each in found.items()}
    assert values["tokenizer"] == values["none"] != values["window"]  # this tokenizer adds none itself


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--bos", "first"], ["evaluation.bos", "'first'", "'window'"]),
        (["--text", "{tmp}/rows.csv"], ["rows.csv", "no tables"]),
        (["--tasks", "piqua"], ["evaluation.tasks", "'piqua'", "Did you mean 'piqa'?"]),
        (["--context", "1"], ["evaluation.context", "1"]),
        (["--text", "nowhere.txt"], ["--text", "nowhere.txt"]),
        (["--compute", "int4"], ["compute", "'int4'"]),
        (["--text", "none"], ["leaves nothing to measure"]),
        (["--text", "none", "--tasks", "piqa", "--context", "64"], ["--context changes nothing without a text"]),
        (["--text", "none", "--tasks", "piqa", "--windows", "2"], ["--windows changes nothing without a text"]),
        (["--limit", "5"], ["--limit changes nothing without tasks"]),
    ],
)
def test_evaluate_refuses_before_loading(run, flags: list[str], parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\n")
    done = run("evaluate", "some/model", *(flag.format(tmp=tmp_path) for flag in flags))
    assert done.exit_code == 2
    for part in parts:
        assert part in done.stderr


@pytest.mark.usefixtures("checked_here")
def test_verify_passes_on_what_was_written(run, pruned: Path) -> None:
    done = run("verify", pruned)
    assert done.exit_code == 0, done.output
    for check in ("files", "masks", "generates", "perplexity"):
        assert f"ok  {check}:" in done.stdout


@pytest.mark.usefixtures("checked_here")
def test_verify_fails_on_a_changed_file(run, pruned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pruned, copy)
    shard = max(copy.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    done = run("verify", copy)
    assert done.exit_code == 1
    assert "FAILED" in done.stdout
    assert "is not what its lowdim.json says" in done.stderr


def test_verify_does_not_measure_another_text(pruned: Path, text: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.txt"
    other.write_text("another text " * 500)
    assert recorded_text(pruned, other) is None
    assert "is not the text it was taken on" in capsys.readouterr().err
    assert recorded_text(pruned, tmp_path / "gone.txt") is None
    assert "cannot be read again" in capsys.readouterr().err
    cut = recorded_text(pruned, text)
    assert cut is not None
    assert tuple(cut.shape) == (4, 32)
    assert capsys.readouterr().err == ""


def test_convert_there_and_back_gives_the_same_bytes(run, pruned: Path, tmp_path: Path) -> None:
    for source, out, storage in ((pruned, "packed", "packed"), (tmp_path / "packed", "dense", "dense")):
        done = run("convert", source, tmp_path / out, "--storage", storage)
        assert done.exit_code == 0, done.output
        assert " MB" in done.stdout
    weights = {name: content for name, content in files(pruned).items() if name.endswith(".safetensors")}
    assert weights.items() <= files(tmp_path / "dense").items()


def test_convert_says_that_codes_are_not_found_again(run, model: Path, small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("prune", model, out, "--sparsity", "0.5", "--method", "sparsegpt", "--quantize", "int8", *small)
    assert done.exit_code == 0, done.output
    assert "the others rounded to int8" in done.stdout
    done = run("convert", out, tmp_path / "dense", "--storage", "dense")
    assert done.exit_code == 0, done.output
    assert "21 rounded weights are written as level x scale" in done.stdout.replace("\n", " ")


def test_convert_refuses_an_unknown_form(run, pruned: Path, tmp_path: Path) -> None:
    done = run("convert", pruned, tmp_path / "x", "--storage", "pack")
    assert done.exit_code == 2
    assert "--storage" in done.stderr
    assert "Did you mean 'packed'?" in done.stderr


def test_convert_takes_one_network_of_several(run, model: Path, tmp_path: Path) -> None:
    network = load(model)
    source = generator(0, "masks")
    masks = Masks.from_dict({n: torch.rand(p.shape, generator=source) > 0.25 for n, p in select(network).items()})
    nets = {"dense": Subnet("dense", Masks()), "element-25": Subnet("unstructured", masks)}
    both = Subnets(Ticket.of(network, {}).state, nets).save(tmp_path / "nets", network)
    done = run("convert", both, tmp_path / "one", "--subnet", "element-25")
    assert done.exit_code == 0, done.output
    assert "unstructured, 2" in done.stdout and "zeros in 21 weights" in " ".join(done.stdout.split())
    assert Masks.of(load(tmp_path / "one")) == masks
    done = run("convert", both, tmp_path / "two", "--subnet", "element-52")
    assert done.exit_code == 1 and "Did you mean 'element-25'?" in " ".join(done.stderr.split())
    assert not (tmp_path / "two").exists()


@pytest.mark.usefixtures("drawn")
def test_report_writes_the_page_again(run, pruned: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("report", pruned, "--html", page)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{page}\n"
    assert page.read_bytes() == Path(f"{pruned}.html").read_bytes()


def test_report_of_something_else(run, model: Path) -> None:
    done = run("report", model)
    assert done.exit_code == 1
    assert "lowdim.json" in done.stderr


@pytest.mark.usefixtures("checked_here")
def test_convert_rounds_a_model(run, model: Path, tmp_path: Path) -> None:
    done = run("convert", model, tmp_path / "out", "--dtype", "int4", "--group", "128")
    assert done.exit_code == 0, done.output
    assert "21 weights rounded to int4, all else as it was" in done.stdout.replace("\n", " ")
    assert run("verify", tmp_path / "out").exit_code == 0
    assert run("convert", tmp_path / "out", tmp_path / "dense", "--storage", "dense").exit_code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "give --storage, to keep every weight, --dtype, to round, or --subnet"),
        (("--storage", "packed", "--dtype", "int4"), "one of the three"),
        (("--storage", "packed", "--subnet", "2:4"), "one of the three"),
        (("--subnet", "2:4", "--group", "64"), "--group 64 goes with --dtype"),
        (("--storage", "packed", "--group", "64"), "--group 64 goes with --dtype"),
        (("--dtype", "int2"), "--dtype must be int8, int4 or int3, got 'int2'"),
    ],
)
def test_convert_refuses_what_does_not_go_together(run, model: Path, tmp_path: Path, flags, words: str) -> None:
    done = run("convert", model, tmp_path / "x", *flags)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "x").exists()


def test_verify_refuses_a_text_that_is_not_there(run, pruned: Path) -> None:
    done = run("verify", pruned, "--text", "nowhere.txt")
    assert done.exit_code == 2
    assert "--text: there is no file 'nowhere.txt'" in done.stderr
