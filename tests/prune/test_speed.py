"""What the speed at the end of a run is measured of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lowdim.models.load import load
from lowdim.prune import speed


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"num_beams": 4, "early_stopping": True},
        {"do_sample": True, "temperature": 9.0, "num_return_sequences": 2},
        {"max_time": 0.0},
        {"stop_strings": ["a"]},
        {"eos_token_id": list(range(64))},
    ],
    ids=str,
)
def test_one_sequence_is_continued_greedily_by_as_many_tokens_as_are_said(
    own: dict[str, Any], saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(saved("llama"), tmp_path / "model"))
    (path / "generation_config.json").write_text(json.dumps(own))
    rows: list[int] = []

    def opened(*args: Any, **how: Any) -> Any:
        model = load(*args, **how)
        model.register_forward_pre_hook(lambda _, a, given: rows.append(len(given["input_ids"])), with_kwargs=True)
        return model

    monkeypatch.setattr(speed, "load", opened)
    found = speed.measure_speed(path, path, torch.float32, 6)
    assert found["note"] == speed.NOTE and found["sparse_tokens_per_s"] > 0
    assert rows == [1] * 2 * (speed.WARM_UP + speed.ROUNDS * 6)
