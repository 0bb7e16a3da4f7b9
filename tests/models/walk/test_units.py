"""Models whose tensors on disk are not their parameters, one to one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from tests.prune import tiny
from transformers import conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, Interleave, WeightConverter

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.load import quiet
from lowdim.models.walk.skeleton import Skeleton, empty_model
from lowdim.prune.api import plan, prune

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MOE: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "hrm_text": {"num_key_value_heads": 4},
    "olmo_hybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "phimoe": MOE,
    "lfm2_moe": MOE | {"num_dense_layers": 1, "layer_types": ["full_attention", "conv"]},
    "jamba": MOE | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "deepseek_v3": MOE
    | {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "exaone_moe": MOE | {"mlp_layer_types": ["dense", "sparse"], "n_group": 1, "topk_group": 1},
}


def made(kind: str) -> t.PreTrainedModel:
    known = t.CONFIG_MAPPING[kind]
    fields = set(getattr(known, "__dataclass_fields__", {}))
    config = known(**{key: value for key, value in (SIZES | KINDS.get(kind, {})).items() if key in fields})
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        return t.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("units")


def saved(kind: str, home: Path) -> Path:
    path = home / kind
    return path if path.exists() else tiny.save_model(made(kind), path)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_go_back_to_the_names_shapes_and_bits_on_disk(kind: str, home: Path) -> None:
    source = Checkpoint(saved(kind, home))
    with quiet():
        skeleton = Skeleton(empty_model(source.path, torch.float32), source, None)
    skeleton.check_ways_back()
    skeleton.fill(source, source.names())
    back = skeleton.to_disk({n: p for n, p in skeleton.model.named_parameters() if not p.is_meta})
    buffers = {skeleton.parameter_of(name) for name in source.names()} - {
        n for n, _ in skeleton.model.named_parameters()
    }
    assert back.keys() == {name for name in source.names() if skeleton.parameter_of(name) not in buffers}
    assert all(torch.equal(tensor, source.read(name)) for name, tensor in back.items())


@pytest.mark.parametrize("kind", ["hrm_text", "phimoe", "lfm2_moe", "deepseek_v3", "exaone_moe"])
def test_every_tensor_keeps_name_and_shape_and_its_kept_weights(kind: str, home: Path, tmp_path: Path) -> None:
    source = saved(kind, home)
    result = prune(str(source), tiny.recipe(method="magnitude", sparsity=0.5), out=tmp_path / "out")
    before, after = tiny.stored(source), tiny.stored(tmp_path / "out")
    assert {n: x.shape for n, x in after.items()} == {n: x.shape for n, x in before.items()}
    assert all(torch.equal(after[n], before[n] * (after[n] != 0)) for n in before)
    layers = result.manifest["layers"]
    assert {key: int((after[f"{key}.weight" if f"{key}.weight" in after else key] != 0).sum()) for key in layers} == {
        key: part["nonzeros"] for key, part in layers.items()
    }
    assert abs(result.sparsity - 0.5) < 0.01
    with quiet():
        assert tiny.logits(t.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()).isfinite().all()


def test_a_model_in_memory_is_recorded_as_it_is_saved(home: Path, tmp_path: Path) -> None:
    source = saved("hrm_text", home)
    recipe = tiny.recipe(method="magnitude", sparsity=0.5)
    disk = prune(str(source), recipe, out=tmp_path / "disk")
    with quiet():
        memory = prune(t.AutoModelForCausalLM.from_pretrained(source), recipe, out=tmp_path / "memory")
    assert memory.manifest["layers"] == disk.manifest["layers"]
    assert memory.manifest["hashes"]["masks"] == disk.manifest["hashes"]["masks"]
    one, other = tiny.stored(tmp_path / "disk"), tiny.stored(tmp_path / "memory")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_tensor_of_pruned_and_of_dense_layers(home: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(method="magnitude", sparsity=0.5, targets={"include": ["up_proj"]})
    prune(str(saved("hrm_text", home)), recipe, out=tmp_path / "out")
    before, after = tiny.stored(saved("hrm_text", home)), tiny.stored(tmp_path / "out")
    name = "model.L_module.layers.0.mlp.gate_up_proj.weight"
    gate, up = after[name].chunk(2)
    assert torch.equal(gate, before[name].chunk(2)[0])
    assert int((up == 0).sum()) == up.numel() // 2


def test_joined_from_unequal_parts(home: Path) -> None:
    path = saved("olmo_hybrid", home)
    held = load_file(path / "model.safetensors")
    names = [n for n in held if n.startswith("model.layers.0.linear_attn") and "conv1d" in n]
    whole = torch.cat([held[n] for n in sorted(names, key=lambda n: "qkv".index(n.split(".")[-2][0]))])
    sizes = {"q": 16, "k": 16, "v": 32}
    parts = dict(zip("qkv", whole.split([16, 16, 32]), strict=True))
    held |= {name: parts[name.split(".")[-2][0]].clone() for name in names}
    save_file(held, path / "model.safetensors", {"format": "pt"})
    with quiet():
        skeleton = Skeleton(empty_model(path, torch.float32), Checkpoint(path), None)
    skeleton.fill(Checkpoint(path), names)
    parameter = skeleton.parameter_of(names[0])
    back = skeleton.to_disk({parameter: skeleton.model.get_parameter(parameter)})
    assert {name: tensor.shape[0] for name, tensor in back.items()} == {n: sizes[n.split(".")[-2][0]] for n in names}
    assert all(torch.equal(back[name], held[name]) for name in names)


class Halved(ConversionOps):
    """Computes with the numbers instead of moving them."""

    def convert(self, input_dict: dict[str, Any], target_patterns: list[str], **_: Any) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        return {target_patterns[0]: (tensors[0] if isinstance(tensors, list) else tensors) // 2}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


@pytest.fixture
def rule(request: pytest.FixtureRequest) -> Iterator[None]:
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills the table
    table = conversion_mapping._checkpoint_conversion_mapping_cache
    assert "llama" not in table
    table["llama"] = request.param
    yield
    del table["llama"]


def own_rule(operations: list[ConversionOps], target: str = "mlp.down_proj.weight") -> list[WeightConverter]:
    return [WeightConverter(["mlp.down.weight"], [target], operations)]


def renamed(path: Path) -> Path:
    """Save a Llama whose down projections have another name on disk."""
    tiny.save(path)
    held = load_file(path / "model.safetensors")
    save_file(
        {n.replace("down_proj", "down"): x for n, x in held.items()}, path / "model.safetensors", {"format": "pt"}
    )
    return path


@pytest.mark.parametrize("rule", [own_rule([Halved()])], indirect=True)
@pytest.mark.usefixtures("rule")
def test_what_is_computed_is_refused_before_any_work(tmp_path: Path) -> None:
    source = str(renamed(tmp_path / "in"))
    for run in (plan, lambda *given: prune(*given, out=tmp_path / "out", calibration=iter(()))):
        with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.down_proj\.weight' is made .* cannot be undone"):
            run(source, tiny.recipe(method="wanda"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("rule", [own_rule([Interleave(dim=0)])], indirect=True)
@pytest.mark.usefixtures("rule")
def test_what_is_moved_goes_back(tmp_path: Path) -> None:
    source = renamed(tmp_path / "in")
    prune(str(source), tiny.recipe(method="magnitude", sparsity=0.25), out=tmp_path / "out")
    before, after = tiny.stored(source), tiny.stored(tmp_path / "out")
    assert all(torch.equal(after[n], before[n] * (after[n] != 0)) for n in before)
    assert "model.layers.0.mlp.down.weight" in after


@pytest.mark.parametrize(
    "rule",
    [[WeightConverter(["mlp.a.weight", "mlp.b.weight"], ["mlp.down_proj.weight"], [Concatenate(0)])]],
    indirect=True,
)
@pytest.mark.usefixtures("rule")
@pytest.mark.parametrize("rows", [16, 10])
def test_joined_by_any_rule(tmp_path: Path, rows: int) -> None:
    tiny.save(tmp_path / "in")
    held = load_file(tmp_path / "in" / "model.safetensors")
    for name in [name for name in held if "down_proj" in name]:
        whole = held.pop(name)
        held |= {
            name.replace("down_proj", k): part.clone()
            for k, part in zip("ab", whole.split([rows, len(whole) - rows]), strict=True)
        }
    save_file(held, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    prune(str(tmp_path / "in"), tiny.recipe(method="wanda"), calibration=tiny.tokens(), out=tmp_path / "out")
    before, after = tiny.stored(tmp_path / "in"), tiny.stored(tmp_path / "out")
    assert {n: x.shape for n, x in after.items()} == {n: x.shape for n, x in before.items()}
    assert all(torch.equal(after[n], before[n] * (after[n] != 0)) for n in before)


def test_tensors_that_the_model_does_not_know_are_kept(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "in", "qwen3")
    held = load_file(source / "model.safetensors")
    extra = {"model.layers.3.mlp.up_proj.weight": torch.ones(4, 4), "model.layers.12.eh_proj.weight": torch.ones(2)}
    extra |= {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4), "mtp.x": torch.ones(3)}
    save_file(held | extra, source / "model.safetensors", {"format": "pt"})
    prune(str(source), tiny.recipe(method="magnitude"), out=tmp_path / "out")
    after = tiny.stored(tmp_path / "out")
    assert after.keys() == held.keys() | extra.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in extra.items())


def test_two_tensors_for_one_weight_are_refused(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "in")
    held = load_file(source / "model.safetensors")
    held["layers.0.mlp.up_proj.weight"] = held["model.layers.0.mlp.up_proj.weight"] + 1
    save_file(held, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"are one weight of the model, 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        plan(str(source), tiny.recipe())


class TestDtypes:
    @pytest.mark.parametrize(
        ("said", "kind"), [("float16", "mixtral"), ("bfloat16", "llama"), ("float32", "qwen3"), (None, "mistral")]
    )
    def test_each_tensor_keeps_its_own(self, said: str | None, kind: str, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in", kind)
        held = load_file(source / "model.safetensors")
        kinds = [torch.bfloat16, torch.float32, torch.float16, torch.bfloat16]
        held = {name: x.to(kinds[i % 4]) for i, (name, x) in enumerate(sorted(held.items()))}
        held["model.layers.0.self_attn.q_proj.weight"] = held["model.layers.0.self_attn.q_proj.weight"].bfloat16()
        held["model.layers.0.self_attn.q_proj.weight"][0, 0] = 1e5
        save_file(held, source / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text()) | {"dtype": said}
        (source / "config.json").write_text(json.dumps(config))
        result = prune(str(source), tiny.recipe(method="wanda"), calibration=tiny.tokens(), out=tmp_path / "out")
        after = tiny.stored(tmp_path / "out")
        assert {n: x.dtype for n, x in after.items()} == {n: x.dtype for n, x in held.items()}
        assert all(torch.equal(after[n], held[n] * (after[n] != 0)) for n in held)
        assert result.sparsity == pytest.approx(0.6, abs=0.01)
        most = str(Checkpoint(source).dtype).removeprefix("torch.")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == most
        stated = [entry for entry in result.manifest["fallbacks"] if entry["layer"] == "config.json"]
        assert bool(stated) == (said not in (None, most))
        assert all(str(said) in entry["what"] and most in entry["what"] for entry in stated)

    def test_a_model_is_loaded_in_the_dtype_of_its_weights(self, tmp_path: Path) -> None:
        from lowdim.models.load import load

        source = tiny.save(tmp_path / "in", "llama", torch.bfloat16)
        held = load_file(source / "model.safetensors")
        held["model.norm.weight"][0] = 1e5
        save_file(held, source / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text()) | {"dtype": "float16"}
        (source / "config.json").write_text(json.dumps(config))
        assert load(source).dtype == torch.bfloat16
        assert load(source).get_parameter("model.norm.weight")[0].item() == torch.tensor(1e5).bfloat16().item()
