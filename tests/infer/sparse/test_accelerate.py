from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.results import holed
from tests.models.tiny_configs import randomise, tiny_config
from tests.models.zoo import VOCAB, ZOO
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TextIteratorStreamer

import lowdim
from lowdim.core.errors import LowdimError, NumericalError
from lowdim.infer.sparse.accelerate import LayerReport, accelerate
from lowdim.infer.sparse.experts import ExpertList
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.infer.sparse.ops import GradientError
from lowdim.infer.sparse.storage import KINDS, PACKABLE
from lowdim.models.load import quiet
from lowdim.models.structure.routers import ROUTER

TOKENS = torch.arange(12)[None] + 3
GENERATING = ["llama", "qwen2", "qwen3", "gpt2", "gemma3", "mixtral", "qwen3-moe"]


def pruned(kind: str, sparsity: float = 0.5) -> PreTrainedModel:
    """A tiny model with zeros in the matrices of its blocks."""
    with quiet():
        model = ZOO[kind]()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.dim() > 1 and re.search(r"\.\d\.", name):
                parameter.copy_(holed(parameter, sparsity, index))
    return model


def pair(kind: str, **options: Any) -> tuple[PreTrainedModel, PreTrainedModel, list[LayerReport]]:
    model = pruned(kind)
    sparse = copy.deepcopy(model)
    return model, sparse, lowdim.accelerate(sparse, **options)


def logits(model: PreTrainedModel, tokens: Tensor = TOKENS) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(tokens).logits.float()
    return found


@pytest.mark.parametrize("kind", sorted(ZOO))
def test_every_architecture_computes_the_same(kind: str) -> None:
    model, sparse, rows = pair(kind, dtype="fp32")
    assert torch.allclose(logits(model), logits(sparse), atol=2e-5)
    swapped = [row for row in rows if row.kernel != "torch"]
    assert len(swapped) == sum(isinstance(module, SparseLinear) for module in sparse.modules())
    assert not [m for m in sparse.modules() if type(m).__name__ in ("Linear", "Conv1D", "FalconLinear")]
    alone = [row.note for row in rows if row.kernel == "torch"]
    assert all("Embedding" in reason or reason == ROUTER for reason in alone)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.06), ("int4", 0.5), ("int3", 0.9)]
)
def test_kinds(dtype: str, limit: float) -> None:
    model, sparse, rows = pair("llama-untied-bias", dtype=dtype, min_sparsity=0.3)
    dense = logits(model)
    assert float((logits(sparse) - dense).abs().max() / dense.abs().max()) < limit
    by_name = {row.name: row for row in rows}
    layer = by_name["model.layers.1.mlp.up_proj"]
    assert (layer.shape, layer.sparsity) == ((64, 32), 0.5)
    form = "dense" if dtype == "int3" else "packed"
    assert layer.kernel == f"{form} {dtype}, {lowdim.runtime_info().level}"
    assert layer.note == ("stored dense: int3 weights skip no zeros" if dtype == "int3" else "")
    module = sparse.get_submodule(layer.name)
    assert isinstance(module, SparseLinear) and layer.nbytes == module.nbytes
    assert by_name["lm_head"].kernel.startswith(f"dense {'int8' if dtype in ('int4', 'int3') else dtype}")
    assert "min_sparsity=0.3" in by_name["lm_head"].note  # of int8
    assert by_name["model.embed_tokens"].nbytes == VOCAB * 32 * 4
    assert [row.name for row in rows] == [n for n, _ in sparse.named_modules() if n in by_name]


@pytest.mark.parametrize("dtype", sorted(PACKABLE))
def test_codes_are_packed_where_expanding_them_pays(level: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWDIM_FORM")

    def form(**options: Any) -> str:
        layer = nn.Linear(128, 64).eval()
        with torch.no_grad():
            layer.weight.copy_(holed(layer.weight, 0.9, 0))
        model = nn.Sequential(layer).eval()
        [row] = lowdim.accelerate(model, dtype=dtype, **options)
        assert row.kernel.startswith("dense") == (row.note != "")
        return row.kernel.split()[0]

    codes = {"int8": "8:16", "int4": "dense"} if level == "avx2" else {}
    assert form() == codes.get(dtype, "packed")
    assert form(min_sparsity=0.3) == ("8:16" if level == "avx2" and dtype == "int8" else "packed")


def test_min_sparsity() -> None:
    assert all("dense" in row.kernel for row in pair("llama", min_sparsity=0.6)[2] if row.kernel != "torch")
    packed = [row for row in pair("llama", min_sparsity=0)[2] if "packed" in row.kernel]
    assert len(packed) == 22


@pytest.mark.parametrize(
    ("stored", "dtype", "head", "shared"),
    [
        (torch.bfloat16, "bf16", "dense bf16", True),
        (torch.float32, "bf16", "dense fp32", True),
        (torch.bfloat16, "fp32", "dense bf16", True),
        (torch.bfloat16, "int8", "dense int8", False),
        (torch.bfloat16, "int4", "dense int8", False),
        (torch.bfloat16, "int3", "dense int8", False),
        (torch.float16, "bf16", "dense bf16", False),
    ],
)
def test_a_tied_head(stored: torch.dtype, dtype: str, head: str, shared: bool) -> None:
    model = pruned("llama").to(stored)
    before = model.get_input_embeddings().weight
    row = accelerate(model, dtype)[-1]
    assert (row.name, row.kernel.partition(",")[0]) == ("lm_head", head)
    embedding, top = model.get_input_embeddings().weight, model.get_output_embeddings()
    assert embedding is before
    assert isinstance(top, SparseLinear)
    assert (top.values.data_ptr() == embedding.data_ptr()) == shared == (row.nbytes == 0)


def test_the_head_can_be_left_alone() -> None:
    _, sparse, rows = pair("gpt2", head=False)
    assert type(sparse.get_output_embeddings()) is nn.Linear
    assert rows[-1].note == "the head, with head=False"


def test_experts_become_layers() -> None:
    _, sparse, rows = pair("mixtral", dtype="int8")
    assert sum(isinstance(module, ExpertList) for module in sparse.modules()) == 3
    names = [row.name for row in rows if ".experts." in row.name]
    assert len(names) == 3 * 4 * 2
    assert all(isinstance(sparse.get_submodule(name), SparseLinear) for name in names)
    assert any("gate" in row.name and row.note == ROUTER for row in rows)


GENERATE: dict[str, Callable[[PreTrainedModel], Tensor]] = {
    "greedy": lambda m: m.generate(TOKENS, max_new_tokens=12, do_sample=False),
    "sampling": lambda m: m.generate(TOKENS, max_new_tokens=12, do_sample=True, top_k=20, temperature=0.9),
    "beams": lambda m: m.generate(TOKENS, max_new_tokens=8, num_beams=3, do_sample=False),
    "several": lambda m: m.generate(TOKENS, max_new_tokens=6, do_sample=True, num_return_sequences=3),
    "static cache": lambda m: m.generate(TOKENS, max_new_tokens=6, do_sample=False, cache_implementation="static"),
    "padded batch": lambda m: m.generate(
        torch.tensor([[0, 0, 0, 5, 6], [1, 2, 3, 4, 5]]),
        attention_mask=torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]),
        max_new_tokens=6,
        do_sample=False,
    ),
}


@pytest.mark.parametrize("kind", GENERATING)
@pytest.mark.parametrize("way", GENERATE)
def test_generate(kind: str, way: str) -> None:
    model, sparse, _ = pair(kind, dtype="fp32")
    found = []
    for one in (model, sparse):
        one.generation_config.pad_token_id = 0
        one.generation_config.eos_token_id = None
        torch.manual_seed(3)
        found.append(GENERATE[way](one))
    assert torch.equal(*found)


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<pad>", "<user>", "<bot>", *map(str, range(VOCAB - 3))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>", padding_side="left")
    turns = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    fast.chat_template = turns + "{% if add_generation_prompt %}<bot>{% endif %}"
    return fast


def test_chat_streaming() -> None:
    """As a user would write it: chat template, a batch with padding, text while it is being made."""
    words = tokenizer()
    model, sparse, _ = pair("llama", dtype="fp32")
    chat = [{"role": "user", "content": "1 2 3"}]
    inputs = words.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs.pop("token_type_ids", None)
    said = []
    for one in (model, sparse):
        streamer = TextIteratorStreamer(words, skip_prompt=True)
        options = {**inputs, "max_new_tokens": 9, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=one.generate, kwargs=options)
        thread.start()
        said.append(list(streamer))
        thread.join()
    assert said[0] == said[1]
    assert "".join(said[0])


def test_compiled() -> None:
    _, sparse, _ = pair("llama", dtype="int8")
    sparse.config.use_cache = False
    wanted = logits(sparse)
    compiled: Any = torch.compile(sparse, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.allclose(compiled(TOKENS).logits, wanted, atol=1e-5)
    torch._dynamo.reset()


def test_gradients() -> None:
    _, sparse, _ = pair("llama", dtype="fp32")
    assert not any(parameter.requires_grad for parameter in sparse.parameters())
    assert not sparse(TOKENS).logits.requires_grad
    embedded = sparse.get_input_embeddings()(TOKENS).requires_grad_()
    with pytest.raises(GradientError, match="keep the dense model"):
        sparse(inputs_embeds=embedded)


def test_casts_of_a_whole_model() -> None:
    _, sparse, _ = pair("llama", dtype="int8")
    again = copy.deepcopy(sparse).to(torch.bfloat16)
    assert again(TOKENS).logits.dtype == torch.bfloat16
    assert torch.allclose(logits(again), logits(sparse), atol=0.15)


def test_the_state_of_a_model(tmp_path: Path) -> None:
    _, sparse, _ = pair("llama", dtype="int4")
    other = pruned("llama", sparsity=0.7)
    accelerate(other, "int4")
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(logits(other), logits(sparse))
    with pytest.raises(LowdimError, match="cannot be saved as a stock one"):
        sparse.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_refused_changes_nothing() -> None:
    model = pruned("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(LowdimError, match="Did you mean 'int8'"):
        accelerate(model, "int08")
    with pytest.raises(LowdimError, match="group must be 64 or 128"):
        accelerate(model, "int8", group=100)
    with pytest.raises(LowdimError, match=r"min_sparsity must lie in \[0, 1\], got 30"):
        accelerate(model, min_sparsity=30)
    with pytest.raises(LowdimError, match=r"takes a model, got str.*lowdim\.load"):
        accelerate("path")  # type: ignore[arg-type]
    with pytest.raises(LowdimError, match=r"model\.eval\(\)"):
        accelerate(model.train())
    model.eval()
    with torch.no_grad():
        model.get_submodule("model.layers.2.mlp.down_proj").weight[3, 3] = torch.nan
    with pytest.raises(NumericalError, match=r"'model\.layers\.2\.mlp\.down_proj' holds NaN"):
        accelerate(model, "int8")
    assert model.state_dict().keys() == before.keys()
    with pytest.raises(LowdimError, match="on meta"):
        accelerate(pruned("llama").to("meta"))
    with pytest.raises(LowdimError, match=r"holds no Linear.*SparseLinear\.from_linear"):
        accelerate(nn.Linear(3, 4).eval())


def test_twice() -> None:
    model = pruned("llama")
    accelerate(model)
    with pytest.raises(LowdimError, match=r"sparse layers already.*lowdim\.load"):
        accelerate(model, "int8")


def test_any_module() -> None:
    shared = nn.Linear(16, 16)
    model = nn.ModuleDict(
        {"a": nn.Sequential(shared, nn.ReLU(), shared), "b": nn.Linear(16, 2), "c": nn.Conv1d(2, 2, 1)}
    )
    model["b"].register_forward_hook(lambda *_: None)
    rows = {row.name: row for row in accelerate(model.eval())}
    assert model["a"][0] is model["a"][2]
    assert isinstance(model["a"][0], SparseLinear)
    assert rows["b"].note == "its forward hooks would be lost"
    assert rows["c"].note == "Conv1d is neither a plain Linear nor a Conv1D"
    assert (rows["b"].kernel, rows["c"].kernel) == ("torch", "torch")


def test_every_kind_is_named_alike() -> None:
    for kind in KINDS:
        form = "packed" if kind in PACKABLE else "dense"
        assert accelerate(pruned("llama"), kind, min_sparsity=0)[1].kernel.startswith(f"{form} {kind}")


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "jamba", "zamba"])
def test_a_model_that_multiplies_by_a_weight_itself_gets_it_in_its_own_type(kind: str, held: torch.dtype) -> None:
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
        randomise(model)
    model.tie_weights()
    model.eval().to(held)
    with torch.inference_mode():
        expected = model(TOKENS, use_cache=False).logits.float()
        for dtype in KINDS:
            swapped = copy.deepcopy(model)
            accelerate(swapped, dtype)
            found = swapped(TOKENS, use_cache=False).logits.float()
            assert (found - expected).norm() / expected.norm() < {"int4": 0.6, "int3": 1.0}.get(dtype, 0.15), dtype
