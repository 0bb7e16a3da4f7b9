"""Pairs of answers: what files may hold, what is refused, and what is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowdim.data.corpus import preferences
from lowdim.data.corpus.preferences import Pair, from_questions, from_record, read, records, split, synthetic, utility
from lowdim.data.errors import DataError
from lowdim.data.questions import Question

ASK, YES, NO = (
    {"role": "user", "content": "Is it?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "assistant", "content": "No."},
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [ASK], "chosen": [YES], "rejected": [NO]},
        {"chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"chosen": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "Yes."}], "rejected": [ASK, NO]},
    ],
)
def test_the_columns_of_trl(row: dict[str, Any]) -> None:
    pair = from_record({**row, "score_chosen": 5.0, "score_rejected": 1.0}, "line 1")
    assert ([dict(turn) for turn in pair.prompt], pair.chosen, pair.rejected) == ([ASK], "Yes.", "No.")
    assert pair.tie is None
    assert [document.messages[-1]["content"] for document in pair.documents()] == ["Yes.", "No."]


def test_a_directory_gives_the_pairs_of_its_records_whatever_case_their_names_have(tmp_path: Path) -> None:
    row = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    for name in ("a.JSONL", "b.json", "c.ndjson", ".d.jsonl"):
        write(tmp_path / name, [row])
    (tmp_path / "README.md").write_text("about them")
    files = [pair.where.partition(",")[0] for pair in read(str(tmp_path))]
    assert [Path(file).name for file in files] == ["a.JSONL", "b.json", "c.ndjson"]


def test_several_turns_before_the_answers() -> None:
    pair = from_record({"chosen": [ASK, NO, ASK, YES], "rejected": [ASK, NO, ASK, NO], "tie": True}, "line 1")
    assert [turn["content"] for turn in pair.prompt] == ["Is it?", "No.", "Is it?"] and pair.tie is True


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ({"prompt": "a", "chosen": "b"}, "all strings or all lists"),
        ({"prompt": "a", "chosen": "b", "rejected": [NO]}, "all strings or all lists"),
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "nothing to prefer"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "an answer is blank"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tie": "yes"}, "'tie' must be true or false; got 'yes'"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 3, "score_rejected": 3},
            "both answers have the score 3: is that a tie",
        ),
        ({"chosen": [YES], "rejected": [NO]}, "no turn before the answers"),
        ({"prompt": [ASK], "chosen": [ASK, YES], "rejected": [NO]}, "'chosen' must be one turn of the assistant"),
        ({"prompt": [ASK], "chosen": [ASK], "rejected": [NO]}, "'chosen' must be one turn of the assistant"),
        ({"text": "a"}, "found 'text'"),
    ],
)
def test_what_is_no_pair(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{said}"):
        from_record(row, "line 1")


def test_equal_scores_that_are_said_to_be_a_tie_are_one() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 3, "score_rejected": 3, "tie": True}
    assert from_record(row, "line 1").tie is True


def test_all_rows_say_whether_they_are_ties_or_none_does(tmp_path: Path) -> None:
    one, other = ({"prompt": p, "chosen": "b", "rejected": "c"} for p in "xy")
    silent = read(str(write(tmp_path / "silent.jsonl", [one, other])))
    with pytest.raises(DataError, match="SOURCE has no field 'tie', and this objective learns from ties"):
        preferences.check_ties(silent, "SOURCE")
    with pytest.raises(DataError, match=r"mixed\.jsonl, line 2 has no 'tie'"):
        read(str(write(tmp_path / "mixed.jsonl", [{**one, "tie": False}, other])))
    with pytest.raises(DataError, match="is empty"):
        read(str(write(tmp_path / "empty.jsonl", [])))
    with pytest.raises(DataError, match=r"unknown built-in set of pairs 'arc_esy'\. Did you mean 'arc_easy'"):
        read("builtin:arc_esy")


def test_prompts_stay_on_one_side() -> None:
    pairs = [Pair(({"role": "user", "content": str(i // 3)},), "a", str(i), False) for i in range(30)]
    own, held = split(pairs, 0.2)
    assert len(held) == 6 and not {p.key for p in own} & {p.key for p in held}
    assert split(pairs[::-1], 0.2)[1] == held[::-1]
    with pytest.raises(DataError, match="one prompt"):
        split(pairs[:3], 0.5)


def test_made_up_pairs_have_known_utilities_and_as_many_ties_as_asked(tmp_path: Path) -> None:
    pairs = synthetic(300, ties=0.3, seed=1)
    ties = [pair for pair in pairs if pair.tie]
    apart = {
        tie: [abs(utility(p.chosen) - utility(p.rejected)) for p in pairs if p.tie is tie] for tie in (True, False)
    }
    assert len(ties) == 90 and max(apart[True]) <= min(apart[False])
    assert all(utility(p.chosen) > utility(p.rejected) for p in pairs if not p.tie)
    first = sum(utility(p.chosen) > utility(p.rejected) for p in ties)
    assert 0 < first < 90  # a tie says nothing of which is better
    again = read(str(write(tmp_path / "pairs.jsonl", list(records(pairs)))))
    assert [p.digest for p in again] == [p.digest for p in pairs] == [p.digest for p in synthetic(300, 0.3, 1)]
    assert synthetic(300, 0.3, 2) != pairs


@pytest.mark.parametrize(("count", "ties"), [(50, 0.0), (500, 0.0), (2000, 0.0), (500, 0.02)])
def test_fewer_ties_than_come_by_chance(count: int, ties: float) -> None:
    pairs, usual = synthetic(count, ties), synthetic(count)
    assert sum(bool(pair.tie) for pair in pairs) == round(ties * count)
    assert all(utility(p.chosen) > utility(p.rejected) for p in pairs if not p.tie)
    assert all(utility(p.chosen) == utility(p.rejected) for p in pairs if p.tie)
    assert [p.prompt for p in pairs] == [p.prompt for p in usual] and pairs == synthetic(count, ties)
    again = {p.key: {p.chosen, p.rejected} for p in usual if not p.tie}
    assert all({p.chosen, p.rejected} == again[p.key] for p in pairs if p.key in again)


def test_pairs_of_questions() -> None:
    asked = [Question((f"Question: {i}?\nAnswer:",) * 3, (" red", " blue", " green"), label=1) for i in range(20)]
    pairs = from_questions(asked, ties=0.25)
    assert [pair.tie for pair in pairs].count(True) == 5
    assert all((pair.chosen == "blue") is not pair.tie and pair.rejected != "blue" for pair in pairs)
    assert pairs[0].prompt[0]["content"] == "0?"
    two = [Question(("Q",) * 2, (" yes", " no"), label=0)] * 4
    assert [pair.tie for pair in from_questions(two, ties=1.0)] == [False] * 4
