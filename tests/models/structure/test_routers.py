"""What steers a block is told by how it is wired, whatever it is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.mixtures import CONFIGS, mixture
from tests.models.tiny_configs import TYPES, randomise, tiny_config
from tests.models.zoo import VOCAB
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from lowdim.models.structure.layers import find_layers
from lowdim.models.structure.routers import GATE, ROUTER, STREAMS, controls, stacks
from lowdim.models.walk.opening import opened
from lowdim.models.walk.stream import Stream


class Followed(TorchFunctionMode):
    """Follows the outputs of matrices to the choice of experts: an oracle that runs, where `controls` only looks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {p.data_ptr(): n for n, p in model.named_parameters() if p.dim() == 2}
        self.chose: set[str] = set()
        self._from: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, Tensor)]
        sources = {self._from[id(a)][1] for a in tensors if id(a) in self._from}
        if func is functional.linear:
            sources = {self.names[args[1].data_ptr()]} if args[1].data_ptr() in self.names else set()
        if func in (torch.topk, Tensor.topk):
            self.chose |= sources
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and made.is_floating_point() and len(sources) == 1:
                self._from[id(made)] = (made, next(iter(sources)))
        return out


@torch.no_grad()
def chosen_by(model: PreTrainedModel) -> set[str]:
    """Return the matrices whose products are sorted for the largest, by name."""
    with Followed(model) as followed:
        model(torch.arange(1, 13)[None], use_cache=False)
    return {name.removesuffix(".weight") for name in followed.chose}


@pytest.mark.parametrize("kind", CONFIGS)
def test_whatever_chooses_experts_is_found_and_named(kind: str) -> None:
    model = mixture(kind)
    stream = Stream(model)
    told = {name: reason for i in range(len(stream)) for name, reason in stream.describe(i)[1]}
    followed = chosen_by(model)
    assert followed
    assert followed <= {name for name, reason in told.items() if reason == ROUTER}
    prunable = {layer.name for i in range(len(stream)) for layer in stream.describe(i)[0]}
    assert not {name for name in prunable if "router" in name or name.endswith("gate")}


def test_a_gate_for_the_shared_expert_stays_dense() -> None:
    skipped = dict(Stream(mixture("qwen2-moe")).describe(0)[1])
    assert skipped["model.layers.0.mlp.shared_expert_gate"] == GATE


class Wired(nn.Module):
    """A mixture whose parts have names of no meaning."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.a = router
        self.b = nn.ModuleList(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)) for _ in range(6))
        self.c = nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 64))
        self.d = nn.Linear(64, 64)


ROUTERS = {
    "plain": (nn.Linear(64, 6), {"a"}),
    "behind-a-norm": (nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 6)), {"a.1"}),
    "two-layers": (nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 6)), {"a.0", "a.2"}),
    "noisy": (nn.ModuleDict({"w": nn.Linear(64, 6), "noise": nn.Linear(64, 6)}), {"a.w", "a.noise"}),
    "one-more-skips-all": (nn.Sequential(nn.Linear(64, 7)), {"a.0"}),
}


@pytest.mark.parametrize(("router", "names"), ROUTERS.values(), ids=ROUTERS)
def test_names_do_not_matter(router: nn.Module, names: set[str]) -> None:
    block = nn.ModuleDict(
        {"attention": nn.ModuleDict({"k": nn.Linear(64, 6), "o": nn.Linear(24, 64)}), "x": Wired(router)}
    )
    assert controls(block) == {f"x.{name}": ROUTER for name in names}


class Stacked(nn.Module):
    """Experts in one parameter, and nothing that says how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = nn.Linear(64, 6)
        self.matrices = nn.Parameter(torch.randn(6, 64, 64))
        self.elsewhere = nn.Parameter(torch.randn(5, 64, 64))


def test_the_layer_that_chooses_among_matrices_says_how_many_there_are() -> None:
    block = nn.ModuleDict({"moe": Stacked(), "o": nn.Linear(64, 64)})
    assert stacks(block) == {"moe": ["matrices"]}
    assert controls(block) == {"moe.choose": ROUTER}


def test_a_gate_without_experts_is_no_router() -> None:
    mlp = nn.ModuleDict({"gate": nn.Linear(64, 96), "up": nn.Linear(64, 96), "down": nn.Linear(96, 64)})
    assert [name for name, _ in find_layers(mlp)[0]] == ["gate", "up", "down"]


class Weighing(nn.Module):
    """Parallel streams, weighed by coefficients that depend on the token (gemma3n's AltUp)."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.one = nn.Linear(64, streams)
        self.two = nn.Linear(streams, streams**2)
        self.three = nn.Linear(streams, streams)


@pytest.mark.parametrize("streams", [2, 3, 4])
def test_coefficients_of_streams_stay_dense(streams: int) -> None:
    block = nn.ModuleDict({"up": Weighing(streams), "q": nn.Linear(64, 64), "o": nn.Linear(64, 64)})
    prunable, skipped = find_layers(block)
    assert [name for name, _ in prunable] == ["q", "o"]
    assert [name for name, _ in skipped] == ["up.one", "up.two", "up.three"]
    assert {reason for _, reason in skipped} <= {GATE, STREAMS}


def test_narrow_layers_that_lead_to_a_vector_are_pruned() -> None:
    adapter = nn.ModuleDict({"down": nn.Linear(64, 4, bias=False), "up": nn.Linear(4, 64, bias=False)})
    mixer = nn.ModuleDict({"x": nn.Linear(128, 12), "dt": nn.Linear(4, 128), "out": nn.Linear(128, 64)})
    block = nn.ModuleDict({"mixer": mixer})
    assert not controls(block)
    assert "mixer.dt" in [name for name, _ in find_layers(block)[0]]
    assert STREAMS not in controls(nn.ModuleDict({"adapter": adapter, "q": nn.Linear(64, 64)})).values()


def test_vocabulary_is_no_router() -> None:
    assert VOCAB not in {4, 5}
    assert controls(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, VOCAB))) == {}


@pytest.mark.nightly
def test_every_mixture_of_transformers_keeps_its_routers_and_its_bits() -> None:
    ids, checked = torch.randint(3, 60, (1, 12), generator=torch.Generator().manual_seed(0)), 0
    for kind in sorted(TYPES):
        try:
            model = AutoModelForCausalLM.from_config(tiny_config(kind)).eval()
            model(ids, use_cache=False)
        except Exception:  # which of them can be built and run is asked elsewhere
            continue
        if not stacks(model):
            continue
        randomise(model)
        for module in model.modules():
            if hasattr(module, "config") and hasattr(module.config, "_experts_implementation"):
                module.config._experts_implementation = "eager"
        with torch.no_grad(), Followed(model) as followed:
            expected = model(ids, use_cache=False).logits
        with torch.no_grad(), opened(model):
            assert torch.equal(model(ids, use_cache=False).logits, expected), kind
            prunable = {f"{name}.weight" for name, _ in find_layers(model)[0]}
        assert not prunable & followed.chose, kind
        checked += 1
    assert checked > 40
