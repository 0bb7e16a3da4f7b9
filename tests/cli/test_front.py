from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

FORMS = "dense-bf16,dense-int8,sparse-50-int8,source,llama.cpp-Q2_K"


@pytest.fixture
def brief(text: Path) -> list[str]:
    """Flags of a front of a tiny model that is over at once."""
    source = ["--text", str(text), "--calibration", str(text)]
    return [*source, "--windows", "2", "--context", "32", "--samples", "4", "--tokens", "2", "--quiet"]


def test_one_table_one_json_one_page_one_sentence(run, model: Path, brief: list[str], tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "found.json"
    done = run("front", model, "--out", out, "--forms", FORMS, "--json", file, *brief)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found == json.loads((out / "front.json").read_text())
    rows = {row["form"]: row for row in found["rows"]}
    assert list(rows) == FORMS.split(",")
    assert found["sentence"] in " ".join(done.output.split())
    for name in FORMS.split(",")[:3]:
        assert rows[name]["perplexity"] > 1 and rows[name]["tokens_per_s"] > 0
    place = out / "sparse-50-int8"
    assert rows["sparse-50-int8"]["file_bytes"] == sum(f.stat().st_size for f in place.glob("*.safetensors"))
    assert json.loads((place / "lowdim.json").read_text())["model"]["source"] == str(model)
    assert rows["source"]["perplexity"] is None and "GGUF" in rows["source"]["note"]
    page = (tmp_path / "out.html").read_text()
    assert "<svg" in page and "dense-int8" in page
    assert found["verdicts"] == {} and "hard tasks" not in page + done.output
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("foreign", [True, False])
def test_the_plan_counts_what_llama_cpp_runs(
    foreign: bool, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowdim.pipeline.front import api, peers
    from lowdim.pipeline.front.settings import Settings

    def announced(plan: str) -> None:
        said.append(plan)
        raise KeyboardInterrupt

    said: list[str] = []
    monkeypatch.setattr(peers, "seconds_per_token", lambda *_: 60.0 if foreign else None)
    forms = tuple(FORMS.split(",")[1:])
    settings = Settings(str(model), forms, text=str(text), calibration=str(text), windows=2, context=32, samples=4)
    with pytest.raises(KeyboardInterrupt):
        api.front(settings, tmp_path / "out", announce=announced)
    count, whole = (4, "2.1 h") if foreign else (2, "0.0 min")  # two of them over two windows of 32 tokens
    assert said[0].startswith(f"{count} forms, about {whole} on this machine")
    assert ("llama.cpp runs 2 of them" in said[0]) == foreign


@pytest.mark.slow
def test_hard_tasks_bring_the_verdict_on_every_form(run, model: Path, brief: list[str], tmp_path: Path) -> None:
    forms = ["--forms", "dense-bf16,dense-int8,sparse-50-int8,llama.cpp-Q2_K"]
    done = run("front", model, "--out", tmp_path / "out", *forms, "--tasks", "csqa,piqa", "--limit", "6", *brief)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "front.json").read_text())
    said = found["verdicts"]
    assert said["against"] == "dense-bf16" and list(said["forms"]) == ["dense-int8", "sparse-50-int8"]
    page = (tmp_path / "out.html").read_text()
    for form, verdict in said["forms"].items():
        assert verdict["sentence"].startswith("No claim: 7 of the 8 hard tasks were not measured")
        assert list(verdict["tasks"]) == ["csqa"] and verdict["tasks"]["csqa"]["questions"] == 6
        assert f"- {form}: {verdict['sentence']}" in done.output
        assert verdict["sentence"] in page
    assert all("outcomes" not in row for row in found["rows"])


def test_the_start_of_text_token_goes_where_it_is_asked_for(
    run, model: Path, brief: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowdim.pipeline.front import measure

    asked: list[str] = []
    real = measure.evaluate_tasks

    def told(*given: Any, **how: Any) -> Any:
        found = real(*given, **how)
        asked.extend(task.bos for task in found.values())
        return found

    monkeypatch.setattr(measure, "evaluate_tasks", told)
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "1 + 1?", "choices": ["2", "3"], "label": 0}))
    found = {}
    for bos in ("tokenizer", "none", "window"):
        flags = ["--forms", "dense-int8", "--tasks", tmp_path / "mine.jsonl", "--bos", bos, *brief]
        done = run("front", model, "--out", tmp_path / bos, *flags)
        assert done.exit_code == 0, done.output
        found[bos] = json.loads((tmp_path / bos / "front.json").read_text())
        assert found[bos]["protocol"]["bos"] == bos
    values = {bos: each["rows"][0]["perplexity"] for bos, each in found.items()}
    assert values["tokenizer"] == values["none"] != values["window"]  # this tokenizer adds none itself
    assert asked == ["tokenizer", "none", "window"]


def test_bytes_per_token_are_those_of_the_matrices_and_one_row(
    run, model: Path, brief: list[str], tmp_path: Path
) -> None:
    done = run("front", model, "--out", tmp_path / "out", "--forms", "dense-bf16", "--budget-mb", "1", *brief)
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "out" / "front.json").read_text())["rows"]
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    block = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64  # q, k and v, o, the three of the MLP
    assert row["bytes_per_token"] == 2 * (3 * block + vocabulary * 32 + 32)


def test_a_killed_front_goes_on(run, model: Path, brief: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    from lowdim.pipeline.front import api

    measured: list[str] = []
    real = api.measure

    def killed(form: Any, *rest: Any) -> Any:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(form.name)
        return real(form, *rest)

    command = ["front", model, "--out", tmp_path / "out", "--forms", "dense-bf16,dense-int8", *brief]
    monkeypatch.setattr(api, "measure", killed)
    done = run(*command)
    assert done.exit_code == 130 and "--resume" in done.output
    monkeypatch.setattr(api, "measure", lambda form, *rest: measured.append(form.name) or real(form, *rest))
    refused = run(*command)
    assert refused.exit_code == 1 and "unfinished" in refused.output
    other = run(*command, "--resume", "--seed", "7")
    assert other.exit_code == 1 and "settings.seed" in other.output
    assert run(*command, "--resume").exit_code == 0
    assert measured == ["dense-bf16", "dense-int8"]
    assert run(*command, "--resume").exit_code == 0  # finished: nothing is done again
    assert measured == ["dense-bf16", "dense-int8"]


def test_a_front_on_another_text_of_the_same_name_is_refused(
    run, model: Path, text: Path, brief: list[str], tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_text(text.read_text())
    command = ["front", model, "--out", tmp_path / "out", "--forms", "dense-bf16", *brief, "--text", own]
    command += ["--budget-mb", "1"]
    assert run(*command).exit_code == run(*command, "--resume").exit_code == 0
    own.write_text(text.read_text()[1:])
    other = run(*command, "--resume")
    assert other.exit_code == 1 and "differs in evaluation.text" in other.output
    assert "--overwrite" not in other.output  # which a front does not have


@pytest.mark.slow
def test_trained_and_recovered_forms(run, model: Path, brief: list[str], tmp_path: Path) -> None:
    forms = "dense-int8,dense-bf16-trained,dense-int3-trained,sparse-2:4-int8-recovered"
    command = ["front", model, "--out", tmp_path / "out", "--recover", "--minutes", "0.2", "--forms", forms, *brief]
    short = run(*command)
    assert short.exit_code == 1 and "at least two are needed" in short.output
    assert not (tmp_path / "out.partial").exists()
    short = run(*command, "--samples", "128", "--minutes", "0.0001")
    assert short.exit_code == 2 and "minutes=0.0001 is too short" in short.output
    assert not (tmp_path / "out.partial").exists()
    done = run(*command, "--samples", "128")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "front.json").read_text())
    assert found["minutes"] == 0.2
    assert all(row["perplexity"] > 1 for row in found["rows"])
    tuned = json.loads((tmp_path / "out" / "dense-bf16-trained" / "lowdim.json").read_text())["recovery"]
    assert tuned["recipe"]["distill"]["ce"] == 1 and tuned["distill"]["after"] < tuned["distill"]["before"]
    for name in ("dense-int3-trained", "sparse-2of4-int8-recovered"):
        record = json.loads((tmp_path / "out" / name / "lowdim.json").read_text())
        assert record["recovery"]["teacher"] == str(model)
        assert "partial" not in record["model"]["source"]


def test_the_plan_comes_first(run, model: Path, brief: list[str], tmp_path: Path) -> None:
    flags = [flag for flag in brief if flag != "--quiet"]
    done = run("front", model, "--out", tmp_path / "out", "--forms", "dense-int8", *flags)
    assert done.exit_code == 0, done.output
    assert "1 forms, about" in done.output and done.output.index("about") < done.output.index("Measure dense-int8")


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (["--minutes", "3"], "without --recover", 2),
        (["--forms", "dense-int9"], "Did you mean", 2),
        (["--text", "nowhere.txt"], "there is no file", 2),
        (["--calibration", "nowhere.txt"], "there is no file", 2),
        (["--bos", "windows"], "Did you mean 'window'?", 2),
        (["--context", "4000"], "4000", 1),
    ],
)
def test_bad_input_before_any_work(
    flags: list[str], said: str, code: int, run, model: Path, tmp_path: Path, brief: list[str]
) -> None:
    done = run("front", model, "--out", tmp_path / "out", *brief, *flags)
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_tokenizer(run, model: Path, brief: list[str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    done = run("front", bare, "--out", tmp_path / "out", *brief)
    assert done.exit_code == 1 and "no tokenizer" in done.output
    assert not (tmp_path / "out.partial").exists()
