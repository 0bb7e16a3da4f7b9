from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.results import pruned, saved
from tests.models.zoo import ZOO
from torch import nn
from transformers import PreTrainedModel

import lowdim
from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.quantize import Grid, encode
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.load import Stack
from lowdim.models import load as stock
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.disk.packed import Form, Packed, pack_levels
from lowdim.models.disk.packed_header import lay_out
from lowdim.models.disk.writer import Writer, shard_name
from lowdim.models.quantize import quantize

TOKENS = torch.arange(12)[None] + 3
EXACT = sorted(set(ZOO) - {"mixtral"})  # whose experts Transformers sums in another order


def packed_dir(tmp_path: Path, kind: str = "llama", **options: Any) -> Path:
    return convert(pruned(tmp_path / "dense", kind, **options), tmp_path / "packed", "packed")


def rounded_dir(tmp_path: Path, kind: str, grid: Grid) -> Path:
    """A packed directory whose layers are rounded, as pruning with rounding leaves it."""
    source = Checkpoint(packed_dir(tmp_path, kind))
    turned = kind == "gpt2"
    tensors: dict[str, Any] = {}
    for name, tensor in source:
        tensors[name] = tensor
        if source.is_packed(name):
            matrix = tensor.t().contiguous() if turned else tensor
            made = encode(matrix, matrix != 0, grid)
            form = Form(tuple(tensor.shape), tensor.dtype, grid, turned)
            tensors[name] = pack_levels(made.levels, made.scales, form)
    with Writer(tmp_path / "rounded") as writer:
        stored, metadata = lay_out(tensors)
        writer.write_shard(shard_name(1, 1).replace("model", "packed"), stored, {"format": "pt"} | metadata)
        for name in source.companions():
            writer.directory.copy(source.path / name)
        return writer.finish()


def packed_linears(path: Path) -> dict[str, Packed]:
    """What a directory holds packed of a model's Linears; the routers of the tests are packed too."""
    checkpoint = Checkpoint(path)
    names = [name for name in checkpoint.names() if checkpoint.is_packed(name) and not name.endswith(".gate.weight")]
    return {name: checkpoint.read_packed(name) for name in names}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(TOKENS).logits
    return found


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def off(model: PreTrainedModel, dense: PreTrainedModel) -> float:
    """Return the error of the worst token, relative to the largest logit.

    Which expert a token near a tie goes to is up to the rounding, another on every kind of processor: tokens of a
    mixture count where both models send them to the same experts, which must be most of them.
    """
    errors = (logits(model).float() - logits(dense).float()).abs().amax(-1) / logits(dense).abs().max()
    alike = torch.ones_like(errors, dtype=torch.bool)
    if model.config.model_type == "mixtral":
        with torch.inference_mode():
            routes = [m(TOKENS, output_router_logits=True).router_logits for m in (model, dense)]
        for ours, theirs in zip(*routes, strict=True):
            chosen = [r.topk(model.config.num_experts_per_tok).indices.sort(-1).values for r in (ours, theirs)]
            alike &= (chosen[0] == chosen[1]).all(-1).view_as(alike)
        assert 2 * alike.sum() > alike.numel()
    return float(errors[alike].max())


@pytest.mark.parametrize("kind", sorted(ZOO))
def test_packed_as_stored(tmp_path: Path, kind: str) -> None:
    path = packed_dir(tmp_path, kind)
    model, dense = lowdim.load(path), stock.load(path)
    assert type(model) is type(dense)
    assert model.dtype == torch.bfloat16 and not model.training
    assert off(model, dense) < 0.02
    if kind in EXACT:
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(TOKENS, **options), dense.generate(TOKENS, **options))
    layers = sparse_layers(model)
    assert sum(layer.mask is not None for layer in layers.values()) == len(packed_linears(path))
    assert not [name for name, p in model.named_parameters() if p.is_meta or p.requires_grad]
    assert all(p.dtype == dict(dense.named_parameters())[n].dtype for n, p in model.named_parameters())
    assert model.config._attn_implementation == dense.config._attn_implementation


@pytest.mark.parametrize(
    ("kind", "bits", "group"),
    [
        ("llama", 8, 64),
        ("llama", 4, 128),
        ("gpt2", 8, 128),
        ("gpt2", 4, 64),
        ("qwen3-moe", 8, 64),
        ("qwen3-moe", 4, 64),
    ],
)
def test_rounded_as_stored(tmp_path: Path, kind: str, bits: int, group: int) -> None:
    """Codes, scales and table are those on disk: nothing is rounded twice."""
    path = rounded_dir(tmp_path, kind, Grid(bits, group))
    for dtype in (None, f"int{bits}"):
        model = lowdim.load(path, dtype)
        layers = [layer for layer in sparse_layers(model).values() if layer.mask is not None]
        assert {(layer.dtype, layer.group) for layer in layers} == {(f"int{bits}", group)}
        held = sorted(tuple(layer.values.tolist()) for layer in layers)
        assert held == sorted(tuple(made.values.tolist()) for made in packed_linears(path).values())
    dense = stock.load(path)
    assert float((logits(model) - logits(dense)).abs().max() / logits(dense).abs().max()) < 0.08


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3-moe"])
def test_rounded_without_a_mask_as_stored(tmp_path: Path, kind: str, bits: int) -> None:
    path = quantize(saved(tmp_path / "model", kind), tmp_path / "rounded", Grid(bits))
    checkpoint, name = Checkpoint(path), f"int{bits}"
    stored = {n: checkpoint.read_packed(n) for n in checkpoint.names() if checkpoint.is_packed(n)}
    for dtype in (None, name):
        model = lowdim.load(path, dtype)
        layers = [layer for layer in sparse_layers(model).values() if layer.dtype == name and layer.table is not None]
        layers = layers if bits < 8 else [layer for layer in sparse_layers(model).values() if layer.dtype == name]
        held = sorted(hashed(layer.values) for layer in layers)
        wanted = sorted(hashed(made.values) for made in stored.values())
        assert (held == wanted) if dtype is None or bits < 8 else set(wanted) <= set(held)  # and the head
        assert all(layer.mask is None and layer.kernel.startswith(f"dense {name}") for layer in layers)
    dense = stock.load(path)
    assert float((logits(model) - logits(dense)).abs().max() / logits(dense).abs().max()) < 0.08


def hashed(values: torch.Tensor) -> bytes:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).digest()


LIMITS = {"fp32": 0.02, "bf16": 0.01, "int8": 0.06, "int4": 0.4, "int3": 0.8}


@pytest.mark.parametrize(
    ("dtype", "limit", "kind"),
    [
        (dtype, limit, kind)
        for dtype, limit in LIMITS.items()
        for kind in ("llama", "gpt2", "mixtral")
        if (dtype, kind) != ("int3", "mixtral")  # at 3 bits its tokens go to other experts
    ],
)
def test_conversion(tmp_path: Path, kind: str, dtype: str, limit: float) -> None:
    path = packed_dir(tmp_path, kind)
    model, dense = lowdim.load(path, dtype), stock.load(path)
    assert off(model, dense) < limit + 0.02 * (kind == "mixtral")
    kinds = {layer.dtype for name, layer in sparse_layers(model).items() if name != "lm_head"}
    assert kinds == {dtype}
    assert model.dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)


def test_rounded_to_another_kind(tmp_path: Path) -> None:
    path = rounded_dir(tmp_path, "llama", Grid(8))
    exact = logits(stock.load(path, torch.float32))
    model = lowdim.load(path, "fp32")
    assert {layer.dtype for layer in sparse_layers(model).values()} == {"fp32"}
    assert torch.allclose(logits(model), exact, atol=0.05)
    assert {layer.dtype for n, layer in sparse_layers(lowdim.load(path, "int4")).items() if n != "lm_head"} == {"int4"}


def test_a_dense_directory(tmp_path: Path) -> None:
    path = pruned(tmp_path / "dense")
    for dtype, wanted in ((None, torch.bfloat16), ("fp32", torch.float32), (torch.bfloat16, torch.bfloat16)):
        model = lowdim.load(path, dtype)
        assert not sparse_layers(model)
        assert model.dtype == wanted
        assert next(model.parameters()).requires_grad
    model = lowdim.load(path, "int8")
    assert len(sparse_layers(model)) == 22
    assert all(layer.mask is not None for n, layer in sparse_layers(model).items() if n != "lm_head")
    dense = logits(stock.load(path))
    assert float((logits(model) - dense).abs().max() / dense.abs().max()) < 0.06


@pytest.mark.parametrize("shards", [1, 3])
def test_a_tied_head_in_shards(tmp_path: Path, shards: int) -> None:
    model = lowdim.load(packed_dir(tmp_path, "llama", shards=shards))
    head = model.get_output_embeddings()
    assert isinstance(head, SparseLinear)
    assert head.values.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    head = lowdim.load(tmp_path / "packed", "int4").get_output_embeddings()
    assert isinstance(head, SparseLinear) and head.dtype == "int8"


def test_experts_stay_as_they_lie_on_disk(tmp_path: Path) -> None:
    model = lowdim.load(packed_dir(tmp_path, "mixtral"))
    expert = model.get_submodule("model.layers.1.mlp.experts.2")
    assert isinstance(expert.gate_up_proj, Stack)
    gate = Checkpoint(tmp_path / "packed").read("model.layers.1.block_sparse_moe.experts.2.w1.weight")
    assert torch.equal(expert.gate_up_proj[0].weight, gate)


def test_half_precision(tmp_path: Path) -> None:
    with stock.quiet():
        ZOO["llama"]().half().save_pretrained(tmp_path / "half")
    path = convert_half(tmp_path / "half", tmp_path / "packed")
    model = lowdim.load(path)
    layers = sparse_layers(model)
    assert {layer.dtype for layer in layers.values()} == {"fp32"}
    assert torch.equal(
        layers["model.layers.0.mlp.up_proj"].weight,
        Checkpoint(path).read("model.layers.0.mlp.up_proj.weight").float(),
    )
    assert model.dtype == torch.float16
    assert torch.isfinite(logits(model)).all()


def convert_half(source: Path, out: Path) -> Path:
    file = source / "model.safetensors"
    tensors = {
        k: v * (torch.rand(v.shape) < 0.4) if ".layers." in k and v.dim() == 2 else v
        for k, v in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return convert(source, out, "packed")


def test_names_and_settings(tmp_path: Path) -> None:
    path = packed_dir(tmp_path)
    (path / "generation_config.json").write_text('{"max_new_tokens": 7}')
    model = lowdim.load(str(path))
    assert model.generation_config.max_new_tokens == 7
    assert model.config._name_or_path == str(path)
    state = torch.get_rng_state()
    lowdim.load(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_lie_in_ordinary_memory(tmp_path: Path) -> None:
    model = lowdim.load(packed_dir(tmp_path))
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()
    assert all(layer.values.data_ptr() % 64 == 0 for layer in sparse_layers(model).values())


def test_what_is_refused(tmp_path: Path) -> None:
    path = packed_dir(tmp_path)
    with pytest.raises(LowdimError, match="dtype must be one of fp32, bf16, int8, int4, int3, got 'bfloat16'"):
        lowdim.load(path, "bfloat16")
    with pytest.raises(LowdimError, match="group must be 64 or 128"):
        lowdim.load(path, "int8", group=32)
    with pytest.raises(LowdimError, match=r"int8 layers run on the CPU only, got device='cuda'"):
        lowdim.load(path, "int8", device="cuda")
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        lowdim.load(tmp_path / "absent")
    (tmp_path / "run.partial").mkdir()
    with pytest.raises(CheckpointError, match=r"run\.partial exists: that run did not finish"):
        lowdim.load(str(tmp_path / "run"))


def test_another_device(tmp_path: Path) -> None:
    """The meta device stands for one without kernels: what goes there is a stock model."""
    model = lowdim.load(packed_dir(tmp_path), device="meta")
    assert not sparse_layers(model)
    assert next(model.parameters()).is_meta


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("part", ["up_proj|w3", "layernorm", "embed_tokens", "down_proj|w2"])
def test_a_missing_weight_is_not_made_up(tmp_path: Path, kind: str, part: str) -> None:
    path = packed_dir(tmp_path, kind, shards=1)
    file = path / "packed-00001-of-00001.safetensors"
    file = file if file.exists() else next(path.glob("*.safetensors"))
    drop(file, next(name for name in Checkpoint(path).names() if any(p in name for p in part.split("|"))))
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's weights|does not fit its config\.json"):
        lowdim.load(path)


def drop(file: Path, name: str) -> None:
    """Rewrite a packed file without one of its weights."""
    checkpoint = Checkpoint(file.parent)
    tensors: dict[str, Any] = {
        n: checkpoint.read_packed(n) if checkpoint.is_packed(n) else t for n, t in checkpoint if n != name
    }
    stored, metadata = lay_out(tensors)
    for old in file.parent.glob("*.safetensors*"):
        old.unlink()
    save_file(
        {k: v for k, v in stored.items() if isinstance(v, torch.Tensor)},
        file.parent / "packed.safetensors",
        metadata | {"format": "pt"},
    )


def test_damage(tmp_path: Path) -> None:
    path = packed_dir(tmp_path, shards=1)
    name = "model.layers.1.mlp.down_proj.weight"
    checkpoint = Checkpoint(path)
    tensors: dict[str, Any] = {n: checkpoint.read_packed(n) if checkpoint.is_packed(n) else t for n, t in checkpoint}
    whole = tensors[name]
    tensors[name] = Packed(whole.form, whole.mask ^ 1, whole.values)
    stored, metadata = lay_out(tensors)
    for old in path.glob("*.safetensors*"):
        old.unlink()
    save_file(
        {k: v for k, v in stored.items() if isinstance(v, torch.Tensor)},
        path / "packed.safetensors",
        metadata | {"format": "pt"},
    )
    with pytest.raises(
        CheckpointError, match=r"packed\.safetensors: 'model\.layers\.1\.mlp\.down_proj\.weight' is damaged"
    ):
        lowdim.load(path)
    file = path / "packed.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        lowdim.load(path)


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"num_hidden_layers": 9}, {"intermediate_size": 96}])
def test_a_config_of_another_model(tmp_path: Path, change: dict[str, int]) -> None:
    config = packed_dir(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        lowdim.load(tmp_path / "packed")


def test_a_dense_model_still_saves(tmp_path: Path) -> None:
    model = lowdim.load(saved(tmp_path / "dense", "llama"))
    with stock.quiet():
        model.save_pretrained(tmp_path / "again")
    assert Checkpoint(tmp_path / "again").names() == Checkpoint(tmp_path / "dense").names()


MEASURE = """
import sys, torch, lowdim, lowdim.infer.sparse.load, transformers.models.llama.modeling_llama
from pathlib import Path
def resident():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmRSS"))
torch.randn(99, 99) @ torch.randn(99, 99)
before = resident()
model = lowdim.load(sys.argv[1])
with torch.inference_mode():
    model.generate(torch.arange(8)[None], max_new_tokens=3, do_sample=False)
print((resident() - before) / sum(f.stat().st_size for f in Path(sys.argv[1]).glob("*.safetensors")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_is_close_to_the_size_of_the_files(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=16,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers." in name and parameter.dim() == 2:
                parameter.mul_(torch.rand(parameter.shape) < 0.4)
    with stock.quiet():
        model.save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "packed", "packed")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "packed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3
