"""Questions made from data without choices: by hand, and what must hold of any."""

from __future__ import annotations

import pytest

from lowdim.data.hard import haystack, numbers


def problem(
    number: int, answer: str, solution: str = "7 - 4 = 3 and 3 * 5 = 15", text: str = "How many?"
) -> dict[str, object]:
    return {"doc_id": number, "doc": {"problem": text, "solution": solution, "answer": answer}}


def test_wrong_numbers_come_from_the_solution() -> None:
    [one] = numbers.questions([problem(0, "15")])
    assert one.choices[one.label] == "15"
    assert set(one.choices) - {"15"} <= {"7", "4", "3", "5"} and len(set(one.choices)) == numbers.CHOICES
    assert one.contexts[0] == "Question: How many?\nAnswer:"


def test_a_short_solution_is_filled_with_numbers_nearby() -> None:
    [one] = numbers.questions([problem(0, "15", "It is 15.")])
    assert set(one.choices) == {"15", "16", "14", "17"}


def test_what_is_no_whole_number_or_needs_a_drawing_is_left_out() -> None:
    asked = [problem(0, r"\frac{1}{2}"), problem(1, "3.5"), problem(2, "8", text="[asy] draw(A--B); [/asy] How long?")]
    assert list(numbers.questions(asked)) == []


def test_the_place_of_the_answer_is_drawn_and_always_the_same() -> None:
    asked = [problem(number, "15") for number in range(200)]
    found, again = list(numbers.questions(asked)), list(numbers.questions(asked))
    assert found == again
    assert all(30 < sum(one.label == place for one in found) < 70 for place in range(4))


def squad(number: int, answer: str, length: int = 200) -> dict[str, object]:
    about = f"Title: T_{number}\nBackground: Here {answer} stands {'x ' * (length // 2)}"
    query = f"{about}\nQuestion: What is it?\nAnswer:"
    return {"doc": {"title": f"T_{number}", "query": query, "choices": [answer]}}


WORDS = ["apple", "violin", "marble", "copper", "ribbon", "timber", "candle"]


def test_the_answer_is_in_one_passage_and_the_others_in_others() -> None:
    for one in haystack.questions([squad(number, word) for number, word in enumerate(WORDS)]):
        assert len(one.choices) == haystack.CHOICES == len(set(one.choices))
        context = one.contexts[0]
        assert all(context.count(f"Here {choice} stands") == 1 for choice in one.choices)
        assert context.endswith("Question: What is it?\nAnswer:") and len(context) < haystack.LENGTH + 200


def test_numbers_stand_beside_numbers() -> None:
    rows = [squad(number, word) for number, word in enumerate([*WORDS, "1914", "63", "2005", "88", "7 years"])]
    for one in haystack.questions(rows):
        assert len({any(letter.isdigit() for letter in choice) for choice in one.choices}) == 1


def test_too_few_titles_make_no_question() -> None:
    assert list(haystack.questions([squad(0, "apple"), squad(0, "violin"), squad(1, "marble")])) == []


@pytest.mark.parametrize("length", [400, 1500])
def test_passages_stay_within_the_length_unless_four_are_longer(length: int) -> None:
    for one in haystack.questions([squad(number, word, length) for number, word in enumerate(WORDS)]):
        passages = one.contexts[0].split("\n\n")[:-1]
        assert len(passages) == (7 if length == 400 else 4)
