"""A checkpoint walked in another dtype than it is stored in computes what Transformers does that loads it so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.every_causal_lm import build, tokens
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowdim.data.batch import Batch
from lowdim.infer.sparse.load import load as sparse_load
from lowdim.models.load import quiet
from lowdim.models.walk.opened import open_model

KINDS = ["openai-gpt", "gemma2", "gpt_neo", "codegen", "bloom", "deepseek_v3", "xglm", "minimax"]
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def stock(path: Path, dtype: torch.dtype, ids: Tensor) -> Tensor:
    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, experts_implementation="eager")
        out: Tensor = model.eval()(input_ids=ids).logits
    return out


def walked(path: Path, dtype: torch.dtype, ids: Tensor) -> Tensor:
    stream = open_model(path, compute=NAMES[dtype], device="cpu").stream
    (out,) = stream.forward([Batch(ids)])
    return out


@pytest.mark.parametrize("stored", NAMES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_models_own_constants_have_the_dtype_of_its_forwards(kind: str, stored: torch.dtype, tmp_path: Path) -> None:
    with quiet():
        build(kind, tmp_path / "made").to(stored).save_pretrained(tmp_path / "in")
    ids = tokens()[0][None]
    for dtype in NAMES:
        wanted, found = (run(tmp_path / "in", dtype, ids).float() for run in (stock, walked))
        assert bool(found.isfinite().all())
        error = float((found - wanted).abs().max() / wanted.std())
        assert error < (1e-4 if dtype == torch.float32 else 0.2), (dtype, error)


@pytest.mark.parametrize("compute", NAMES, ids=str)
@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe", "ernie4_5_moe"])
def test_what_transformers_holds_in_fp32_is_not_rounded(kind: str, compute: torch.dtype, tmp_path: Path) -> None:
    """Of a checkpoint in bf16 whose routers are fp32: what they choose depends on the last bits."""
    with quiet():
        build(kind, tmp_path / "in").to(torch.bfloat16).save_pretrained(tmp_path / "in")
    file, seed = tmp_path / "in" / "model.safetensors", torch.Generator().manual_seed(1)
    words = ("e_score_correction_bias", "mlp.gate.weight", "moe_statics")
    tensors = load_file(file)
    exact = {name: torch.randn(each.shape, generator=seed) for name, each in tensors.items() if name.endswith(words)}
    save_file(tensors | exact, file, metadata={"format": "pt"})
    options = {"dtype": compute, "experts_implementation": "eager"}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "in", **options).state_dict()
    stream = open_model(tmp_path / "in", compute=NAMES[compute], device="cpu").stream
    for index in range(len(stream)):
        with stream.block(index) as block:
            for name, tensor in block.module.state_dict().items():
                if name.endswith(words):
                    assert torch.equal(tensor, plain[f"{block.name}.{name}"])
    assert exact
    loaded = sparse_load(tmp_path / "in", "fp32" if compute == torch.float32 else "bf16").state_dict()
    assert all(torch.equal(loaded[name], plain[name]) for name in loaded.keys() & plain.keys() if name.endswith(words))
