"""Files and states that a newer lowdim wrote are refused by their version, before anything is read into them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.core.masks import Masks
from lowdim.models.ticket import Ticket
from lowdim.train import RigL, SparseTraining


def aged(path: Path, kind: str) -> Path:
    """Rewrite a file as one of the next version."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["lowdim"])
    assert about[kind] == 1
    save_file(load_file(path), path, {"lowdim": json.dumps(about | {kind: 2})})
    return path


def test_masks(tmp_path: Path) -> None:
    masks = Masks.from_dict({"a": torch.ones(2, 3, dtype=torch.bool)})
    masks.save(tmp_path / "m")
    assert Masks.load(tmp_path / "m").density("a") == 1.0
    with pytest.raises(LowdimError, match=r"format is 2, this lowdim reads 1\. Upgrade lowdim"):
        Masks.load(aged(tmp_path / "m", "masks"))


def test_tickets(tmp_path: Path) -> None:
    Ticket({"a": torch.ones(2, 3)}, Masks.from_dict({"a": torch.ones(2, 3, dtype=torch.bool)})).save(tmp_path / "t")
    assert torch.equal(Ticket.load(tmp_path / "t").state["a"], torch.ones(2, 3))
    with pytest.raises(LowdimError, match=r"format is 2, this lowdim reads 1\. Upgrade lowdim"):
        Ticket.load(aged(tmp_path / "t", "ticket"))


def test_the_state_of_a_training() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    training = SparseTraining(
        model, torch.optim.SGD(model.parameters(), 0.1), method=RigL(), sparsity=0.5, total_steps=9
    )
    state = training.state_dict()
    training.load_state_dict(state)
    before = {name: mask.clone() for name, mask in training.masks.items()}
    with pytest.raises(LowdimError, match=r"state has version 2; this lowdim reads 1\. Upgrade lowdim"):
        training.load_state_dict(state | {"version": 2})
    assert all(torch.equal(before[name], mask) for name, mask in training.masks.items())
    training.load_state_dict({key: value for key, value in state.items() if key != "version"})
