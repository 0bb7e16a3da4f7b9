"""Optimizers in the small space of their gradients, by name in a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.pretrain import small

from lowdim.core.errors import LowdimError
from lowdim.models.load import load


@pytest.mark.parametrize(
    ("name", "settings"),
    [("galore", {}), ("apollo", {}), ("q-galore", {}), ("q-galore", {"layerwise": True})],
    ids=str,
)
def test_a_recipe_names_it(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    source = small.write(tmp_path / "text.jsonl")
    optimizer = {"name": name, "rank": 4, "gap": 2, "lr": 1e-2, **settings}
    small.run(source, tmp_path / "out", optimizer=optimizer, clip=None if settings else 1.0)
    found = [line[3] for line in small.losses(tmp_path / "out") if line[3] is not None]
    assert found[-1] < found[0]
    assert load(tmp_path / "out").num_parameters() > 0


def test_layerwise_does_not_clip(tmp_path: Path) -> None:
    source = small.write(tmp_path / "text.jsonl")
    with pytest.raises(LowdimError, match="no clip"):
        small.run(source, tmp_path / "out", optimizer={"name": "galore", "rank": 4, "layerwise": True})
