"""Dropping weights for a moment: exact counts, and every bit back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO

from lowdim.evaluate.audit.dropping import Dropping, checked_grid
from lowdim.evaluate.errors import EvaluationError
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

KINDS = ["llama", "gpt2", "mixtral"]


def bits(model: Any) -> dict[str, torch.Tensor]:
    """The weights as integers, so that -0.0 and NaN compare."""
    whole = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
    return {n: p.detach().view(whole[p.dtype]).clone() for n, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def zeros(model: Any) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [None, 3])
def test_counts_are_exact_and_every_bit_comes_back(kind: str, seed: int | None) -> None:
    model = ZOO[kind]().to(torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = -0.0
        Dropping(model).layers[0].master[0, :2] = torch.tensor([-0.0, 0.0])
    before, had = bits(model), zeros(model)
    dropping = Dropping(model)
    for sparsity in (0.0, 1 / 3, 0.617, 0.99):
        with dropping.at(sparsity, seed) as dropped:
            assert dropped == round(sparsity * dropping.numel)
            added = zeros(model) - had
            # the two that were zero before may be among those that fall
            assert dropped - 2 <= added <= dropped if sparsity else added == 0
            assert seed is not None or not sparsity or added == dropped - 2
        assert same(bits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_what_falls_is_what_global_magnitude_pruning_prunes(kind: str) -> None:
    model = ZOO[kind]()
    pruned = copy.deepcopy(model)
    prune(pruned, Recipe(sparsity=0.43, score="magnitude", allocation="global", evaluation={"text": None}))
    with Dropping(model).at(0.43):
        assert same(bits(model), bits(pruned))


def test_of_equal_weights_the_first_stay() -> None:
    model = ZOO["gpt2"]()
    dropping = Dropping(model)
    with torch.no_grad():
        for layer in dropping.layers:
            layer.master.fill_(1.0)
    keep = 3
    with dropping.at(1 - keep / dropping.numel):
        first = dropping.layers[0]
        assert first.transposed
        assert first.master.t().flatten().nonzero().flatten().tolist() == [0, 1, 2]
        assert not any(bool(layer.master.any()) for layer in dropping.layers[1:])


@pytest.mark.parametrize("seed", [None, 0])
def test_masks_are_nested(seed: int | None) -> None:
    model = ZOO["llama"]()
    dropping = Dropping(model)
    fallen = []
    for sparsity in (0.2, 0.5, 0.8):
        with dropping.at(sparsity, seed):
            fallen.append(torch.cat([(layer.master == 0).flatten() for layer in dropping.layers]))
    assert bool((fallen[0] <= fallen[1]).all())
    assert bool((fallen[1] <= fallen[2]).all())


def test_a_random_mask_is_spread_evenly_depends_on_the_seed_and_leaves_the_global_generator_alone() -> None:
    model = ZOO["llama"]()
    dropping = Dropping(model)
    state = torch.get_rng_state()

    def draw(seed: int) -> list[torch.Tensor]:
        with dropping.at(0.5, seed):
            return [layer.master == 0 for layer in dropping.layers]

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(0.4 < float(mask.float().mean()) < 0.6 for mask in first)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_every_bit_comes_back_after_an_error(error: type[BaseException]) -> None:
    model = ZOO["mixtral"]()
    before = bits(model)

    def fail() -> None:
        with Dropping(model).at(0.7):
            assert not same(bits(model), before)
            raise error

    with pytest.raises(error):
        fail()
    assert same(bits(model), before)


def test_every_bit_comes_back_when_the_dropping_itself_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lowdim.evaluate.audit import dropping as module

    model = ZOO["llama"]()
    before = bits(model)
    calls = []

    def interrupted(scores: torch.Tensor, keep: int) -> torch.Tensor:
        calls.append(keep)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return torch.zeros_like(scores, dtype=torch.bool)

    monkeypatch.setattr(module, "keep_top", interrupted)
    with pytest.raises(KeyboardInterrupt), Dropping(model).at(0.7):
        raise AssertionError("never reached")
    assert len(calls) == 4
    assert same(bits(model), before)


@pytest.mark.parametrize("wrong", [1.0, -0.1, float("nan"), 50.0])
def test_a_grid_beyond_one_is_refused(wrong: float) -> None:
    with pytest.raises(EvaluationError, match=f"got {wrong}"):
        checked_grid([0.5, wrong])
