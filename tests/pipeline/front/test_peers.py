"""Rows of forms that llama.cpp runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.evaluate.conftest import build_tokenizer

from lowdim.core.errors import LowdimError
from lowdim.core.progress import Silent
from lowdim.data.batch import Batch
from lowdim.data.windows import Windows
from lowdim.evaluate.quality.zeroshot import check_tasks
from lowdim.models.disk.source import resolve
from lowdim.models.load import load
from lowdim.pipeline.front import llamacpp
from lowdim.pipeline.front.forms import FORMS
from lowdim.pipeline.front.measure import Row
from lowdim.pipeline.front.peers import ROOM, foreign, room_for, seconds_per_token, source_file
from lowdim.pipeline.front.settings import Settings

TEXT = Windows(torch.ones(1, 8, dtype=torch.int64), {})


def row(form: str, model: Path, place: Path) -> Row:
    return foreign(FORMS[form], place, Settings(str(model)), 64, None, TEXT, Silent())


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)


def write(path: Path, tied: bool) -> Path:
    """Write a GGUF file of tensors: an embedding of 4 rows of 8, a matrix, and a head unless it is tied."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((16, 8), np.float16))
    if not tied:
        writer.add_tensor("output.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.usefixtures("without")
def test_without_the_library_the_file_has_its_size_and_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" * 3)
    found = row("source", file, tmp_path)
    assert found.file_bytes == 12 and found.perplexity is None
    assert "llama-cpp-python is not installed" in found.note
    other = row("llama.cpp-Q4_K_M", file, tmp_path)
    assert other.file_bytes is None and "llama-cpp-python is not installed" in other.note


def test_a_model_from_elsewhere_has_no_file_that_llama_cpp_could_round(tmp_path: Path) -> None:
    for name in ("source", "llama.cpp-Q4_K_M"):
        found = row(name, tmp_path, tmp_path)
        assert found.file_bytes is None and "does not come from a GGUF file" in found.note


def test_a_version_that_lacks_something_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old: Any = ModuleType("llama_cpp")
    old.llama_model_load_from_file = None
    monkeypatch.setitem(sys.modules, "llama_cpp", old)
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: old)
    monkeypatch.setattr(llamacpp, "version", lambda name: "0.1.0")
    assert llamacpp.missing() == "llama-cpp-python 0.1.0 has no llama_init_from_model; take a newer one"


@pytest.mark.parametrize(
    ("letters", "most", "room"),
    [(0, 10_000, ROOM), (3, 10_000, ROOM), (3, 64, 64), (5000, 10_000, 5002), (5000, 64, 64), (5000, None, 5002)],
)
def test_there_is_room_for_the_longest_question(letters: int, most: int | None, room: int, tmp_path: Path) -> None:
    """The context, a blank and two letters of a choice; the last token is not given to the model."""
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"context": "a" * letters, "choices": ["bb", "c"], "label": 0}))
    longest = check_tasks(build_tokenizer(), [str(file)] if letters else [], max_length=most)
    assert room_for(TEXT, longest, most) == room


def test_tasks_are_encoded_before_and_not_for_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called."""

    class Loaded(Exception):
        pass

    def loaded(model: Path, room: int) -> None:
        raise Loaded(f"{model.name} {room}")

    monkeypatch.setattr(llamacpp, "missing", lambda: "")
    monkeypatch.setattr(llamacpp, "LlamaCpp", loaded)
    for name in ("model.gguf", "Model.GGUF", "sha256-00ff"):
        settings = Settings(str(write(tmp_path / name, tied=True)), tasks=("nothing-reads-this.jsonl",))
        with pytest.raises(Loaded, match=rf"^{name} 123$"):
            foreign(FORMS["source"], tmp_path, settings, 123, None, TEXT, Silent())


def test_a_token_is_timed_on_the_source_where_llama_cpp_can_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def __init__(self, model: Path, room: int) -> None:
            assert (model.name, room) == ("model.gguf", 64)

        def __call__(self, batches: Any) -> Any:
            time.sleep(0.01 * batches[0].input_ids.numel())
            return iter(())

        def close(self) -> None: ...

    monkeypatch.setattr(llamacpp, "LlamaCpp", Slow)
    file = Settings(str(write(tmp_path / "model.gguf", tied=True)))
    for settings, why, known in ((file, "", True), (file, "not installed", False), (Settings("other"), "", False)):
        monkeypatch.setattr(llamacpp, "missing", lambda why=why: why)
        found = seconds_per_token(settings, 64, TEXT.input_ids)
        assert (found is not None) == known
        assert found is None or found >= 0.01


@pytest.mark.parametrize(("tied", "bytes_read"), [(True, 128 + 256 + 32), (False, 256 + 128 + 32)])
def test_a_step_reads_every_matrix_but_one_row_of_an_embedding_that_is_no_head(
    tied: bool, bytes_read: int, tmp_path: Path
) -> None:
    assert llamacpp.bytes_read(write(tmp_path / "model.gguf", tied)) == bytes_read


@pytest.mark.nightly
def test_llama_cpp_says_what_the_model_says(tmp_path: Path) -> None:
    """The embedded model's own file, in the engine that it was made for, against Transformers in fp32."""
    pytest.importorskip("llama_cpp")
    file = source_file("builtin:smollm2-135m")
    assert file is not None
    ids = torch.randint(5, 49_000, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    model = load(resolve("builtin:smollm2-135m").path, dtype=torch.float32)
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits
    peer = llamacpp.LlamaCpp(file, 64)
    [found] = peer([Batch(ids, mask)])
    assert bool((found[1, 20:] == 0).all())
    for one, other, real in zip(found, wanted, mask.bool(), strict=True):
        difference = torch.nn.functional.kl_div(
            one[real].log_softmax(-1), other[real].log_softmax(-1), log_target=True, reduction="batchmean"
        )
        assert difference < 0.02
    assert len(peer.decode([1, 2, 3], 4)) == 4
    peer.close()
    rounded = tmp_path / "model.gguf"
    llamacpp.requantize(file, rounded, "Q2_K")
    assert rounded.stat().st_size < file.stat().st_size
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" * 3)
    with pytest.raises(LowdimError, match="cannot load"):
        llamacpp.LlamaCpp(tmp_path / "bad.gguf", 64)
    with pytest.raises(LowdimError, match="cannot write"):
        llamacpp.requantize(tmp_path / "bad.gguf", tmp_path / "never.gguf", "Q8_0")
    assert not (tmp_path / "never.gguf").exists()
