from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.results import pruned, saved
from tests.models.zoo import ZOO
from transformers import AutoModelForCausalLM

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.load import load, quiet

KINDS = ["llama", "llama-untied-bias", "gpt2", "opt", "bloom", "gemma3", "mixtral", "qwen3-moe"]
TOKENS = torch.arange(12)[None] + 3


@pytest.mark.parametrize("kind", KINDS)
def test_dense_and_packed_give_the_stock_model(tmp_path: Path, kind: str) -> None:
    dense = pruned(tmp_path / "dense", kind)
    packed = convert(dense, tmp_path / "packed", "packed")
    with quiet():
        stock = AutoModelForCausalLM.from_pretrained(dense)
    models = [load(dense), load(packed)]
    for model in models:
        assert type(model) is type(stock)
        assert not model.training
        assert model.dtype == stock.dtype == torch.bfloat16
        with torch.inference_mode():
            assert torch.equal(model(TOKENS).logits, stock(TOKENS).logits)
        tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in (model, stock)]
        assert tied[0] == tied[1]
    with quiet():
        models[1].save_pretrained(tmp_path / "again")
    again, before = Checkpoint(tmp_path / "again"), Checkpoint(dense)
    assert again.names() == before.names()
    for name, tensor in before:
        assert torch.equal(tensor, again.read(name))


def test_weights_lie_in_ordinary_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", "llama")
    model = load(path)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text()
    before = (path / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (path / "model.safetensors").read_bytes() == before


def test_dtype_and_generation_config(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", "llama")
    (path / "generation_config.json").write_text('{"max_new_tokens": 7}')
    model = load(path, dtype=torch.float32)
    assert model.dtype == torch.float32
    assert model.generation_config.max_new_tokens == 7
    assert model.config._name_or_path == str(path)


def test_a_missing_weight_is_not_made_up(tmp_path: Path) -> None:
    file = saved(tmp_path / "m", "llama") / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 .* 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load(tmp_path / "m")


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"num_hidden_layers": 9}, {"num_attention_heads": "x"}])
def test_a_config_of_another_model(tmp_path: Path, change: dict[str, object]) -> None:
    config = saved(tmp_path / "m", "llama") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path / "m")


def test_a_dense_result_needs_no_lowdim(tmp_path: Path) -> None:
    """In a process that cannot import lowdim; a packed one must fail there, not load as noise."""
    dense = pruned(tmp_path / "dense")
    packed = convert(dense, tmp_path / "packed", "packed")
    shutil.rmtree(tmp_path / "dense-dense")
    code = (
        "import sys; sys.modules['lowdim'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM as M\n"
        "m, info = M.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info\n"
        "print(round(float(m(torch.arange(3, 15)[None]).logits.float().abs().sum()), 3))\n"
        "try: M.from_pretrained(sys.argv[2])\n"
        "except OSError as error: print('refused')\n"
    )
    command = [sys.executable, "-c", code, str(dense), str(packed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = round(float(load(dense)(TOKENS).logits.float().abs().sum()), 3)
    assert done.stdout.split() == [str(expected), "refused"]


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", "llama")
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_zoo_kinds_exist() -> None:
    assert set(KINDS) <= set(ZOO)
