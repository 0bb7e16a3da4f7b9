"""The benchmark for GPUs, whose code runs on a processor at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).parents[3] / "benchmarks" / "gpu" / "recover.py"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_recover", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_all_of_it_at_a_tiny_size(program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.main(["--device", "cpu", "--size", "tiny", "--json", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["model"], row["stage"], row["blocks"]) for row in rows] == [
        ("tiny", "blocks", 6),
        ("tiny", "distill", None),
        ("tiny", "blocks", 2),
        ("tiny", "blocks", 4),
        ("tiny, extrapolated", "blocks", 6),
    ]
    two, four, whole = rows[2:]
    assert whole["seconds"] == pytest.approx(2 * four["seconds"] - two["seconds"])
    assert all(row["seconds"] > 0 and row["planned_bytes"] > 0 for row in rows)
    assert "| tiny, extrapolated | blocks | 6 |" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "said"), [([], "torch sees no GPU"), (["--device", "cpu"], "give --size tiny")])
def test_what_cannot_be_measured_is_refused(
    flags: list[str],
    said: str,
    program: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        program.main(flags)
    assert said in capsys.readouterr().err
