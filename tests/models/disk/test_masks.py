"""From what `lowdim prune` wrote to masks that a training goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.prune import tiny

import lowdim
from lowdim.core.errors import CheckpointError
from lowdim.core.masks import Masks
from lowdim.train import SparseTraining, Static


@pytest.mark.parametrize(
    "settings",
    [{}, {"storage": "packed"}, {"storage": "packed", "quantize": "int8"}],
    ids=lambda s: "-".join(s.values()),
)
def test_the_masks_of_an_output_hold_while_it_is_fine_tuned(settings: dict[str, Any], tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model")
    made = tiny.recipe(method="magnitude", **settings)
    result = lowdim.prune(str(source), made, calibration=tiny.tokens(), out=tmp_path / "out")
    masks = Masks.load(tmp_path / "out")
    assert set(masks) == {f"{name}.weight" for name in result.manifest["layers"]}
    assert masks.kept() == sum(layer["nonzeros"] for layer in result.manifest["layers"].values())

    model = tiny.model()
    masks.apply_(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = SparseTraining(model, optimizer, method=Static(), masks=masks)
    ids = tiny.tokens()[:2]
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert training.masks == masks
    assert training.sparsity() == pytest.approx(masks.sparsity())


def test_weights_that_are_not_those_recorded_are_refused(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "model")
    lowdim.prune(str(source), tiny.recipe(method="magnitude"), calibration=tiny.tokens(), out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "lowdim.json").read_text())
    name = min(record["hashes"]["masks"])
    record["hashes"]["masks"][name] = "0" * 64
    (tmp_path / "out" / "lowdim.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"{name} .* has another mask than recorded"):
        Masks.load(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no output of lowdim prune"):
        Masks.load(source)
