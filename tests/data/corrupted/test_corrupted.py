"""Corruptions: what each does to a picture, that severities grow, and that draws depend on seed and position alone."""

from __future__ import annotations

import pytest
import torch

from lowdim.core.errors import RecipeError
from lowdim.data.corrupted import CORRUPTIONS, corrupt
from lowdim.data.errors import DataError


def pictures(channels: int = 3, count: int = 4, side: int = 32) -> torch.Tensor:
    """Squares of a colour each on a gradient."""
    x = torch.arange(side * side).reshape(side, side).float() / side / side * 120 + 40
    made = x.repeat(count, channels, 1, 1)
    for row in range(count):
        made[row, row % channels, 8 : 20 + row, 10:24] = 220
    return made.to(torch.uint8)


def change(x: torch.Tensor, name: str, severity: int) -> float:
    return float((corrupt(x, name, severity).float() - x.float()).abs().mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_type_stay_and_the_worst_is_worse_than_the_mildest(name: str, channels: int) -> None:
    x = pictures(channels)
    first, last = corrupt(x, name, 1), corrupt(x, name, 5)
    assert first.shape == last.shape == x.shape
    assert first.dtype == last.dtype == torch.uint8
    assert not torch.equal(last, x)
    if name not in ("elastic", "pixelate"):  # the mildest bends most, and moves most edges, as the authors' does
        assert change(x, name, 1) < change(x, name, 5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_depend_on_seed_and_position_alone(name: str) -> None:
    x = pictures(count=3, side=16)
    whole = corrupt(x, name, 3, seed=1)
    assert torch.equal(whole, corrupt(x, name, 3, seed=1))
    assert torch.equal(whole[:2], corrupt(x[:2], name, 3, seed=1))


def test_noise_by_its_numbers() -> None:
    grey = torch.full((1, 1, 100, 100), 128, dtype=torch.uint8)
    noise = (corrupt(grey, "gaussian-noise", 5).float() - 128) / 255
    assert abs(float(noise.std()) - 0.10) < 0.005
    shots = corrupt(grey, "shot-noise", 5).float() / 255  # Poisson: variance x / c
    assert abs(float(shots.std()) - (128 / 255 / 50) ** 0.5) < 0.005
    broken = corrupt(grey, "impulse-noise", 5)
    hit = (broken != 128).double().mean()
    assert abs(float(hit) - 0.07) < 0.01
    assert set(broken.unique().tolist()) <= {0, 127, 128, 255}


def test_contrast_and_brightness_by_hand() -> None:
    two = torch.tensor([0, 200], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert corrupt(two, "contrast", 2).flatten().tolist() == [50, 150]  # c = 1/2 about a mean of 100
    red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    red[:, 0], red[:, 1] = 100, 50
    bright = corrupt(red, "brightness", 2)[0, :, 0, 0].tolist()  # value 100 + 25.5, hue and saturation as they were
    assert bright == [125, 62, 0]


@pytest.mark.parametrize("name", ["defocus-blur", "motion-blur", "zoom-blur", "glass-blur", "pixelate", "elastic"])
def test_what_moves_pixels_leaves_an_even_picture_alone(name: str) -> None:
    even = torch.full((1, 3, 28, 28), 90, dtype=torch.uint8)
    assert (corrupt(even, name, 4).float() - 90).abs().max() <= 1


def test_a_defocused_point_is_a_disc() -> None:
    point = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    point[..., 16, 16] = 255
    disc = corrupt(point, "defocus-blur", 5)[0, 0].float()
    assert torch.equal(disc, disc.flip(0))
    assert torch.equal(disc, disc.T)
    assert float(disc[16, 17]) == pytest.approx(float(disc[16, 16]), abs=2)
    assert float(disc[16, 20]) == 0


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(DataError, match=r"unknown corruption 'fogg'. Did you mean 'fog'"):
        corrupt(pictures(), "fogg")
    with pytest.raises(RecipeError, match="severity must be"):
        corrupt(pictures(), "fog", 6)
    with pytest.raises(DataError, match="must be uint8"):
        corrupt(pictures().float(), "fog")
