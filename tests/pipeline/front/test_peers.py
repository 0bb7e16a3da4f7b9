from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lowdim.pipeline.front.forms import FORMS
from lowdim.pipeline.front.peers import foreign


def test_a_model_from_a_gguf_file_lies_on_its_grid(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" * 3)
    row = foreign(FORMS["source"], str(file))
    assert row.file_bytes == 12 and row.perplexity is None
    assert "lies on that file's grid" in row.note


def test_a_model_from_elsewhere_has_no_source_file(tmp_path: Path) -> None:
    row = foreign(FORMS["source"], str(tmp_path))
    assert row.file_bytes is None and "does not come from a GGUF file" in row.note


def test_llama_cpp_says_why_it_is_missing() -> None:
    row = foreign(FORMS["llama.cpp-Q4_K_M"], "builtin:smollm2-135m")
    assert row.perplexity is None and row.file_bytes is None
    if find_spec("llama_cpp") is None:
        assert "llama-cpp-python is not installed" in row.note
