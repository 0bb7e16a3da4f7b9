"""A corrupted set: which pictures are changed, and which stay."""

from __future__ import annotations

import pytest
import torch

from lowdim.core.errors import RecipeError
from lowdim.data import vision
from lowdim.data.classification import find, load, read
from lowdim.data.raw import Raw, Split


@pytest.fixture(autouse=True)
def clothes(monkeypatch: pytest.MonkeyPatch) -> Raw:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (40, 1, 28, 28), generator=draw).to(torch.uint8)
    raw = Raw(x, torch.arange(40) % 10, vision.CLOTHES, Split(x[:20].clone(), torch.arange(20) % 10))
    monkeypatch.setattr(vision, "fashion_mnist", lambda: raw)
    return raw


def changed(one: Raw, other: Raw) -> torch.Tensor:
    assert isinstance(one.x, torch.Tensor) and isinstance(other.x, torch.Tensor)
    return (one.x != other.x[: len(one.x)]).flatten(1).any(1)


def test_a_share_is_corrupted_and_the_test_if_asked(clothes: Raw) -> None:
    known = find("corrupted-fashion-mnist")
    half = read(known, {"share": 0.5, "test": "clean", "corruption": "contrast"})
    assert int(changed(half, clothes).sum()) == 20
    assert half.test is not None and clothes.test is not None
    assert torch.equal(torch.as_tensor(half.test.x), torch.as_tensor(clothes.test.x))
    whole = read(known, {"corruption": "contrast", "samples": 30})
    assert len(whole.y) == 30
    assert bool(changed(whole, clothes).all())
    assert whole.test is not None
    assert not torch.equal(torch.as_tensor(whole.test.x), torch.as_tensor(clothes.test.x))
    assert int(changed(clothes, clothes).sum()) == 0  # the reader's own pictures are left alone


def test_it_is_cut_as_the_clean_one_is(clothes: Raw) -> None:
    data = load("corrupted-fashion-mnist", settings={"corruption": "fog", "severity": 1})
    assert (len(data.train.y), len(data.validation.y), len(data.test.y)) == (36, 4, 20)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(RecipeError, match=r"unknown corruption 'fogg'. Did you mean 'fog'"):
        load("corrupted-fashion-mnist", settings={"corruption": "fogg"})
