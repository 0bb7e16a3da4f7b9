"""GPAS and ProRes over every placement, and over each other: folded to the same function, or refused and unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.nn.placement.decoders import decoder, stir
from tests.nn.placement.test_registered import FOLDS, NAMES, REFUSED, logits
from tests.turns import turns

from lowdim.core.errors import LowdimError
from lowdim.core.recipe.families import build
from lowdim.nn.placement import Placement, set_step
from lowdim.nn.residual.config import placement_of

BELOW = [name for name in NAMES if name not in ("gpas", "prores")]
PAIRS = [(below, family) for below in BELOW for family in ("llama", "gemma3", "gpt2") if (below, family) not in REFUSED]


def tops(below: str) -> list[dict[str, Any]]:
    gpas, prores = ({"name": name, "over": below} for name in ("gpas", "prores"))
    return [gpas, prores, {"name": "gpas", "over": prores}, {"name": "prores", "over": gpas}]


def given(placement: Placement, family: str) -> Any:
    """Return a decoder with weights as if trained, whose streams are well above the eps of the norms."""
    model = decoder(family)
    placement.apply_(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return stir(model)


def refused(model: Any, placement: Placement, why: str) -> None:
    before, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LowdimError, match=why):
        placement.fold_(model)
    assert placement_of(model.config) == placement and torch.equal(logits(model), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("pair", turns(PAIRS, of=2), ids=str)
def test_a_composite_folds_as_what_is_below_does(pair: tuple[str, str]) -> None:
    below, family = pair
    for each in tops(below):
        placement = build("placement", each)
        model, ramped = given(placement, family), "prores" in str(each)
        if family not in FOLDS.get(below, ()):
            refused(model, placement, "cannot be folded: its norms stand where")
            continue
        if ramped:
            set_step(model, 2)
            refused(model, placement, "cannot be folded before its ramp has ended")
            set_step(model, 10**9)
        before = logits(model)
        placement.fold_(model)
        assert placement_of(model.config) is None
        assert list(model.state_dict()) == list(decoder(family).state_dict())
        close = 1e-4 * before.std() if "gpas" in str(each) else 1e-5 * before.std()
        assert (logits(model) - before).abs().max() <= close, each
