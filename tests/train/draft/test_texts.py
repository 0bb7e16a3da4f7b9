"""What is measured on: which tokens count, and where prompts end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.draft import small
from tests.train.pretrain import small as pretraining
from transformers import AutoTokenizer

from lowdim.data.questions import Question
from lowdim.evaluate.quality import tasks
from lowdim.train.draft.prepare import prepare


def test_of_a_task_the_right_answers_count_and_prompts_end_before_them(
    text: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        Question(("the cat sees",) * 2, (" a dog", " red house on"), 1),
        Question(("a bird",) * 2, (" big", " red"), 0),
    ]
    monkeypatch.setattr(tasks, "load", lambda name: asked)
    found = prepare(small.recipe(text, base, acceptance={"texts": ["sciq"], "prompt": 2})).samples["sciq"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    for question, row, counted, prompt in zip(asked, found.rows, found.counted, found.prompts, strict=True):
        whole = tokenizer(question.contexts[0] + question.continuations[question.label])["input_ids"]
        before = tokenizer(question.contexts[0])["input_ids"]
        assert list(row) == whole[:-1]
        assert (
            sum(counted) == len(whole) - len(before)
            and counted[len(before) - 1]
            and not any(counted[: len(before) - 1])
        )
        assert list(prompt) == before[-2:]


def test_of_chats_the_answers_count(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    chats = pretraining.chats(tmp_path / "chats.jsonl")
    data = {"source": str(chats), "kind": "sft", "validation": 0.3}
    found = prepare(small.recipe(chats, tmp_path, data=data, length=40)).samples["held"]
    for row, counted, prompt in zip(found.rows, found.counted, found.prompts, strict=False):
        first = counted.index(True) + 1
        assert row[first - len(prompt) : first] == prompt
        assert "assistant" not in tokenizer.decode(row[:first]) and "user" in tokenizer.decode(row[:first])


def test_of_text_every_token_counts_and_batches_are_padded(text: Path, base: Path) -> None:
    found = prepare(small.recipe(text, base)).samples["held"]
    assert len(found.rows) == 6 and len(found.prompts) == 3 and {len(prompt) for prompt in found.prompts} == {4}
    assert all(all(counted) for row, counted in zip(found.rows[:-1], found.counted, strict=False))
    ids, counted = (torch.cat(parts) for parts in zip(*found.batches(words=1 << 22), strict=True))
    assert ids.shape == counted.shape == (6, 16)
    assert int(counted.sum()) == sum(map(sum, found.counted))
    assert found.digest() == prepare(small.recipe(text, base)).samples["held"].digest()
