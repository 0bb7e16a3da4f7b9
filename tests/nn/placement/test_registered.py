"""Every registered placement in every family: what works with a stock decoder works with a placed one."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.nn.placement.decoders import FAMILIES, TOKENS, decoder, stir
from tests.turns import turns
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lowdim.core import registry
from lowdim.core.errors import LowdimError
from lowdim.core.recipe.families import build
from lowdim.models.load import load, quiet
from lowdim.nn.placement import Placement, ProRes, set_step
from lowdim.nn.residual.config import placement_of

NAMES = registry.names("placement")
REFUSED = {(name, "gemma3") for name in ("lns", "lns-learned")}
"""Pairs that make no sense; every other one must work."""
PAIRS = [(name, family) for name in NAMES for family in FAMILIES if (name, family) not in REFUSED]
FOLDS = {
    **{key: {"llama", "qwen3", "mistral", "gpt2"} for key in ("pre-ln", "lns", "lns-learned")},
    **{key: set(FAMILIES) for key in ("gpas", "prores", "scaled-init", "depth-scaled-init")},
    "sandwich": {"gemma3"},
}
"""Families in which a placement, with its defaults, is or folds into a stock model."""


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def given(name: str, family: str) -> tuple[Placement, Any]:
    """Return a placement and a decoder that has it, with weights as if trained and branches that count in full."""
    placement, model = build("placement", name), decoder(family)
    placement.apply_(model)
    if isinstance(placement, ProRes):
        set_step(model, 10**9)
    return placement, stir(model)


def gradients(model: Any, call: Any = None) -> list[Tensor]:
    model.zero_grad()
    (model if call is None else call)(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "pair", turns([pair for pair in PAIRS if pair[1] in ("llama", "gemma3", "gpt2")], of=2), ids=str
)
def test_it_runs_as_a_stock_one_does(pair: tuple[str, str]) -> None:
    _, model = given(*pair)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)

    generate = partial(model.generate, TOKENS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(use_cache=True), generate(use_cache=False))
    hidden = model(TOKENS, output_hidden_states=True).hidden_states
    assert len(hidden) == 5 and torch.equal(model.lm_head(hidden[-1]), expected)

    plain = gradients(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model), strict=True))
    for reentrant in (False, True):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        assert all(torch.allclose(a, b) for a, b in zip(plain, gradients(model), strict=True))


@pytest.mark.parametrize("pair", turns(PAIRS, of=2), ids=str)
def test_it_is_saved_loaded_and_folded(pair: tuple[str, str], tmp_path: Path) -> None:
    name, family = pair
    placement, model = given(name, family)
    expected = logits(model)
    stock = placement_of(model.config) is None
    with quiet():
        model.save_pretrained(tmp_path / "saved")
        if stock:
            assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), expected)
        else:
            for cls in (AutoModelForCausalLM, type(model)):
                with pytest.raises(Exception, match=r"lowdim-placement|load this with lowdim\.load"):
                    cls.from_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert placement_of(again.config) == (None if stock else placement)
    assert torch.equal(logits(again), expected)
    assert list(again.state_dict()) == list(model.state_dict())

    if family not in FOLDS.get(name, ()):
        with pytest.raises(LowdimError, match="cannot be folded: its norms stand where"):
            placement.fold_(model)
        assert torch.equal(logits(model), expected)
        return
    placement.fold_(model)
    assert placement_of(model.config) is None
    assert list(model.state_dict()) == list(decoder(family).state_dict())
    with quiet():
        model.save_pretrained(tmp_path / "folded")
        folded = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    assert (logits(folded) - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize(("name", "family"), sorted(REFUSED))
def test_or_is_refused(name: str, family: str) -> None:
    model = decoder(family)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LowdimError, match="LayerNorm Scaling is defined for"):
        build("placement", name).apply_(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert placement_of(model.config) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_compiled_as_one_graph(name: str) -> None:
    placement, model = given(name, "llama")
    block, calls = model.model.layers[0], list[Any]()
    hook = block.register_forward_pre_hook(lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    hook.remove()
    (args, kwargs) = calls[0]
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(*args, **kwargs), block(*args, **kwargs), atol=1e-6)
    if isinstance(placement, ProRes):  # a share is data, not code: nothing is compiled again
        with torch.compiler.set_stance("fail_on_recompile"):
            for step in (0, 500):
                set_step(model, step)
                assert torch.allclose(compiled(*args, **kwargs), block(*args, **kwargs), atol=1e-6)


@pytest.mark.slow
def test_a_model_is_compiled_as_one_graph() -> None:
    _, model = given("gpas", "llama")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain, found = gradients(model), gradients(model, compiled)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, found, strict=True))
