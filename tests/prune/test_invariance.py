"""What must not matter: padding, the order of the samples, how they come in batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from tests.prune import tiny
from torch import Tensor

from lowdim.data.batch import Batch
from lowdim.data.calibration import calibration
from lowdim.prune.api import PruneResult, prune


def same_bits(one: PruneResult, other: PruneResult) -> bool:
    pairs = zip(tiny.weights(one).values(), tiny.weights(other).values(), strict=True)
    return one.masks == other.masks and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ZOO)
def test_what_padding_holds_changes_no_bit(kind: str) -> None:
    recipe = tiny.recipe(method="sparsegpt", allocation={"name": "owl", "m": 2})
    one, other = (tiny.in_memory(tiny.model(kind), recipe, tiny.padded(fill=fill)) for fill in (0, 33))
    assert same_bits(one, other)
    assert one.manifest["fallbacks"] == []


def widened(data: list[dict[str, Tensor]], left: int, right: int) -> list[dict[str, Tensor]]:
    made = {}
    for name, tensor in data[0].items():
        made[name] = torch.nn.functional.pad(tensor, (left, right), value=0)
    return [made]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom", "gemma3", "mixtral", "falcon"])
@pytest.mark.parametrize(("left", "right"), [(7, 0), (0, 7), (3, 4)])
def test_more_padding_changes_no_mask(kind: str, left: int, right: int) -> None:
    recipe = tiny.recipe(method="wanda")
    one = tiny.in_memory(tiny.model(kind), recipe, tiny.padded())
    other = tiny.in_memory(tiny.model(kind), recipe, widened(tiny.padded(), left, right))
    assert one.masks == other.masks


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_samples_changes_no_mask_of_wandas(kind: str, seed: int) -> None:
    order = torch.randperm(tiny.SAMPLES, generator=torch.Generator().manual_seed(seed))
    recipe = tiny.recipe(method="wanda")
    one = tiny.in_memory(tiny.model(kind), recipe)
    assert tiny.in_memory(tiny.model(kind), recipe, tiny.tokens()[order]).masks == one.masks


def cut(ids: Tensor, sizes: list[int]) -> list[Tensor]:
    return list(ids.split(sizes))


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 4], [5, 1]], ids=str)
@pytest.mark.parametrize("settings", [{"method": "wanda"}, {"method": "sparsegpt"}], ids=str)
def test_how_samples_come_in_batches_changes_no_bit(sizes: list[int], settings: dict[str, Any]) -> None:
    recipe = tiny.recipe(**settings)
    whole = tiny.in_memory(tiny.model(), recipe, tiny.tokens())
    assert same_bits(whole, tiny.in_memory(tiny.model(), recipe, cut(tiny.tokens(), sizes)))
    batches = [Batch(part) for part in cut(tiny.tokens(), sizes)]
    assert same_bits(whole, tiny.in_memory(tiny.model(), recipe, batches))


def test_how_prepared_data_is_batched_changes_no_bit() -> None:
    recipe, results = tiny.recipe(method="sparsegpt"), []
    for size in (16, 48, 4096):
        data = calibration(tiny.tokens(), samples=6, tokens_per_batch=size)
        results.append(tiny.in_memory(tiny.model(), recipe, data))
    assert same_bits(results[0], results[2])
    assert same_bits(results[1], results[2])


def test_many_samples_are_run_in_batches_of_bounded_size(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch or several give the same masks, to rounding."""
    whole = tiny.in_memory(tiny.model(), tiny.recipe(method="wanda"))
    monkeypatch.setattr("lowdim.prune.api.TOKENS_PER_BATCH", 32)
    assert tiny.in_memory(tiny.model(), tiny.recipe(method="wanda")).masks == whole.masks


def test_the_same_run_twice_gives_the_same_bytes_and_another_seed_of_the_data_others(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = tiny.recipe(method="sparsegpt")
    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        prune(str(saved("llama")), recipe, calibration=tiny.tokens(seed=seed), out=tmp_path / name)
    a, b, c = (tiny.digest(tmp_path / name) for name in "abc")
    assert a == b
    assert a["model.safetensors"] != c["model.safetensors"]
