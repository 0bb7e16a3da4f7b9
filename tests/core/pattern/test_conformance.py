"""What holds for every registered pattern of single layers."""

import dataclasses

import pytest
import torch

from lowdim.core import registry
from lowdim.core.errors import NumericalError, PatternError
from lowdim.core.pattern import FanIn, Gates

GROUPS = {"unstructured": ["row", "matrix", "column-block", "global"]}


def patterns():
    found = []
    for name in registry.names("pattern"):
        made = registry.find("pattern", name).load()()
        if not made.joint:
            found += [pytest.param(made.resolve(g), id=f"{name}-{g}") for g in GROUPS.get(name, [""])]
    return found


def fitting(pattern):
    for shape in [(16, 16), (64, 48), (16, 272), (1, 16), (16, 1), (0, 16), (16, 0), (1, 1)]:
        try:
            pattern.check_shape("layer", *shape)
        except PatternError:
            continue
        yield shape


def counts(pattern, shape):
    if (sparsity := getattr(pattern, "sparsity", None)) is not None:
        return [round(shape[0] * shape[1] * (1 - sparsity))]
    step = {FanIn: shape[0], Gates: 4}.get(type(pattern), pattern.unit_size)
    units = shape[0] * shape[1] // max(1, step)
    return sorted({step * n for n in (0, 1, units // 3, units - 1, units) if 0 <= n <= units})


def random(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pattern", patterns())
def test_counts_are_exact(pattern):
    for shape in fitting(pattern):
        for keep in counts(pattern, shape):
            for scores in (random(shape), torch.zeros(shape), random(shape).mul(3).round()):
                mask = pattern.mask(scores, keep)
                assert mask.dtype == torch.bool
                assert mask.shape == shape
                assert int(mask.sum()) == keep


@pytest.mark.parametrize("pattern", patterns())
def test_masks_depend_on_the_scores_alone(pattern):
    for shape in fitting(pattern):
        for keep in counts(pattern, shape):
            scores = random(shape).bfloat16()
            mask = pattern.mask(scores, keep)
            assert torch.equal(mask, pattern.mask(scores.float(), keep))
            assert torch.equal(mask, pattern.mask(scores.float() * 8, keep))
            assert torch.equal(mask, pattern.mask(scores.t().contiguous().t(), keep))


@pytest.mark.parametrize("pattern", patterns())
def test_nan_is_refused(pattern):
    scores = random((16, 16))
    scores[3, 3] = float("nan")
    with pytest.raises(NumericalError):
        pattern.mask(scores, 128)


@pytest.mark.parametrize("name", registry.names("pattern"))
def test_settings_are_plain_data(name):
    made = registry.find("pattern", name).load()()
    assert dataclasses.is_dataclass(made)
    assert type(made)(**dataclasses.asdict(made)) == made
    assert hash(made) == hash(dataclasses.replace(made))
    assert made.at(made.check_recipe(None if name == "nm" else 0.5)) == made
