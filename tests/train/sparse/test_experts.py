"""Experts that are slices of one parameter become sparse one by one."""

from __future__ import annotations

import io
import warnings
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.mixtures import mixture
from tests.models.zoo import VOCAB
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core import registry
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.models.structure.routers import stacks
from lowdim.nn.csr.swap import sparse_
from lowdim.train import ITOP, SET, Method, RandomMasks, RigL, SparseTraining, Static
from lowdim.train.loop import Loop

UP = "model.layers.0.mlp.experts.gate_up_proj"
EXPERTS = ["*.experts.*_proj"]


def train(model: PreTrainedModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        ids = torch.randint(1, VOCAB, (2, 6), generator=torch.Generator().manual_seed(step))
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def begun(kind: str = "mixtral", **settings: Any) -> tuple[PreTrainedModel, Any, SparseTraining]:
    model = mixture(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wanted = {"sparsity": 0.8, "method": RigL(every=2), "total_steps": 8, "include": EXPERTS} | settings
    return model, optimizer, SparseTraining(model, optimizer, **wanted)


def experts(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        f"{n}.{part}": model.get_submodule(n).get_parameter(part)
        for n, parts in stacks(model).items()
        for part in parts
    }


LAYERWISE = {"ctre": "linear", "selfish-rnn": "recurrent|LSTM"}
"""Methods that look at more of a layer than its weight, and what their refusal says."""
METHODS = {name: registry.find("training", name) for name in registry.names("training")}


def made(name: str) -> Method:
    given = {"every": 2, "channels": 0.0}
    method: Method = METHODS[name].load()(**{k: v for k, v in given.items() if k in METHODS[name].settings()})
    return method


@pytest.mark.parametrize("name", LAYERWISE)
def test_a_method_that_looks_at_layers_refuses_experts(name: str) -> None:
    with pytest.raises(RecipeError, match=LAYERWISE[name]):
        begun(method=made(name))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LAYERWISE])
def test_every_method_keeps_exact_counts_in_every_expert(name: str) -> None:
    method = made(name)
    model, optimizer, training = begun(method=method, include=None)
    train(model, optimizer, range(8))
    masks = training.masks
    for name, weight in experts(model).items():
        assert masks.shape(name) == tuple(weight.shape)
        for index in range(4):
            kept = int(masks[name][index].sum())
            if not method.changes_density:
                assert kept == training.targets[f"{name}[{index}]"]
            assert training.sparsity(f"{name}[{index}]") == 1 - kept / weight[index].numel()
        assert not weight[~masks[name]].any()
        for key in ("exp_avg", "exp_avg_sq"):
            assert not optimizer.state[weight][key][~masks[name]].any()
    assert round(training.sparsity(), 2) == 0.8


@pytest.mark.parametrize("kind", ["gpt-oss", "llama4", "deepseek-v3", "nemotron-h", "jetmoe"])
def test_every_layout_is_found_without_being_named(kind: str) -> None:
    model, optimizer, training = begun(kind, include=None)
    train(model, optimizer, range(4))
    assert experts(model).keys() <= dict(training.masks).keys()
    assert not [name for name in training.masks if "router" in name or name.endswith("gate.weight")]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    counted = sum(int((mask == 0).sum()) for mask in training.masks.values()) / sum(p.numel() for p in matrices)
    assert training.model_sparsity() == pytest.approx(counted)
    assert len(training.history) == 2


def test_an_expert_without_tokens_stands_still_and_is_noted() -> None:
    model, optimizer, training = begun()
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.gate.weight").zero_()  # ties go to two of them
    model.get_parameter("model.layers.0.mlp.gate.weight").requires_grad_(False)
    before = training.masks[UP]
    train(model, optimizer, range(2))
    after = training.masks[UP]
    moved = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert sum(moved) == 2
    assert {name for name in training.history[0]["idle"] if name.startswith(UP)} == {
        f"{UP}[{index}]" for index in range(4) if not moved[index]
    }


def test_a_resumed_run_ends_with_the_same_bytes() -> None:
    whole, optimizer, straight = begun()
    train(whole, optimizer, range(8))
    model, optimizer, training = begun()
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), training.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model, optimizer, training = begun(seed=0)
    for held, state in zip((model, optimizer, training), saved, strict=True):
        held.load_state_dict(state)
    train(model, optimizer, range(3, 8))
    assert training.masks == straight.masks
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_masks_are_saved_with_all_experts_and_start_another_run(tmp_path: Path) -> None:
    model, optimizer, training = begun()
    train(model, optimizer, range(4))
    training.masks.save(tmp_path / "masks")
    masks = Masks.load(tmp_path / "masks")
    other, _, again = begun(masks=masks, sparsity=None, method=Static(), include=None)
    assert again.masks == training.masks
    assert not experts(other)[UP][~masks[UP]].any()
    clean = mixture("mixtral")
    training.apply_(clean)
    assert torch.equal(experts(clean)[UP] != 0, masks[UP])


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("pattern", ["2:4", "fan-in"])
def test_patterns_run_along_the_inputs_of_every_expert(kind: str, pattern: str) -> None:
    settings: dict[str, Any] = {"pattern": pattern, "sparsity": 0.5, "method": SET(every=2)}
    model, optimizer, training = begun(kind, **settings)
    train(model, optimizer, range(4))
    mask = training.masks[UP]
    rows = mask.transpose(1, 2) if kind == "gpt-oss" else mask
    groups = rows.reshape(4, -1, 4 if ":" in pattern else rows.shape[2]).sum(2)
    assert all(len(expert.unique()) == 1 for expert in groups)
    assert ":" not in pattern or bool((groups == 2).all())


def test_an_expert_has_the_share_of_a_layer_of_its_shape() -> None:
    _, _, training = begun(allocation="erk")
    targets = {name: count for name, count in training.targets.items() if name.startswith(UP)}
    assert len(targets) == 4
    assert max(targets.values()) - min(targets.values()) <= 1


def test_random_masks_spread_over_experts_too() -> None:
    masks = RandomMasks("uniform").masks(mixture("mixtral"), sparsity=0.75, include=EXPERTS)
    counts = masks[UP].sum((1, 2))
    assert counts.tolist() == [prod(masks[UP].shape[1:]) // 4] * 4


def test_truly_sparse_layers_cannot_hold_them() -> None:
    model = mixture("mixtral")
    masks = RandomMasks("uniform").masks(model, sparsity=0.75, include=EXPERTS)
    with pytest.raises(LowdimError, match=r"gate_up_proj' holds 4 matrices in one tensor.*Train them masked"):
        sparse_(model, masks)


def test_where_most_stays_dense_unasked_a_warning_says_both_numbers() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Bilinear(4, 4, 4), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"72 of 88 weights stay dense.*largest is 1\.weight \(Bilinear is no linear"):
        training = SparseTraining(net, torch.optim.SGD(net.parameters(), lr=0.1), sparsity=0.75, method=Static())
    assert (training.sparsity(), training.model_sparsity()) == (0.75, 12 / 88)
    assert "75.00% zeros in the sparse layers, 13.64% of all weights" in str(training)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(
    "setting", [{"grow": "momentum"}, {"grow": "gradient"}, {"grow": "unfired"}, {"death": "taylor"}]
)
def test_itop_moves_experts_by_every_rule(setting: dict[str, Any], optimizer: Any) -> None:
    model = mixture("mixtral")
    inner = optimizer(model.parameters(), lr=1e-2)
    method = ITOP(every=2, **setting)
    training = SparseTraining(model, inner, sparsity=0.8, method=method, total_steps=8, include=EXPERTS)
    before = training.masks[UP]
    train(model, inner, range(5))
    assert len(training.history) == 2 and not torch.equal(training.masks[UP], before)
    assert {layer.name: layer.kept for layer in training.layers} == training.targets


def wide_copies(model: PreTrainedModel, optimizer: torch.optim.Optimizer, training: SparseTraining) -> None:
    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return model(ids, labels=ids, use_cache=False).loss

    ids = [torch.randint(1, VOCAB, (2, 6), generator=torch.Generator().manual_seed(step)) for step in range(8)]
    Loop(model, optimizer, loss=loss, master=True, riders=[training]).run(ids)


def swapped(model: PreTrainedModel, optimizer: torch.optim.Optimizer, training: SparseTraining) -> None:
    for step in range(8):  # as averages do that take the weights' places in turn
        for weight in model.parameters():
            weight.data = weight.data + 0.01
        train(model, optimizer, range(step, step + 1))


@pytest.mark.parametrize("method", [Static(), RigL(every=2), SET(every=2)], ids=repr)
@pytest.mark.parametrize("how", [wide_copies, swapped])
def test_masks_act_on_the_memory_that_experts_have_now(how: Any, method: Method) -> None:
    model = mixture("mixtral")
    model = model.bfloat16() if how is wide_copies else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    training = SparseTraining(
        model, optimizer, sparsity=0.8, method=method, total_steps=8, include=EXPERTS, allocation="uniform"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*somebody has written weights that are off")
        how(model, optimizer, training)
    held = experts(model)
    assert not any(held[name][~mask].any() for name, mask in training.masks.items())
    assert sum(int((weight == 0).sum()) for weight in held.values()) >= 0.79 * sum(w.numel() for w in held.values())
