"""Evaluation windows: cut once, without overlap, the remainder dropped."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lowdim.data import wiki
from lowdim.data.errors import DataError
from lowdim.data.windows import windows


def cut(tokenizer: Any, source: Any, context: int, **options: Any) -> list[str]:
    return [tokenizer.decode(row) for row in windows(source, tokenizer, context, **options).input_ids]


def test_windows_do_not_overlap_and_the_rest_is_dropped(tokenizer: Any) -> None:
    assert cut(tokenizer, ["abcde", "fgh"], 4) == ["abcd", "e\n\nf"]
    assert cut(tokenizer, ["abcde", "fgh"], 4, join="") == ["abcd", "efgh"]


def test_limited_windows_are_spread_over_the_text(tokenizer: Any) -> None:
    assert cut(tokenizer, ["aabbccddeeff"], 2, limit=3) == ["aa", "cc", "ee"]
    assert cut(tokenizer, ["aabb"], 2, limit=9) == ["aa", "bb"]


def test_the_start_token(tokenizer: Any, bos_tokenizer: Any) -> None:
    assert cut(bos_tokenizer, ["abcde"], 3) == ["<s>ab", "cde"]
    assert cut(bos_tokenizer, ["abcde"], 3, bos="none") == ["abc"]
    assert cut(tokenizer, ["abcde"], 3, bos="window") == ["<s>ab", "<s>cd"]


@pytest.mark.parametrize("source", [["", ""], [None, " "], [{"text": ""}, {"messages": None}]])
def test_what_stands_between_blank_rows_is_no_text(tokenizer: Any, source: list[Any]) -> None:
    with pytest.raises(DataError, match="holds no text: all of its 2 rows are blank"):
        windows(source, tokenizer, 2)


@pytest.mark.parametrize("blank", [{"messages": None}, {"messages": []}, {"text": " "}])
def test_blank_rows_among_chats_add_no_start_token(bos_tokenizer: Any, blank: dict[str, Any]) -> None:
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    rows = [{"messages": [{"role": "user", "content": "abcdefgh"}]}]
    assert cut(tokenizer, [*rows, blank], 4)[:2] == cut(tokenizer, rows, 4) == ["<s>abc", "defg"]


def test_the_protocol_says_how(tokenizer: Any) -> None:
    protocol = windows(["abc", "def"], tokenizer, 3, limit=1).protocol
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["text"] == hashlib.sha256(b"abc\n\ndef").hexdigest()
    assert (protocol["context"], protocol["windows"], protocol["windows_in_text"]) == (3, 1, 2)
    assert protocol["tokenizer"]["tokens"] == len(tokenizer)


def test_files_and_the_built_in_text(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("abcd")
    assert cut(tokenizer, tmp_path / "a.txt", 2) == ["ab", "cd"]
    monkeypatch.setattr(wiki, "articles", lambda: (wiki.Article("0", "even"), wiki.Article("1", "odd")))
    assert cut(tokenizer, "builtin", 3) == ["odd"]


def test_texts_in_any_form_make_the_same_windows(tokenizer: Any, tmp_path: Path) -> None:
    rows = ["ab", "", None, "cd"]
    records = [{"text": row} for row in rows]
    (tmp_path / "a.JSONL").write_text("\n".join(map(json.dumps, records)))
    found = [windows(each, tokenizer, 3) for each in (rows, records, tmp_path / "a.JSONL", (row for row in rows))]
    assert {each.protocol["text"] for each in found} == {hashlib.sha256(b"ab" + b"\n\n" * 3 + b"cd").hexdigest()}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([[1, 2, 3]], "measured on text, and tokens holds none"),
        ("a.csv", "no tables"),
        ("builtin:arc_easy", "holds questions to calibrate on"),
        (5, "cannot evaluate on a int"),
        ({"train": ["ab"]}, "no list of rows"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer: Any, source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        windows(source, tokenizer, 2)


@pytest.mark.parametrize(
    ("context", "limit", "message"),
    [
        (9, None, "has 3 tokens, fewer than one window of 9"),
        (1, None, "context must be at least 2"),
        (2, 0, "limit=0"),
    ],
)
def test_impossible_windows_are_refused(tokenizer: Any, context: int, limit: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        windows(["abc"], tokenizer, context, limit=limit)
