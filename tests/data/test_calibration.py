"""Calibration data: every kind of source, the hash, and what is refused."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lowdim.data import questions, wiki
from lowdim.data.batch import Batch, num_tokens
from lowdim.data.calibration import calibration, check_context
from lowdim.data.errors import DataError
from lowdim.data.text import Document
from lowdim.data.tokens import fingerprint

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 4, "pack my box with five dozen jugs. " * 5]
IDS = torch.arange(24).reshape(4, 6)


def test_the_hash_follows_the_tokens_alone(tokenizer: Any) -> None:
    data = calibration(TEXTS, tokenizer, samples=4, context=16)
    assert data.hash == calibration(tuple(TEXTS), tokenizer, samples=4, context=16, tokens_per_batch=1).hash
    assert data.hash == fingerprint(data.whole.input_ids, None)
    assert data.hash != calibration(TEXTS, tokenizer, samples=4, context=16, seed=1).hash


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert fingerprint(IDS, None) == "6a6d2e7bb8d5cb9784a9d5136cd73d9d4d0cb90859469526f526aeedeb916193"


def test_batching_changes_nothing(tokenizer: Any) -> None:
    one = calibration(TEXTS, tokenizer, samples=4, context=16, tokens_per_batch=16)
    all_at_once = calibration(TEXTS, tokenizer, samples=4, context=16, tokens_per_batch=999)
    assert [len(batch) for batch in one.batches] == [1] * 4
    assert [len(batch) for batch in all_at_once.batches] == [4]
    assert one.hash == all_at_once.hash
    assert torch.equal(one.whole.input_ids, all_at_once.whole.input_ids)


def test_the_global_generators_stay_where_they_are(tokenizer: Any) -> None:
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    calibration(TEXTS, tokenizer, samples=2, context=16)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_masked_and_not_counted(tokenizer: Any, side: str) -> None:
    documents = [Document(question="ab", answer="c"), Document(question="abcd", answer="e")]
    data = calibration(documents, tokenizer, 2, 30, format="single", padding=side)
    lengths = sorted(len(document.answered()) for document in documents)
    assert data.context == 30
    assert data.tokens == sum(lengths) == num_tokens(data.batches)
    mask = data.whole.attention_mask
    assert mask is not None
    assert sorted(mask.sum(1).tolist()) == lengths
    assert bool((mask[:, 0 if side == "left" else -1] == 0).all())
    assert bool((data.whole.input_ids[mask == 0] == tokenizer.eos_token_id).all())


def test_the_record_is_what_the_manifest_needs(tokenizer: Any) -> None:
    record = calibration(TEXTS, tokenizer, 2, 8, seed=3).record()
    assert json.loads(json.dumps(record)) == record
    assert record | {"hash": ""} == {
        "source": "2 texts",
        "hash": "",
        "samples": 2,
        "context": 8,
        "tokens": 16,
        "format": "text",
        "seed": 3,
        "padding": "left",
        "bos": "tokenizer",
        "rationale": False,
        "in_context": None,
    }


def test_files(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    data = calibration(tmp_path / "a.txt", tokenizer, 2, 8)
    assert data.source == str(tmp_path / "a.txt")
    assert data.hash == calibration([TEXTS[0]], tokenizer, 2, 8).hash


def test_saved_samples_come_back_with_their_hash(tokenizer: Any, tmp_path: Path) -> None:
    documents = [Document(question="ab", answer="c"), Document(question="abcd", answer="e")]
    data = calibration(documents, tokenizer, 2, 30, format="single")
    data.save(tmp_path / "samples.safetensors")
    again = calibration(tmp_path / "samples.safetensors", samples=2)
    assert (again.hash, again.tokens, again.format) == (data.hash, data.tokens, "tokens")


TOKEN_SOURCES = {
    "matrix": lambda: [IDS],
    "rows": lambda: list(IDS),
    "int32": lambda: list(IDS.to(torch.int32)),
    "lists": lambda: IDS.tolist(),
    "arrays": lambda: [row.numpy() for row in IDS],
    "batches": lambda: [Batch(IDS[:3]), Batch(IDS[3:])],
    "mappings": lambda: [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}],
    "generator": lambda: (row for row in IDS),
    "loader": lambda: torch.utils.data.DataLoader(IDS, batch_size=3),
    "data set": lambda: DataSet([{"input_ids": row.tolist()} for row in IDS]),
    "masked": lambda: [{"input_ids": IDS, "attention_mask": torch.ones(4, 6, dtype=torch.bool)}],
}


class DataSet:
    """What lowdim uses of a ``datasets.Dataset``."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.column_names = rows, list(rows[0]) if rows else ["text"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


@pytest.mark.parametrize("kind", TOKEN_SOURCES)
def test_tokens_in_any_wrapping(kind: str) -> None:
    data = calibration(TOKEN_SOURCES[kind](), samples=4)
    assert torch.equal(data.whole.input_ids, IDS)
    assert (data.samples, data.context, data.tokens) == (4, 6, 24)
    assert data.hash == fingerprint(IDS, None)


def test_sequences_of_different_lengths_are_padded() -> None:
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    left = calibration(rows, samples=2).whole
    assert left.input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert calibration(rows, samples=2, padding="right").whole.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]


def test_the_first_samples_are_taken_and_fewer_are_reported() -> None:
    assert calibration(list(IDS), samples=3).samples == 3
    with pytest.warns(UserWarning, match="holds 4 sequences, not the 128 asked for"):
        assert calibration(list(IDS)).samples == 4


def test_data_sets_with_text_and_with_questions(tokenizer: Any) -> None:
    rows = DataSet([{"text": text, "id": i} for i, text in enumerate(TEXTS)])
    assert calibration(rows, tokenizer, 2, 8).hash == calibration(TEXTS, tokenizer, 2, 8).hash
    asked = DataSet([{"question": "ab", "answer": "c"}])
    assert calibration(asked, tokenizer, 1, 30, format="single").tokens == len("Question: ab\nAnswer: c")
    records = calibration([{"question": "ab", "answer": "c"}], tokenizer, 1, 30, format="single")
    assert records.tokens == len("Question: ab\nAnswer: c")


def test_the_built_in_sources(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiki, "articles", lambda: tuple(wiki.Article(t[:3], t) for t in TEXTS))
    assert calibration("builtin", tokenizer, 2, 8).hash == calibration(TEXTS[:1], tokenizer, 2, 8).hash
    monkeypatch.setattr(questions, "documents", lambda name: [Document(question=name, answer="x")])
    data = calibration("builtin:openbookqa", tokenizer, 1, 40, format="single")
    assert tokenizer.decode(data.whole.input_ids[0, -25:]) == "ion: openbookqa\nAnswer: x"
    with pytest.raises(DataError, match=r"unknown built-in set 'gsm8k'. Did you mean 'gsm8k_test'"):
        calibration("builtin:gsm8k", tokenizer)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no sequence of tokens"),
        ([torch.zeros(3)], r"item 0: input_ids must be integers .* got torch.float32 \[3\]"),
        ([torch.zeros(1, 2, 3, dtype=torch.int64)], r"one or two dimensions; got torch.int64 \[1, 2, 3\]"),
        ([object()], "item 0: input_ids must be token ids; got object"),
        ([IDS, {"labels": IDS}], "item 1 has no 'input_ids'; it has 'labels'"),
        ([{"input_ids": IDS, "attention_mask": IDS[:, 1:]}], r"\[4, 6\] and attention_mask \[4, 5\] differ"),
        ([{"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}], "a sequence without a token"),
        ([torch.zeros(0, dtype=torch.int64)], "a sequence without a token"),
        ([torch.zeros(3000, dtype=torch.int64)], "3000 tokens, more than context=2048; use context=3000"),
        (DataSet([]), "the data set is empty"),
        (SimpleNamespace(column_names=["text"]), "streaming data set"),
        (5, "cannot calibrate on a int"),
        (
            {"train": DataSet([{"text": "a"}]), "test": DataSet([])},
            r"split into train, test: give one.*data\['train'\]",
        ),
        ({"text": ["a", "b"]}, "a mapping of 'text' is no list of rows"),
        ([torch.tensor([5, -1, 7])], "item 0 holds token id -1: ids count from 0"),
        ([IDS, {"input_ids": [[3, -100]], "labels": [[3, -100]]}], "item 1 holds token id -100.*marks labels"),
        (["a", 5], "item 1 is a int, where the items before it are text"),
        ([None, None], "holds no text: all of its 2 rows are blank"),
        (["", " \n"], "holds no text: all of its 2 rows are blank"),
        (({"text": t} for t in ("", None)), "all of its 2 rows are blank"),
        ([{"text": ["a"]}], "'text' must be a string; got list"),
        ("ids.pt", "reads no pickles"),
    ],
)
def test_other_sources_are_refused(tokenizer: Any, source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibration(source, tokenizer)


WORDS = [f"{i} " + "the quick brown fox jumps over the lazy dog. " * (i % 3 + 1) for i in range(40)]
BLANK: list[str | None] = [item for text in WORDS for item in ("", text, None, " \n")]


def forms(rows: list[Any], path: Path) -> dict[str, Any]:
    """Return the same rows in every form in which they can be given."""
    records = [{"text": row} for row in rows]
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, records)))
    (path / "rows.JSON").write_text(json.dumps(records))
    return {
        "texts": rows,
        "records": records,
        "JSON lines": path / "rows.jsonl",
        "array": path / "rows.JSON",
        "data set": DataSet(records),
        "generator of texts": (row for row in rows),
        "generator of records": (record for record in records),
        "documents": [Document(text=row or "") for row in rows],
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("opens", [False, True], ids=["", "bos"])
def test_equal_rows_give_equal_tokens_in_every_form(
    tokenizer: Any, bos_tokenizer: Any, tmp_path: Path, seed: int, opens: bool
) -> None:
    made = {
        name: calibration(rows, bos_tokenizer if opens else tokenizer, 6, 40, seed=seed)
        for name, rows in forms(BLANK, tmp_path).items()
    }
    first = made["texts"]
    assert {name for name, data in made.items() if data.hash != first.hash} == set()
    assert {data.record()["passed_over"] for data in made.values()} == {first.record()["passed_over"]}
    assert 0 < first.record()["passed_over"] <= 120
    assert first.tokens == 240


@pytest.mark.parametrize("samples", [1, 2, 30])
def test_blank_rows_leave_every_other_token(tokenizer: Any, samples: int) -> None:
    data = calibration(BLANK, tokenizer, samples, 40)
    whole = "".join(tokenizer.decode(row) for row in data.whole.input_ids)
    assert data.samples == samples
    assert "\n\n\n" not in whole


def test_real_data_sets(tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": BLANK})
    data = calibration(rows, tokenizer, 6, 40)
    assert data.hash == calibration(BLANK, tokenizer, 6, 40).hash
    assert calibration(rows["text"], tokenizer, 6, 40).hash == data.hash
    assert calibration(iter(rows.to_iterable_dataset()), tokenizer, 6, 40).hash == data.hash
    with pytest.raises(DataError, match=r"split into train: give one part, such as data\['train'\]"):
        calibration(datasets.DatasetDict(train=rows), tokenizer)
    with pytest.raises(DataError, match="streaming data set"):
        calibration(rows.to_iterable_dataset(), tokenizer)
    endless = datasets.IterableDataset.from_generator(lambda: ({"text": "a"} for _ in range(3)))
    with pytest.raises(DataError, match="streaming data set"):
        calibration(endless, tokenizer)
    ids = datasets.Dataset.from_dict({"input_ids": [[], *IDS.tolist()], "attention_mask": [None, *[[1] * 6] * 4]})
    found = calibration(ids, samples=4)
    assert (found.hash, found.record()["passed_over"]) == (fingerprint(IDS, None), 1)


def test_questions_with_blank_rows(tokenizer: Any) -> None:
    asked: list[Any] = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(6)]
    blank = [{"question": "", "answer": ""}, {"question": None, "answer": None}, None]
    data = calibration(asked + blank, tokenizer, 6, 40, format="single")
    assert data.samples == 6
    with pytest.raises(DataError, match="have 6 questions"):
        calibration(asked + blank, tokenizer, 7, 40, format="single")
    filled = calibration(asked + blank, tokenizer, 6, 40, format="concat")
    assert filled.record()["passed_over"] == 3


def test_masked_negative_ids_are_padding() -> None:
    ids, mask = torch.tensor([[-1, -100, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    data = calibration([{"input_ids": ids, "attention_mask": mask}], samples=1)
    assert data.whole.input_ids.tolist() == [[0, 0, 5, 6]]
    assert calibration({"input_ids": ids, "attention_mask": mask}, samples=1).hash == data.hash


CHATS = [
    {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "so be it"}]} for i in range(9)
]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def test_chats_are_written_by_the_template(bos_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(bos_tokenizer)
    with pytest.raises(DataError, match="holds chats, and this tokenizer has no chat template"):
        calibration(CHATS, tokenizer, 1, 30)
    tokenizer.chat_template = TEMPLATE
    data = calibration(CHATS, tokenizer, 9, 29)
    texts = [tokenizer.decode(row) for row in data.whole.input_ids]
    assert sorted(texts) == [f"<s>user: {i}\nassistant: so be it\n"[: 3 + 28] for i in range(9)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
    for form in (tmp_path / "c.jsonl", DataSet(CHATS), (chat for chat in CHATS)):
        assert calibration(form, tokenizer, 9, 29).hash == data.hash
    with pytest.raises(DataError, match="needs questions and answers, but document 1 is a chat"):
        calibration(CHATS, tokenizer, 1, 29, format="single")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses this chat: roles must alternate"):
        calibration(CHATS, tokenizer, 9, 29)


def test_safetensors_without_ids_or_broken(tmp_path: Path) -> None:
    save_file({"tokens": IDS}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="no tensor 'input_ids'; it has tokens"):
        calibration(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a header")
    with pytest.raises(DataError, match=r"cannot read .*broken.safetensors as safetensors"):
        calibration(tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match="cannot read"):
        calibration(tmp_path / "missing.safetensors")


def test_token_ids_beyond_the_embedding_are_refused(tokenizer: Any) -> None:
    assert calibration([IDS], samples=4, vocab_size=24).samples == 4
    with pytest.raises(DataError, match="token id 23, but the model's embedding has 23 rows"):
        calibration([IDS], samples=4, vocab_size=23)


@pytest.mark.parametrize("format", ["zero", "single", "concat"])
def test_a_token_for_padding_alone_needs_no_row_of_the_embedding(tokenizer: Any, format: str) -> None:
    padding, rows = copy.deepcopy(tokenizer), len(tokenizer)
    padding.add_special_tokens({"pad_token": "[PAD]"})
    asked = [{"question": "so", "answer": "be it"}, {"question": "so be it", "answer": "so"}]
    more = {"in_context": 1} if format == "concat" else {}
    with_one = calibration(asked, padding, 2, 64, format=format, vocab_size=rows, **more)
    assert with_one.hash == calibration(asked, tokenizer, 2, 64, format=format, vocab_size=rows, **more).hash


def test_masked_ids_need_no_row_of_the_embedding() -> None:
    rows = [{"input_ids": [1, 2, 9], "attention_mask": [1, 1, 0]}]
    assert calibration(rows, samples=1, context=3, vocab_size=9).whole.input_ids.tolist() == [[1, 2, 0]]
    with pytest.raises(DataError, match="token id 9, but the model's embedding has 9 rows"):
        calibration([{"input_ids": [1, 2, 9]}], samples=1, context=3, vocab_size=9)


@pytest.mark.parametrize("form", ["text", "question", "file"])
def test_halves_of_surrogate_pairs_are_told(tokenizer: Any, tmp_path: Path, form: str) -> None:
    half = "\ud83d"
    row = {"question": f"so {half}", "answer": "be"} if form == "question" else {"text": f"so {half} be it " * 9}
    source: Any = [row]
    if form == "file":
        source = tmp_path / "a.jsonl"
        source.write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"behind '.*so ': half of a surrogate pair"):
        calibration(source, tokenizer, 1, 8, format="single" if form == "question" else "text")


def test_tables_are_told_from_their_rows(tokenizer: Any) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": TEXTS})
    with pytest.raises(DataError, match=r"cannot calibrate on a table \(DataFrame\); give its rows: to_dict"):
        calibration(table, tokenizer, 1, 8)
    rows = calibration(table.to_dict("records"), tokenizer, 1, 8)
    assert calibration(table["text"], tokenizer, 1, 8).hash == rows.hash


def test_text_needs_a_tokenizer_that_can_do_what_is_asked(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="needs the model's tokenizer"):
        calibration(TEXTS)
    with pytest.raises(DataError, match=r"bos is 'tokenizer', 'none' or 'window'; got 'widnow'. Did you mean 'window'"):
        calibration(TEXTS, tokenizer, bos="widnow")  # type: ignore[arg-type]
    without = SimpleNamespace(bos_token_id=None)
    with pytest.raises(DataError, match="has none; use bos='none'"):
        calibration(TEXTS, without, bos="window")


def test_contexts_are_checked_against_the_model() -> None:
    check_context(8, SimpleNamespace(max_position_embeddings=8))
    check_context(8, SimpleNamespace())
    with pytest.raises(DataError, match="context=9 is longer than the model's 8 positions; use context=8"):
        check_context(9, SimpleNamespace(max_position_embeddings=8))
    with pytest.raises(DataError, match="model's 4 positions"):
        check_context(9, SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=4)))
