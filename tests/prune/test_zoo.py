"""Every architecture of the zoo by every kind of method, on disk in both storages and in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from tests.prune import tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.checks import mask_hash
from lowdim.models.load import load, quiet
from lowdim.prune.api import PruneResult, plan, prune

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "wanda-owl": {"method": "wanda", "allocation": {"name": "owl", "m": 2}},
    "variant-alpha": {"score": {"name": "wanda", "variant": True}, "allocation": "alpha"},
    "sparsegpt": {"method": "sparsegpt"},
    "sparsegpt-true": {"method": "sparsegpt", "sequential": "true", "allocation": "er"},
    "refit-global": {"method": "refit", "allocation": "global"},
    "wanda-dsnot": {"method": "wanda", "refine": {"name": "dsnot", "mlp": True}, "allocation": "er-plus"},
    "nm-sparsegpt": {"method": "sparsegpt", "pattern": "2:4"},
    "nm-owl": {"method": "wanda", "pattern": "3:8", "allocation": {"name": "owl", "m": 2}},
    "block-sparsegpt": {"method": "sparsegpt", "pattern": "1x4", "sparsity": 0.5},
    "block-wanda": {"method": "wanda", "pattern": "4x4", "sparsity": 0.5},
}


def stock(path: Path) -> PreTrainedModel:
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path)
    return model.eval()


def numel_and_zeros(result: PruneResult) -> tuple[int, int]:
    layers = result.manifest["layers"].values()
    numel = sum(layer["numel"] for layer in layers)
    return numel, numel - sum(layer["nonzeros"] for layer in layers)


def check_file(path: Path, result: PruneResult) -> None:
    """Every layer in the files has the count and the mask that the manifest gives, and no -0.0."""
    checkpoint = Checkpoint(path)
    for name, layer in result.manifest["layers"].items():
        weight = checkpoint.read(f"{name}.weight" if f"{name}.weight" in checkpoint.names() else name)
        kept = weight != 0
        assert (weight.numel(), int(kept.sum())) == (layer["numel"], layer["nonzeros"]), name
        assert layer["sparsity"] == 1 - layer["nonzeros"] / layer["numel"]
        assert mask_hash(kept) == result.manifest["hashes"]["masks"][name]
        assert not torch.signbit(weight[~kept]).any(), name


def pairs() -> list[Any]:
    """Every architecture with every kind of method; all but one method of each are left to the night."""
    found = []
    for i, kind in enumerate(ZOO):
        for j, method in enumerate(METHODS):
            marks = () if j == i % len(METHODS) else pytest.mark.nightly
            found.append(pytest.param(kind, method, marks=marks, id=f"{kind}-{method}"))
    return found


@pytest.mark.parametrize(("kind", "method"), pairs())
def test_dense_packed_and_memory_agree(kind: str, method: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = tiny.recipe(**METHODS[method])
    source = str(saved(kind))
    dense = prune(source, recipe, calibration=tiny.padded(), out=tmp_path / "dense")
    numel, zeros = numel_and_zeros(dense)
    assert zeros == round(numel * recipe.target) or method == "nm-owl"
    assert abs(zeros / numel - recipe.target) < 0.02
    check_file(tmp_path / "dense", dense)
    packed_recipe = recipe.model_copy(update={"storage": "packed"})
    packed = prune(source, packed_recipe, calibration=tiny.padded(), out=tmp_path / "packed")
    check_file(tmp_path / "packed", packed)
    assert packed.manifest["hashes"]["masks"] == dense.manifest["hashes"]["masks"]
    memory = tiny.in_memory(stock(saved(kind)), recipe, tiny.padded())
    assert memory.model is not None
    assert memory.manifest["layers"] == dense.manifest["layers"] or kind in ("mixtral", "qwen3-moe")
    assert numel_and_zeros(memory) == (numel, zeros)
    expected = tiny.logits(stock(tmp_path / "dense"))
    assert expected.isfinite().all()
    assert torch.equal(tiny.logits(load(tmp_path / "packed")), expected)
    assert torch.equal(tiny.logits(memory.model), expected)


@pytest.mark.parametrize("kind", ZOO)
def test_what_is_not_pruned_is_copied_bit_for_bit(kind: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    result = prune(str(saved(kind)), tiny.recipe(method="magnitude"), out=tmp_path / "out")
    before, after = tiny.stored(saved(kind)), tiny.stored(tmp_path / "out")
    assert list(before) == sorted(before)
    assert sorted(after) == list(before)
    pruned = set(result.manifest["layers"])
    for name, tensor in before.items():
        if name.removesuffix(".weight") in pruned:
            kept = after[name] != 0
            assert torch.equal(after[name], tensor * kept)
        else:
            assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("kind", [k for k in ZOO if stock and ZOO[k]().config.tie_word_embeddings])
def test_tied_embeddings_stay_tied(kind: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    prune(str(saved(kind)), tiny.recipe(method="wanda"), calibration=tiny.tokens(), out=tmp_path / "out")
    model = stock(tmp_path / "out")
    head = model.get_output_embeddings()
    assert head is not None
    assert head.weight is model.get_input_embeddings().weight
    assert sorted(tiny.stored(tmp_path / "out")) == sorted(tiny.stored(saved(kind)))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_routers_are_listed_and_left_alone(kind: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = tiny.recipe(method="wanda", targets={"exclude": ["q_proj"]})
    result = prune(str(saved(kind)), recipe, calibration=tiny.tokens(), out=tmp_path / "out")
    skipped = {entry["name"]: entry["reason"] for entry in result.manifest["skipped"]}
    assert [name for name in skipped if name.endswith("mlp.gate")] == [
        f"model.layers.{index}.mlp.gate" for index in range(3)
    ]
    assert skipped["model.layers.1.self_attn.q_proj"] == "left out by targets"
    assert list(skipped.items()) == plan(str(saved(kind)), recipe).skipped
    before, after = tiny.stored(saved(kind)), tiny.stored(tmp_path / "out")
    left = [name for name in before if re.search(r"gate\.weight|q_proj", name)]
    assert len(left) == 6
    assert all(torch.equal(before[name], after[name]) for name in left)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_half_precision_checkpoints_keep_their_dtype(kind: str, tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        source = tiny.save(tmp_path / f"{dtype}", kind, dtype)
        recipe = tiny.recipe(method="sparsegpt", compute="auto")
        out = tmp_path / f"{dtype}-out"
        result = prune(str(source), recipe, calibration=tiny.tokens(), out=out)
        assert all(tensor.dtype == dtype for tensor in tiny.stored(out).values())
        numel, zeros = numel_and_zeros(result)
        assert zeros == round(0.6 * numel)
        assert tiny.logits(stock(out)).isfinite().all()


def test_another_dtype_is_cast_to_and_written_in_the_config(saved: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = tiny.recipe(method="wanda", dtype="bfloat16")
    prune(str(saved("llama")), recipe, calibration=tiny.tokens(), out=tmp_path / "out")
    assert {tensor.dtype for tensor in tiny.stored(tmp_path / "out").values()} == {torch.bfloat16}
    assert stock(tmp_path / "out").dtype == torch.bfloat16


def heads_of(weight: Tensor, groups: int) -> Tensor:
    """Return which of ``groups`` runs of rows hold a nonzero."""
    return (weight != 0).reshape(groups, -1).any(1)


@pytest.mark.parametrize("kind", ["llama", "llama-untied-bias", "mistral", "qwen2", "qwen3", "gemma3", "opt", "phi"])
def test_structured_pruning_empties_whole_heads_and_channels(kind: str) -> None:
    result = tiny.in_memory(tiny.model(kind), tiny.recipe(method="wanda", pattern="structured", sparsity=0.5))
    found = {name.removesuffix(".weight"): tensor for name, tensor in tiny.weights(result).items()}
    groups = getattr(result.model.config, "num_key_value_heads", None) or 4
    for block in range(3):
        mine = {name.rsplit(".", 1)[-1]: w for name, w in found.items() if f"layers.{block}." in name}
        out = mine.get("o_proj", mine.get("out_proj", mine.get("dense")))
        alive = [heads_of(mine[name], groups) for name in ("q_proj", "k_proj", "v_proj")]
        alive.append(heads_of(out.t(), groups))
        assert int(alive[0].sum()) == groups // 2
        assert all(torch.equal(one, alive[0]) for one in alive)
        wide = [mine[name] for name in ("gate_proj", "up_proj", "fc1") if name in mine]
        narrow = mine.get("down_proj", mine.get("fc2"))
        channels = [(w != 0).any(1) for w in wide] + [(narrow != 0).any(0)]
        assert 0 < int(channels[0].sum()) < len(channels[0])
        assert all(torch.equal(one, channels[0]) for one in channels)
    assert abs(result.sparsity - 0.5) < 0.01


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "bloom", "gpt-neox", "mixtral", "qwen3-moe"])
def test_structured_pruning_is_refused_before_work_where_the_roles_are_unknown(
    kind: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = tiny.recipe(method="magnitude", pattern="structured", sparsity=0.5)
    with pytest.raises(ValueError, match=r"pattern structured finds no .* Set pattern\.(heads|channels)=false"):
        plan(str(saved(kind)), recipe)
    with pytest.raises(ValueError, match="pattern structured finds no"):
        prune(str(saved(kind)), recipe, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
