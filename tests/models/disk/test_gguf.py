from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import gguf as library
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoTokenizer

from lowdim.core.errors import CheckpointError
from lowdim.core.files import file_sha256
from lowdim.data import assets
from lowdim.data.errors import AssetError
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


def write_tiny(path: Path, pre: str | None = "smollm", merges: tuple[str, ...] = ("a b", "c d")) -> Path:
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
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (VOCAB - 3))
    writer.add_token_merges(merges)  # older versions of Transformers take a list of one for text
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
    assert source.path == cache / "converted" / f"{file_sha256(tiny)}-bfloat16-3"
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
    partial = cache / "converted" / f"{file_sha256(tiny)}-bfloat16-3.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    path = gguf.convert_gguf(tiny)[0]
    assert not partial.exists()
    assert len(Checkpoint(path).names()) == 2 + 2 * (len(SHAPES) + 2)


def test_a_cache_that_cannot_be_written_is_told(
    tiny: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage(100, 99, 1))
        with pytest.raises(CheckpointError, match=r"tiny\.gguf.*has 1 bytes free, and .* needed\. .*LOWDIM_CACHE"):
            gguf.convert_gguf(tiny)
    first = gguf.convert_gguf(tiny)
    with monkeypatch.context() as patch:  # what is there is read without a lock
        patch.setattr(assets, "locked", lambda _: pytest.fail("written to"))
        assert gguf.convert_gguf(tiny) == first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWDIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match=r"cannot write .*file.* Set LOWDIM_CACHE"):
        gguf.convert_gguf(tiny)


def test_texts_are_cut_as_the_file_says(tmp_path: Path) -> None:
    """SmolLM's digits stand apart, also behind two blanks; GPT-2's take one of the blanks."""
    pieces = {}
    for pre in ("smollm", "starcoder", "gpt-2", "olmo", "qwen2"):
        path = gguf.convert_gguf(write_tiny(tmp_path / f"{pre}.gguf", pre))[0]
        cut = AutoTokenizer.from_pretrained(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str("x  12")
        pieces[pre] = [piece for piece, _ in cut]
    assert pieces["smollm"] == pieces["starcoder"] == ["x", "ĠĠ", "1", "2"]
    assert pieces["gpt-2"] == pieces["olmo"] == ["x", "Ġ", "Ġ12"]
    assert pieces["qwen2"] == ["x", "Ġ", "Ġ", "1", "2"]


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)])
def test_a_token_that_no_merges_lead_to_is_found_where_the_original_finds_it(
    pre: str, whole: bool, tmp_path: Path
) -> None:
    path = gguf.convert_gguf(write_tiny(tmp_path / "model.gguf", pre, merges=("c d", "c d")))[0]
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.tokenize("ab") == (["ab"] if whole else ["a", "b"])
    assert tokenizer.tokenize("abcd") == ["a", "b", "cd"]


@pytest.mark.parametrize("pre", ["chatglm-bpe", "deepseek-llm", "kimi-k2", "one-of-next-year"])
def test_a_way_to_cut_texts_that_nobody_knows_is_refused(pre: str, tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "model.gguf", pre)
    with pytest.raises(CheckpointError, match=f"tokenizer.ggml.pre = '{pre}'.*other tokens. Use the safetensors"):
        resolve(str(file))


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_file_that_does_not_say_how_texts_are_cut_is_noted(pre: str | None, tmp_path: Path) -> None:
    assert resolve(str(write_tiny(tmp_path / "model.gguf", pre))).notes == ("tokenizer.ggml.pre",)


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
