"""Whatever happens inside, a model in memory keeps its hooks, modes and modules, and the caller his generators."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
import torch
from tests.prune import tiny
from torch import nn
from transformers import PreTrainedModel

from lowdim.core.errors import NumericalError
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe

RECIPES: dict[str, dict[str, Any]] = {
    "sparsegpt-owl": {"method": "sparsegpt", "allocation": {"name": "owl", "m": 2}},
    "wanda-global-true": {"method": "wanda", "allocation": "global", "sequential": "true"},
    "magnitude-alpha": {"method": "magnitude", "allocation": "alpha"},
}


def state(model: PreTrainedModel) -> dict[str, object]:
    """Return all that pruning may touch on its way and must put back."""
    modules = {
        name: (id(m), m.training, "forward" in vars(m), list(m._forward_hooks), list(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    parameters = {name: (id(p), p.requires_grad, p.dtype, p.grad) for name, p in model.named_parameters()}
    return modules | parameters | {"buffers": [id(b) for b in model.buffers()], "config": model.config.to_dict()}


def odd(kind: str) -> PreTrainedModel:
    """Return a model whose parts are in different modes and in part frozen."""
    model = tiny.model(kind).train()
    model.get_output_embeddings().eval()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    return model


class Interrupting:
    """Progress that raises at the n-th event."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self.error, self.left = error, at

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error

    def stage(self, name: str, total: int, unit: str = "") -> Self:
        self._count()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, amount: int = 1) -> None:
        self._count()


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
def test_after_success(kind: str, settings: dict[str, Any]) -> None:
    model = odd(kind)
    mine = model.get_input_embeddings().register_forward_hook(lambda *_: None)
    before = state(model)
    prune(model, tiny.recipe(**settings), calibration=tiny.tokens())
    assert state(model) == before
    mine.remove()


@pytest.mark.parametrize("at", range(0, 8, 2))
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_after_an_error_in_the_progress_callback(kind: str, error: type[BaseException], at: int) -> None:
    model = odd(kind)
    before = state(model)
    recipe = tiny.recipe(**RECIPES["sparsegpt-owl"])
    with pytest.raises(error) as caught:
        prune(model, recipe, calibration=tiny.tokens(), progress=Interrupting(error, at))
    assert state(model) == before
    assert caught.tb is not None  # the frames are alive: nothing was left to the garbage collector


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("calls", [0, 1, 3, 6])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_after_an_interrupt_inside_a_hook(kind: str, calls: int, settings: dict[str, Any]) -> None:
    model = odd(kind)
    left = [calls]

    def interrupt(module: nn.Module, args: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(interrupt)
    before = state(model)
    recipe = tiny.recipe(**settings | {"method": "wanda"})

    def until_interrupted() -> None:
        for _ in range(4):
            prune(model, recipe, calibration=tiny.tokens())

    with pytest.raises(KeyboardInterrupt) as caught:
        until_interrupted()
    assert state(model) == before
    assert caught.tb is not None


def test_an_error_between_two_blocks_of_a_scan_leaves_the_experts_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = odd("mixtral")
    before = state(model)

    def fail(*_: object) -> None:
        raise NumericalError("no")

    monkeypatch.setattr("lowdim.core.allocation.whole._bits", fail)
    with pytest.raises(NumericalError, match=r"^no$") as caught:
        prune(model, tiny.recipe(method="wanda", allocation="global"), calibration=tiny.tokens())
    assert state(model) == before
    assert caught.tb is not None


def test_an_error_in_a_middle_layer_names_it_and_leaves_the_model_usable() -> None:
    model = odd("llama")
    before = state(model)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = torch.nan
    with pytest.raises(NumericalError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds NaN or Inf"):
        prune(model, tiny.recipe(method="magnitude"))
    assert state(model) == before


def generators() -> tuple[bytes, str, str]:
    return torch.get_rng_state().numpy().tobytes(), str(random.getstate()), str(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_global_generators_are_not_touched_and_not_read(
    settings: dict[str, Any], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe, results, source = tiny.recipe(**settings), [], str(saved("llama"))
    for seed in (1, 2):
        model = tiny.model("llama")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = generators()
        results.append(prune(model, recipe, calibration=tiny.tokens()).masks)
        prune(source, recipe, calibration=tiny.tokens(), out=tmp_path / str(seed))
        assert generators() == before
    assert results[0] == results[1]
    assert tiny.digest(tmp_path / "1") == tiny.digest(tmp_path / "2")


def test_settings_of_torch_and_transformers_are_left_as_they_were(saved: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers.utils import logging

    def settings() -> tuple[object, ...]:
        flags = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
        return *flags, logging.is_progress_bar_enabled(), logging.get_verbosity()

    before = settings()
    recipe: Recipe = tiny.recipe(method="sparsegpt")
    prune(str(saved("llama")), recipe, calibration=tiny.tokens(), out=tmp_path / "out")
    assert settings() == before
