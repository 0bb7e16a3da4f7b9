"""The page of a sweep: the table, the curves, the learning rates, what did not finish, and diagnoses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.diagnose.test_page import made as diagnosed
from tests.report.sweep import made

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json
from lowdim.report.build import build
from lowdim.report.sweep.page import edges, sentence, unfinished
from lowdim.report.sweep.pictures import pictures, sensitivities

LOST = {(0.1, "lns", 0): "diverged", (0.1, "lns", 1): "diverged", (0.1, "pre-ln", 1): "running"}


def held(out: Path) -> dict[str, object]:
    return dict(read_json(out / "sweep.json"))


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    page = build(made.write(tmp_path / "sweep"))
    text = page.read_text()
    assert page == tmp_path / "sweep.html"
    assert (
        "12 of 12 runs finished. Best: optimizer.lr 0.1, placement pre-ln, with validation.loss 3.905 ± 0.0071." in text
    )
    assert text.count('<tr class="best">') == 1
    assert text.count("<svg") == 3
    assert "Runs that are in no mean" not in text and "Diagnoses" not in text
    assert "lowdim sweep --recipe sweep.yaml --out sweep" in text
    assert "12 min together" in text


def test_the_losses_of_all_runs_are_on_one_page(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep", states={(0.1, "lns", 0): "diverged", (0.001, "lns", 1): "new"})
    validation, training, _ = pictures(held(out), out)
    assert training.title == "Training loss of all runs"
    for picture in (validation, training):
        assert picture.svg.count("step 300:") == 11  # the one that was never begun has no line
        assert ">0.01 · lns<" in picture.svg
        assert "Dashed" in picture.caption and "var(--orange)" in picture.svg
    assert "0.001 · pre-ln, step 300: 4.3" in validation.svg


def test_the_optimum_at_the_edge_is_flagged_and_the_one_inside_is_not(tmp_path: Path) -> None:
    found = held(made.write(tmp_path / "sweep"))
    assert [(each.name, each.best, each.edge) for each in sensitivities(found)] == [
        ("pre-ln", 0.1, "highest"),
        ("lns", 0.01, ""),
    ]
    assert edges(found) == [
        "pre-ln: the best learning rate, 0.1, is the highest of the grid. A better one may lie beyond: widen the grid."
    ]


def test_a_rate_that_diverged_lies_beyond_the_best(tmp_path: Path) -> None:
    found = held(made.write(tmp_path / "sweep", states=LOST, rates=(0.01, 0.1)))
    lns = next(each for each in sensitivities(found) if each.name == "lns")
    assert (lns.best, lns.lost, lns.edge) == (0.01, [0.1], "lowest")
    wider = held(made.write(tmp_path / "wider", states=LOST))
    assert next(each for each in sensitivities(wider) if each.name == "lns").edge == ""


def test_a_rate_of_nothing_is_in_the_table_and_not_in_the_picture(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep")
    content = json.loads(json.dumps(held(out)).replace(f'"{made.AXIS}": 0.001', f'"{made.AXIS}": 0'))
    assert all([rate for rate, *_ in each.points] == [0.01, 0.1] for each in sensitivities(content))
    assert len(content["table"]) == 6


def test_what_did_not_finish_is_listed_as_such(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep", states=LOST)
    assert unfinished(held(out)) == [
        "optimizer.lr 0.1, placement pre-ln, seed 1: not finished: it is under way, or was killed",
        "optimizer.lr 0.1, placement lns, seed 0: diverged. training diverged at step 7",
        "optimizer.lr 0.1, placement lns, seed 1: diverged. training diverged at step 7",
    ]
    assert "A cross: no run of that rate finished." in build(out).read_text()


def test_a_run_whose_result_is_no_number_is_listed_too(tmp_path: Path) -> None:
    found = held(made.write(tmp_path / "sweep"))
    found["table"][0]["errors"] = ["validation.loss is nan"]  # type: ignore[index]
    assert unfinished(found) == ["optimizer.lr 0.001, placement pre-ln: validation.loss is nan"]


def test_without_a_learning_rate_or_logs_there_is_no_picture_of_them(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep", rates=(0.01,), logs=False)
    assert pictures(held(out), out) == []
    assert build(out).read_text().count("<svg") == 0


def test_the_report_of_the_recipe_says_what_is_compared(tmp_path: Path) -> None:
    found = held(made.write(tmp_path / "sweep", report=("peak",)))
    assert sentence(found) == "12 of 12 runs finished."  # nobody knows whether more of a peak is better
    assert all(each.best is None for each in sensitivities(found))


def test_nothing_finished(tmp_path: Path) -> None:
    states = {(rate, "lns", 0): "failed" for rate in (0.01, 0.1)}
    out = made.write(tmp_path / "sweep", rates=(0.01, 0.1), placements=("lns",), seeds=(0,), states=states)
    text = build(out).read_text()
    assert "0 of 2 runs finished." in text and "failed. training failed at step 7" in text
    assert "over the learning rate" not in text


def test_diagnoses_stand_side_by_side(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep", seeds=(0,))
    for placement in ("pre-ln", "lns"):
        name = f"{made.AXIS}=0.01,placement={placement},seed=0"
        (out / name / "diagnosis.json").write_text(json.dumps(diagnosed()))
    text = build(out).read_text()
    assert "Diagnoses side by side" in text and "2 runs of 6 with a diagnosis" in text
    assert "0.01 · lns · 0, block 3:" in text
    assert text.count("<svg") > 3 + 6


def test_a_sweep_of_diagnoses_shows_its_results(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep", seeds=(0,), logs=False)
    content = held(out)
    content["recipe"]["command"] = "diagnose"  # type: ignore[index]
    (out / "sweep.json").write_text(json.dumps(content))
    for run in content["runs"]:  # type: ignore[attr-defined]
        (out / run["name"] / "result.json").write_text(json.dumps({"models": [diagnosed()]}))
    assert "6 runs of 6 with a diagnosis" in build(out).read_text()


def test_the_curves_of_sparse_trainings_are_counted_in_epochs(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep", rates=(0.01,), placements=("lns",), seeds=(0,), logs=False)
    place = next(path for path in out.iterdir() if path.is_dir()) / "out"
    place.mkdir()
    curve = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    (place / "training.json").write_text(json.dumps({"members": {"sparse": {"curve": curve}}}))
    assert "epoch 2: 0.25" in build(out).read_text()


def test_evil_names_are_text(tmp_path: Path) -> None:
    out = made.write(tmp_path / "sweep", seeds=(0,))
    content = json.dumps(held(out)).replace("pre-ln", "<script>alert(1)</script>")
    (out / "sweep.json").write_text(content)
    text = build(out).read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("content", "said"), [({}, "is not what `lowdim sweep` writes"), ({"runs": []}, "schema None")]
)
def test_what_is_not_of_this_version_is_refused(tmp_path: Path, content: dict[str, object], said: str) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=said):
        build(tmp_path)
