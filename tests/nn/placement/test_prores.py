"""ProRes: shares by hand, the identity at first, nothing at the end."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.nn.placement.decoders import TOKENS, decoder, stir
from torch import Tensor

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.nn.placement import ProRes, set_step
from lowdim.nn.placement.prores import share_at, step_of
from lowdim.nn.residual.rule import PRE


def shares(step: int, schedule: str = "linear", count: int = 4) -> list[float]:
    rules = [ProRes(steps=1000, schedule=schedule).rule(block, count, PRE) for block in range(1, count + 1)]
    return [share_at(rule, step) for rule in rules]


def test_shares_by_hand() -> None:
    assert shares(0) == [0.0] * 4
    assert shares(1000) == [1.0, 0.5, 1 / 3, 0.25]
    assert shares(2000) == [1.0, 1.0, 2 / 3, 0.5]
    assert shares(4000) == shares(10**6) == [1.0] * 4
    assert shares(1000, "equal") == [0.25] * 4
    assert shares(1000, "reverse") == [0.25, 1 / 3, 0.5, 1.0]
    assert shares(1000, "sqrt") == pytest.approx([1.0, 0.5**0.5, 3**-0.5, 0.5])
    assert shares(1000, "square") == pytest.approx([1.0, 0.25, 1 / 9, 1 / 16])


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def test_at_first_every_block_is_the_identity() -> None:
    model = decoder("llama")
    ProRes().apply_(model)
    stir(model)
    model.config.use_cache = False
    embedded = model.get_input_embeddings()(TOKENS)
    assert torch.equal(logits(model), model.lm_head(model.model.norm(embedded)))


@pytest.mark.parametrize("below", [None, "post-ln", "sandwich", "deepnorm", "lns"])
def test_at_the_end_it_is_what_is_below(below: str | None) -> None:
    from lowdim.core.recipe.families import build

    ramped, plain = decoder("llama"), decoder("llama")
    ProRes(over=below, steps=3).apply_(ramped)
    if below is not None:
        build("placement", below).apply_(plain)
    assert set_step(ramped, 11) is False
    assert set_step(ramped, 12) is True
    assert torch.equal(logits(ramped), logits(plain))


def test_it_folds_after_its_ramp_alone() -> None:
    model = decoder("llama")
    ProRes(steps=2).apply_(model)
    stir(model)
    set_step(model, 7)
    before = logits(model)
    with pytest.raises(LowdimError, match=r"cannot be folded before its ramp has ended: a block counts with .* 0.875"):
        ProRes(steps=2).fold_(model)
    assert torch.equal(logits(model), before)
    set_step(model, 8)
    before = logits(model)
    ProRes(steps=2).fold_(model)
    assert torch.equal(logits(model), before)
    assert list(model.state_dict()) == list(decoder("llama").state_dict())


def test_shares_are_saved_with_the_weights_and_stay_fp32() -> None:
    model, other = decoder("llama"), decoder("llama", seed=3)
    for each in (model, other):
        ProRes(steps=100).apply_(each)
    set_step(model, 1)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(logits(other), logits(model))
    assert float(model.bfloat16().model.layers[2].prores.a) == float(torch.tensor(1 / 300))


def test_no_ramp() -> None:
    with pytest.raises(LowdimError, match="the model has no ProRes"):
        set_step(decoder("llama"), 3)
    with pytest.raises(RecipeError, match="over has a ramp already"):
        ProRes(over=ProRes()).apply_(decoder("llama"))
    with pytest.raises(RecipeError, match="steps must be a whole number of at least 1"):
        ProRes(steps=0)


@pytest.mark.parametrize("schedule", ["linear", "equal", "reverse", "sqrt", "square"])
def test_the_shares_tell_the_step(schedule: str) -> None:
    model = decoder("llama")
    ProRes(steps=1000, schedule=schedule).apply_(model)
    assert step_of(model) == 0
    for step in (1, 7, 999, 1000, 2500, 3999):
        set_step(model, step)
        held = [float(block.prores.a) for block in model.model.layers]
        found = step_of(model)
        set_step(model, found)
        assert found == step and [float(block.prores.a) for block in model.model.layers] == held
    set_step(model, 10**6)
    assert step_of(model) == 4000
    with pytest.raises(LowdimError, match="the model has no ProRes"):
        step_of(decoder("llama"))
