"""States come back as they were, through a file too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowdim.core.errors import CheckpointError
from lowdim.nn.int8 import Int8Weight
from lowdim.runs import tree
from lowdim.runs.directory import Directory
from lowdim.train.compare import store

STATE = {
    "numbers": [1, 2.5, 1 / 3, 1e-300, float("inf"), None, True, "text"],
    "pair": (0.9, 0.999),
    "state": {
        0: {"step": torch.tensor(3.0)},
        7: {"m": torch.arange(6).reshape(2, 3), "b": torch.tensor([True])},
    },
    "empty": {},
    "nothing": torch.empty(0, 4),
}


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))  # type: ignore[arg-type]
    return type(one) is type(two) and one == two


def test_it_comes_back() -> None:
    assert same(STATE, tree.unpack(*tree.pack(STATE)))


def test_weights_of_codes_come_back_code_by_code(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = Int8Weight.of(torch.randn(24, 64, generator=draw)).to(torch.bfloat16)
    weight.move_(torch.full((24, 64), 0.01), draw)  # by chance: the nearest codes of what it stands for are others
    text, tensors = tree.pack({"weight": torch.nn.Parameter(weight, requires_grad=False)})
    back = tree.unpack(text, tensors)["weight"]
    assert type(back) is Int8Weight
    assert (back.dtype, back.group, back.stochastic) == (torch.bfloat16, 256, True)
    assert all(torch.equal(getattr(back, part), getattr(weight, part)) for part in ("codes", "scales", "zeros"))
    monkeypatch.setattr(torch.serialization, "get_safe_globals", list)
    with pytest.raises(CheckpointError, match=r"holds a lowdim.nn.int8.Int8Weight, which this process does not know"):
        tree.unpack(text, tensors)


def test_it_comes_back_from_a_file(tmp_path: Path) -> None:
    with Directory(tmp_path / "out") as directory:
        writer = store.Store(directory)
        writer.put("x.safetensors", STATE)
        assert same(STATE, writer.get("x.safetensors"))
        assert writer.get("y.safetensors") is None
        writer.drop("x.safetensors")


def test_what_is_not_plain_is_refused() -> None:
    with pytest.raises(TypeError, match="got object"):
        tree.pack({"a": [object()]})
