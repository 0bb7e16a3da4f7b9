"""A checkpoint with some tensors replaced."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import model as model

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.rewrite import rewrite
from lowdim.models.disk.source import resolve
from lowdim.models.disk.verify import verify
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

NAME = "model.layers.0.mlp.up_proj.weight"


def test_nothing_changed_is_a_copy(model: Path, tmp_path: Path) -> None:
    rewrite(resolve(str(model)), tmp_path / "out", {})
    names = {path.name for path in model.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "lowdim.json"}
    assert all(filecmp.cmp(model / name, tmp_path / "out" / name, shallow=False) for name in names)
    assert manifest.read(tmp_path / "out").model.source == str(model)


@pytest.mark.usefixtures("checked_here")
@pytest.mark.parametrize("storage", ["dense", "packed"])
def test_one_tensor_changes_and_the_record_with_it(model: Path, tmp_path: Path, storage: str) -> None:
    recipe = Recipe(sparsity=0.75, method="magnitude", storage=storage, evaluation={"text": None})
    prune(str(model), recipe, out=tmp_path / "pruned")
    before = Checkpoint(tmp_path / "pruned")
    weight = before.read(NAME)
    weight[0] = 1.0
    rewrite(resolve(str(tmp_path / "pruned")), tmp_path / "out", {NAME: weight})
    after = Checkpoint(tmp_path / "out")
    assert after.storage == storage and after.names() == before.names()
    for name in after.names():
        assert torch.equal(after.read(name), weight if name == NAME else before.read(name))
    record = manifest.read(tmp_path / "out")
    layer = record.layers[NAME.removesuffix(".weight")]
    assert layer.nonzeros == int((weight != 0).sum())
    assert record.sparsity is not None and record.sparsity.prunable < 0.75
    assert verify(tmp_path / "out").passed


def test_what_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not"):
        rewrite(resolve(str(model)), tmp_path / "out", {NAME: torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="has no tensor"):
        rewrite(resolve(str(model)), tmp_path / "out", {"nothing": torch.zeros(2, 2)})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_attempt_left_does_not_stand_in_the_way(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(LowdimError, match="unfinished run"):
        rewrite(resolve(str(model)), tmp_path / "out", {})
    rewrite(resolve(str(model)), tmp_path / "out", {}, overwrite=True)
    assert filecmp.cmp(model / "model.safetensors", tmp_path / "out/model.safetensors", shallow=False)
