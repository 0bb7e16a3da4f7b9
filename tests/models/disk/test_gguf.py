from __future__ import annotations

import json
from pathlib import Path

import gguf as library
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoTokenizer

from lowdim.core.errors import CheckpointError
from lowdim.core.files import file_sha256
from lowdim.models.disk import gguf
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.source import resolve
from lowdim.models.load import load

WIDTH, HIDDEN, HEADS, KV_HEADS, VOCAB = 64, 96, 4, 2, 96
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH // HEADS * KV_HEADS, WIDTH),
    "attn_v": (WIDTH // HEADS * KV_HEADS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}


def write_tiny(path: Path) -> Path:
    """Write a two-block Llama in Q8_0 with a byte-level tokenizer, as llama.cpp would."""
    writer = library.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCAB)
    letters = (chr(33 + i) for i in range(VOCAB - 5))
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab", "cd"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (VOCAB - 3))
    writer.add_token_merges(["a b", "c d"])  # older versions of Transformers take a list of one for text
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = generator.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, library.quants.quantize(values, Kind.Q8_0), raw_dtype=Kind.Q8_0)

    add("token_embd.weight", VOCAB, WIDTH)
    add("output_norm.weight", WIDTH)
    for block in range(2):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{block}.{norm}.weight", WIDTH)
        for name, shape in SHAPES.items():
            add(f"blk.{block}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rotated_back(weight: np.ndarray, heads: int) -> np.ndarray:
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def test_float32_is_exact_and_rotary_rows_are_in_hugging_face_order(tiny: Path) -> None:
    path, digest = gguf.convert_gguf(tiny, "float32")
    assert digest == file_sha256(tiny)
    raw = {t.name: library.quants.dequantize(t.data, t.tensor_type) for t in library.GGUFReader(tiny).tensors}
    checkpoint = Checkpoint(path)
    names = {
        "self_attn.q_proj": rotated_back(raw["blk.1.attn_q.weight"], HEADS),
        "self_attn.k_proj": rotated_back(raw["blk.1.attn_k.weight"], KV_HEADS),
        "self_attn.v_proj": raw["blk.1.attn_v.weight"],
        "mlp.down_proj": raw["blk.1.ffn_down.weight"],
    }
    for name, expected in names.items():
        weight = checkpoint.read(f"model.layers.1.{name}.weight")
        assert weight.dtype == torch.float32
        assert np.array_equal(weight.numpy(), expected)


def test_auto_is_bfloat16_and_a_plain_model_comes_out(tiny: Path, cache: Path) -> None:
    source = resolve(str(tiny))
    assert source.dtype == "bfloat16"
    assert source.revision == f"sha256:{file_sha256(tiny)}"
    assert source.path == cache / "converted" / f"{file_sha256(tiny)}-bfloat16-2"
    exact = Checkpoint(resolve(str(tiny), dtype="float32").path)
    for name, weight in Checkpoint(source.path):
        assert torch.equal(weight, exact.read(name).to(torch.bfloat16))
    assert "quantization_config" not in json.loads((source.path / "config.json").read_text())
    model = load(source.path)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    assert tokenizer.decode(tokenizer("ab!")["input_ids"]) == "ab!"
    assert "m.content" in tokenizer.chat_template
    assert (source.path / "generation_config.json").exists()


def test_converted_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gguf.convert_gguf(tiny)[0]
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
    assert gguf.convert_gguf(tiny)[0] == first


def test_what_a_killed_conversion_left_is_thrown_away(tiny: Path, cache: Path) -> None:
    partial = cache / "converted" / f"{file_sha256(tiny)}-bfloat16-2.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    path = gguf.convert_gguf(tiny)[0]
    assert not partial.exists()
    assert len(Checkpoint(path).names()) == 2 + 2 * (len(SHAPES) + 2)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.99])
def test_cut_short(tiny: Path, tmp_path: Path, cache: Path, share: float) -> None:
    content = tiny.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"cannot convert .*cut\.gguf"):
        gguf.convert_gguf(tmp_path / "cut.gguf")
    assert [p for p in (cache / "converted").iterdir() if p.is_dir()] == []


def test_not_gguf_missing_or_split(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4 no")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        gguf.convert_gguf(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="no GGUF file at"):
        resolve(str(tmp_path / "gone.gguf"))
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(tiny.read_bytes())
    with pytest.raises(CheckpointError, match=r"one part of a split GGUF\. Join"):
        gguf.convert_gguf(part)


@pytest.mark.nightly
def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWDIM_CACHE")
    source = resolve("builtin:smollm2-135m")
    model, tokenizer = load(source.path), AutoTokenizer.from_pretrained(source.path)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])
