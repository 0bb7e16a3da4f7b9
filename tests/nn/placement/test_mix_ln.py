"""Mix-LN: its two ends, the parameters that it does not add, and a share that makes no block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.nn.placement.decoders import TOKENS, decoder, stir

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.recipe.families import build
from lowdim.nn.placement import MixLN, PostLN, PreLN
from lowdim.nn.residual.config import placement_of


def test_alpha_0_is_pre_ln_bit_for_bit() -> None:
    stock, placed = decoder("llama"), decoder("llama")
    MixLN(alpha=0.0).apply_(placed)
    assert placement_of(placed.config) is None and type(placed.model.layers[0]) is type(stock.model.layers[0])
    losses = []
    for model in (stock, placed):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for one, other in zip(stock.parameters(), placed.parameters(), strict=True):
        assert torch.equal(one, other) and torch.equal(one.grad, other.grad)


def test_alpha_1_is_post_ln() -> None:
    mixed, post = decoder("llama"), decoder("llama")
    MixLN(alpha=1.0).apply_(mixed)
    PostLN().apply_(post)
    assert torch.equal(stir(mixed)(TOKENS).logits, stir(post)(TOKENS).logits)


def test_the_first_blocks_are_post_ln_and_leave_streams_of_size_1() -> None:
    model = decoder("llama", blocks=8)
    names = list(model.state_dict())
    MixLN(alpha=0.25).apply_(model)
    assert list(model.state_dict()) == names
    sizes: list[float] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda m, _, y: sizes.append(float(y.pow(2).mean())))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(40.0)
        model(TOKENS)
    assert sizes[:2] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert len(sizes) == 8 and sizes[-1] != pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("alpha", "count", "post"), [(0.25, 12, 3), (0.125, 12, 1), (0.29, 100, 29), (0.7, 10, 7), (1.0, 3, 3), (0.0, 3, 0)]
)
def test_how_many_blocks_are_post_ln(alpha: float, count: int, post: int) -> None:
    assert MixLN(alpha=alpha).post(count) == post


def test_no_whole_block_is_refused_before_any_change() -> None:
    model = decoder("llama")
    with pytest.raises(LowdimError, match=r"alpha=0.2 of 4 blocks makes no whole block. Give at least 0.25, or 0 for"):
        MixLN(alpha=0.2).apply_(model)
    assert torch.equal(model(TOKENS).logits, decoder("llama")(TOKENS).logits)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("mix", "unknown placement 'mix'. Did you mean 'mix-ln'?"),
        ({"name": "mix-ln", "alfa": 0.5}, "placement.alfa"),
        ({"name": "mix-ln", "alpha": 1.5}, "alpha must be between 0 and 1"),
        ({"name": "gpas", "over": "mix"}, "unknown placement 'mix'"),
        ({"name": "gpas", "over": {"name": "mix-ln", "alpha": -1}}, "alpha must be between 0 and 1"),
    ],
)
def test_words_of_a_recipe(value: Any, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        build("placement", value)
    assert said in str(raised.value)
    assert build("placement", {"name": "mix-ln", "alpha": 0.5}) == MixLN(alpha=0.5)
    assert build("placement", "pre-ln") == PreLN()
