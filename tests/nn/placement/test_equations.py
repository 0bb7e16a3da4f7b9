"""Every placement in every family equals its equation, computed by hand, or is refused for the reason that holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.nn.placement import decoders
from tests.nn.placement.decoders import FAMILIES, TOKENS, by_hand, decoder, prores, stir

from lowdim.core.errors import LowdimError
from lowdim.nn.placement import (
    GPAS,
    DeepNorm,
    LayerNormScaling,
    MixLN,
    Placement,
    PostLN,
    PreLN,
    ProRes,
    Sandwich,
    set_step,
)

AT = 5
"""The step at which ProRes is compared: within the ramp of every block but the first two, with steps=2."""


def share(block: int) -> float:
    return min(AT / (2 * block), 1.0)


CASES: dict[str, tuple[Placement, Any]] = {
    "pre": (PreLN(), decoders.pre),
    "post": (PostLN(), decoders.post),
    "sandwich": (Sandwich(), decoders.sandwich),
    "deepnorm": (DeepNorm(), decoders.deepnorm),
    "mix": (MixLN(alpha=0.5), decoders.mix),
    "mix-0": (MixLN(alpha=0.0), decoders.pre),
    "mix-1": (MixLN(alpha=1.0), decoders.post),
    "lns": (LayerNormScaling(), decoders.lns),
    "gpas-pre": (GPAS(over="pre-ln"), decoders.gpas_pre),
    "gpas-branch": (GPAS(over="pre-ln", gates="branch"), decoders.gpas_pre),
    "gpas-lns": (GPAS(over=LayerNormScaling()), decoders.gpas_lns),
    "gpas-sandwich": (GPAS(over="sandwich"), decoders.gpas_sandwich),
    "gpas-post": (GPAS(over="post-ln"), decoders.gpas_post),
    "gpas-deepnorm": (GPAS(over="deepnorm"), decoders.gpas_deepnorm),
    "gpas-mix": (GPAS(over={"name": "mix-ln", "alpha": 0.5}), decoders.gpas_mix),
    "prores-pre": (ProRes(over="pre-ln", steps=2), prores(share, "pre")),
    "prores-post": (ProRes(over="post-ln", steps=2), prores(share, "post")),
    "prores-sandwich": (ProRes(over="sandwich", steps=2), prores(share, "sandwich")),
    "prores-deepnorm": (ProRes(over="deepnorm", steps=2), prores(share, "deepnorm")),
    "prores-lns": (ProRes(over="lns", steps=2), prores(share, "lns")),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_its_equation(family: str, case: str) -> None:
    placement, step = CASES[case]
    model = decoder(family)
    if family == "gemma3" and "lns" in case:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(LowdimError, match="a norm before each branch and no other"):
            placement.apply_(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return
    placement.apply_(model)
    stir(model)
    if "prores" in case:
        assert set_step(model, AT) is False
    with torch.no_grad():
        found = model(TOKENS).logits.double()
    expected = by_hand(model, family, step)
    assert (found - expected).abs().max() < 1e-5 * expected.std()
