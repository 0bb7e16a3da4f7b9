"""What a stress says of its rows."""

from __future__ import annotations

from typing import Any

import torch

from lowdim.evaluate.quality.tasks import PRESETS
from lowdim.evaluate.quality.zeroshot import TaskResult
from lowdim.pipeline.answers import answers
from lowdim.pipeline.stress.result import Point, render, sentence
from lowdim.pipeline.stress.settings import Settings
from lowdim.prune.measure import Measured


def measured(right: dict[str, list[int]]) -> Measured:
    def task(name: str, outcomes: list[int]) -> TaskResult:
        found = torch.tensor(outcomes, dtype=torch.bool)
        return TaskResult(name, found, found, "hash", "acc", chance=0.25)

    return Measured(None, {name: task(name, outcomes) for name, outcomes in right.items()})


def everywhere(outcomes: list[int]) -> Measured:
    return measured(dict.fromkeys(PRESETS["hard"], outcomes))


def test_answers_are_counted_question_by_question() -> None:
    [(name, found)] = answers(
        measured({"csqa": [1, 1, 0, 0, 1]}).tasks, measured({"csqa": [1, 0, 1, 0, 0]}).tasks
    ).items()
    assert name == "csqa" and (found.both, found.lost, found.won, found.neither) == (1, 2, 1, 1)


def test_a_point_that_equals_dense_is_within_and_one_that_does_not_is_not() -> None:
    dense = everywhere([1] * 400 + [0] * 100)
    points = [
        Point(0.0, "pruned", 0.0, dense),
        Point(0.1, "pruned", 0.1, dense),
        Point(0.5, "pruned", 0.5, everywhere([1] * 300 + [0] * 200)),
    ]
    found = render(Settings("m"), dense, points)
    assert [row["lossless"] for row in found["rows"]] == [None, True, False]
    assert found["sentence"].startswith(
        "Pruned: lossless on the hard tasks up to 10% zeros. At 10%: Lossless on the hard tasks: all 8 of them within "
        "2 points of the dense model, 95% sure. At 50%: Lost, in points"
    )


def test_the_headline_names_the_tolerance_and_the_tasks_that_prove_nothing() -> None:
    idle = ["arithmetic", "prealgebra"]
    dense = measured({name: [1] * (100 if name in idle else 400) + [0] * 300 for name in PRESETS["hard"]})
    said = render(Settings("m", tolerance=0.03), dense, [Point(0.5, "pruned", 0.5, dense)])["sentence"]
    assert said.startswith("Pruned: lossless on the hard tasks up to 50% zeros. At 50%: Lossless on the hard tasks: ")
    assert "within 3 points of the dense model, 95% sure." in said
    assert "arithmetic and prealgebra prove nothing: the dense model guesses there." in said
    assert said.endswith("So nothing is known of arithmetic.")


def test_of_a_model_at_chance_everywhere_the_headline_claims_nothing() -> None:
    dense = everywhere([1] * 100 + [0] * 300)
    said = render(Settings("m"), dense, [Point(0.5, "pruned", 0.5, dense)])["sentence"]
    assert said.startswith("Pruned: At 50%: ") and "prove nothing" in said and "lossless" not in said.casefold()


def test_a_hole_ends_the_run() -> None:
    """What holds again behind a sparsity that does not was luck."""
    rows: list[dict[str, Any]] = [
        {"form": "pruned", "sparsity": share, "lossless": held, "sentence": "Lost."}
        for share, held in ((0.0, True), (0.05, False), (0.1, True))
    ]
    assert sentence(rows) == "Pruned: At 5%: Lost."


def test_rows_come_back_from_disk_as_they_were() -> None:
    point = Point(0.5, "recovered", 0.49, everywhere([1, 0]))
    again = Point.from_dict(point.to_dict())
    assert again.to_dict() == point.to_dict()
    assert again.measured.tasks["csqa"].chance == 0.25
