"""Tiny pre-trainings: a text that can be learnt, a model of two blocks, a handful of steps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowdim.train.pretrain.api import PretrainingResult, pretrain
from lowdim.train.pretrain.log import Log
from lowdim.train.pretrain.recipe import Pretraining

WORDS = "the cat dog bird sees hears likes big small red and a house tree river on under near".split()  # noqa: SIM905
MODEL = {
    "name": "9m",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def documents(count: int = 40, seed: int = 0) -> list[str]:
    """Return documents of different lengths, all of them different."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(20, 60))) + f" {i}." for i in range(count)]


def write(path: Path, texts: list[str] | None = None) -> Path:
    lines = [json.dumps({"text": text}) for text in (documents() if texts is None else texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def chats(path: Path, count: int = 12) -> Path:
    source = random.Random(1)
    rows = []
    for i in range(count):
        words = source.choices(WORDS, k=6)
        turns = [{"role": "user", "content": " ".join(words[:3])}, {"role": "assistant", "content": f"{words[3]} {i}"}]
        rows.append(json.dumps({"messages": turns * (1 + i % 2)}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def recipe(source: Path | str, **settings: Any) -> Pretraining:
    base: dict[str, Any] = {
        "model": MODEL,
        "data": {"source": str(source), "vocabulary": 300, "validation": 0.2},
        "steps": 6,
        "length": 16,
        "batch": 6,
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "device": "cpu",
    }
    for key, value in settings.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **value} if both else value
    return Pretraining(**base)


def run(source: Path | str, out: Path, **settings: Any) -> PretrainingResult:
    return pretrain(recipe(source, **settings), out=out)


def losses(out: Path) -> list[tuple[Any, ...]]:
    """Return what a log says that does not depend on the machine."""
    found = [json.loads(line) for line in out.with_name(f"{out.name}.log.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("norm"), line.get("validation_loss")) for line in found]


def weights(out: Path) -> bytes:
    (file,) = out.glob("*.safetensors")
    return file.read_bytes()


class _StopError(Exception):
    pass


def interrupt(run: Callable[[], object], at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run die after a step."""
    real = Log.write

    def write(self: Any, line: dict[str, Any]) -> None:
        if line["step"] == at:
            raise _StopError
        real(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", write)
        with pytest.raises(_StopError):
            run()
