"""What may be said: the word for no loss, and when it is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lowdim
from lowdim.core.errors import RecipeError
from lowdim.evaluate.quality.hard import Answers, Verdict, of_manifest
from lowdim.evaluate.quality.tasks import HARD, PRESETS

NAMES = PRESETS["hard"]
KEPT = Answers(both=800, lost=2, won=1, neither=197, chance=0.25)
LOST = Answers(both=600, lost=200, won=20, neither=180, chance=0.25)
FEW = Answers(both=16, lost=1, won=0, neither=3, chance=0.25)
CHANCE = Answers(both=20, lost=5, won=5, neither=70, chance=0.25)
WORD = re.compile("lossless", re.IGNORECASE)


def test_states_by_hand() -> None:
    assert [each.state(0.02) for each in (KEPT, LOST, FEW, CHANCE)] == ["within", "beyond", "undecided", "chance"]
    assert LOST.drop == pytest.approx(0.18) and LOST.dense == 0.8 and LOST.pruned == 0.62
    assert LOST.state(0.5) == "within"


def test_a_task_at_chance_is_never_within_however_equal() -> None:
    assert Answers(both=26, lost=0, won=0, neither=74, chance=0.25).state(1.0) == "chance"


def test_all_within_may_be_said() -> None:
    verdict = Verdict(dict.fromkeys(NAMES, KEPT))
    assert verdict.holds and WORD.search(verdict.sentence())


@pytest.mark.parametrize("other", [LOST, FEW], ids=["lost", "too few"])
@pytest.mark.parametrize("name", NAMES)
def test_one_task_that_is_not_within_refuses_the_word(name: str, other: Answers) -> None:
    verdict = Verdict(dict.fromkeys(NAMES, KEPT) | {name: other})
    assert not verdict.holds and not WORD.search(verdict.sentence()) and name in verdict.sentence()


@pytest.mark.parametrize("name", NAMES)
def test_one_task_that_is_missing_refuses_the_word(name: str) -> None:
    verdict = Verdict({each: KEPT for each in NAMES if each != name})
    assert not verdict.holds and not WORD.search(verdict.sentence())
    assert f"1 of the {len(NAMES)} hard tasks were not measured ({name})" in verdict.sentence()


def test_what_the_dense_model_guesses_proves_nothing_and_says_so() -> None:
    for family, names in HARD.items():
        verdict = Verdict(dict.fromkeys(NAMES, KEPT) | dict.fromkeys(names, CHANCE))
        assert verdict.holds  # the others are within
        assert "nothing: the dense model guesses there" in verdict.sentence()
        assert f"So nothing is known of {family}." in verdict.sentence()
    assert not Verdict(dict.fromkeys(NAMES, CHANCE)).holds
    assert not WORD.search(Verdict(dict.fromkeys(NAMES, CHANCE)).sentence())


def test_a_tolerance_of_its_own_decides_over_a_task() -> None:
    answers = dict.fromkeys(NAMES, KEPT) | {"csqa": LOST}
    assert Verdict(answers, 0.02, {"csqa": 0.5}).holds
    assert "within 2 to 50 points" in Verdict(answers, 0.02, {"csqa": 0.5}).sentence()
    with pytest.raises(RecipeError, match="tolerance of 'piqa': that is no hard task"):
        Verdict(answers, 0.02, {"piqa": 0.5})
    with pytest.raises(RecipeError, match="tolerance must be between 0 and 1; got 2"):
        Verdict(answers, 2)


def test_a_record_gives_the_same_answers_and_an_old_one_none() -> None:
    record = {"questions": 1000, "dense": LOST.dense, "lost": 200, "won": 20, "chance": 0.25}
    assert Answers.of(record) == LOST
    assert Answers.of({"questions": 10, "dense": 0.5}) is None
    assert of_manifest({"piqa": record}) is None
    found = of_manifest({"csqa": record})
    assert found is not None and "No claim" in found.sentence()


def test_the_word_stands_nowhere_else_in_the_source() -> None:
    """Reports, tables and messages may claim it through `Verdict` alone."""
    own = {"evaluate/quality/hard.py", "pipeline/stress/result.py"}
    source = Path(lowdim.__file__).parent
    files = [path for end in ("*.py", "*.html") for path in source.rglob(end)]
    found = {str(path.relative_to(source)) for path in files if WORD.search(path.read_text(encoding="utf-8"))}
    assert found == own
