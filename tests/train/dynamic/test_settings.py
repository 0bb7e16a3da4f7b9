"""Every word that a method's setting takes is checked, and changes what is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from tests.train.small import hold, mlp, train

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.train import CTRE, ITOP, STRNN, GraNet, NeurRev, RigL
from lowdim.train.sparse.method import Method

STEPS = 16
# What a word needs beside itself to make a difference.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("itop", "candidates"): {"grow": "gradient"},
    ("granet", "candidates"): {"drop": 0.9, "floor": 0.9},
    ("chase", "score"): {"channels": 0.5, "channel_every": 4},
}


def words() -> list[Any]:
    found = []
    for kind, skipped in (("training", ("st-rnn",)),):
        for method in (registry.find(kind, name) for name in registry.names(kind) if name not in skipped):
            for setting, hint in get_type_hints(method.load()).items():
                if get_origin(hint) is Literal and setting in method.settings():
                    found.append(pytest.param(method, setting, get_args(hint), id=f"{method.name}-{setting}"))
    return found


def trained(method: Method) -> tuple[str, float]:
    """Return the masks and the weights of a run in which outputs lose all their weights."""
    linear = isinstance(method, CTRE)
    model, optimizer, training = hold(
        0.95 if not linear else 0.8,
        model=mlp(64, 48, 4) if linear else None,
        method=method,
        total_steps=STEPS,
    )
    train(model, optimizer, range(STEPS), flat=linear)
    with torch.no_grad():
        return training.masks.hash(), float(sum(p.double().abs().sum() for p in model.parameters()))


@pytest.mark.parametrize(("method", "setting", "options"), words())
def test_every_word_does_something_else(method: registry.Entry, setting: str, options: tuple[str, ...]) -> None:
    base: Any = method.load()(every=2, **WITH.get((method.name, setting), {}))
    results = {word: trained(replace(base, **{setting: word})) for word in options}
    assert len(set(results.values())) == len(options), results


@pytest.mark.parametrize(("method", "setting", "options"), words())
def test_another_word_is_refused(method: registry.Entry, setting: str, options: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=f"unknown {setting} 'magnitud'"):
        method.load()(**{setting: "magnitud"})


def test_the_nearest_word_is_named() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'cosine'"):
        RigL(schedule="cosin")  # type: ignore[arg-type]


def test_methods_are_written_as_ever() -> None:
    """Checkpoints hold a method as it is written, and are refused where that differs."""
    written = [repr(registry.find("training", name).load()()) for name in registry.names("training")]
    assert written == [
        "Static()",
        "SET(every=100, until=1.0, drop=0.3, rule='sign-share', regrow='normal')",
        "RigL(order='replace_step', every=100, until=0.75, drop=0.3, schedule='cosine', candidates='any', noise=1e-05)",
        "ITOP(order='after_step', every=1500, until=1.0, drop=0.5, floor=0.005, death='magnitude', "
        "grow='random', candidates='any')",
        "GradualMagnitude(every=100, until=0.7, start=0.0, scope='global')",
        "GraNet(every=100, until=0.7, start=0.0, scope='global', drop=0.5, floor=0.005, candidates='any')",
        "NeurRev(order='replace_step', every=100, until=0.75, drop=0.3, schedule='cosine', "
        "candidates='any', noise=1e-05, rho=0.1, reading='change')",
        "CTRE(every=100, until=1.0, drop=0.2, mode='similarity', switch=0.5, noise=1e-05, regrow='uniform', "
        "activations='pass')",
        "Chase(every=1000, extra=0.05, soft=0.8125, channels=0.5, channel_every=1000, "
        "channel_until=0.8125, beta=0.5, score='mean', drop=0.5, floor=0.005)",
        "SelfishRNN(every=100, until=1.0, drop=0.8, floor=0.005)",
        "STRNN(every=100, until=1.0, drop=0.3, rule='magnitude', schedule='cosine', gates=4, regrow='normal')",
    ]
    before = [  # what did then what these settings do now: their checkpoints go on
        NeurRev(reading="value"),
        CTRE(regrow="zero", activations="training"),
        STRNN(rule="sign-share", schedule="constant"),
    ]
    assert [repr(method) for method in before] == [
        "NeurRev(order='replace_step', every=100, until=0.75, drop=0.3, schedule='cosine', "
        "candidates='any', noise=1e-05, rho=0.1)",
        "CTRE(every=100, until=1.0, drop=0.2, mode='similarity', switch=0.5, noise=1e-05)",
        "STRNN(every=100, until=1.0, drop=0.3, gates=4, regrow='normal')",
    ]
    assert "begin=0.1" in repr(GraNet(begin=0.1))
    assert "threshold=0.5" in repr(ITOP(death="threshold", threshold=0.5))
