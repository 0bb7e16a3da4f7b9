from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from tests.models.results import saved

from lowdim.core.errors import CheckpointError
from lowdim.data import assets
from lowdim.models.disk import gguf
from lowdim.models.disk.source import Source, check_config, resolve

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
}


def directory(path: Path, config: object = None, dtype: torch.dtype = torch.float16) -> Path:
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    save_file({"w": torch.ones(8, dtype=dtype), "n": torch.ones(2)}, path / "model.safetensors")
    return path


class TestDirectories:
    def test_a_saved_model(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "m", "llama")
        assert resolve(str(path)) == Source(str(path), path, None, "bfloat16")
        assert resolve(str(path), dtype="float32").dtype == "float32"

    @pytest.mark.parametrize(
        ("extra", "dtype"),
        [({}, "float16"), ({"dtype": "float32"}, "float16"), ({"torch_dtype": "bfloat16"}, "float16")],
    )
    def test_dtype_is_that_of_most_weights_whatever_the_config_says(
        self, tmp_path: Path, extra: dict[str, str], dtype: str
    ) -> None:
        assert resolve(str(directory(tmp_path / "m", LLAMA | extra))).dtype == dtype

    def test_float64_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="holds float64 weights"):
            resolve(str(directory(tmp_path / "m", LLAMA, torch.float64)))

    @pytest.mark.parametrize(
        ("name", "dtype", "kind"),
        [
            ("l.0.up.weight", torch.float8_e4m3fn, "float8_e4m3fn"),
            ("l.0.experts.gate_up_proj", torch.float8_e5m2, "float8_e5m2"),
            ("l.0.up.weight", torch.int8, "int8"),
            ("l.0.up.weight", torch.uint8, "uint8"),
        ],
    )
    def test_codes_among_larger_embeddings_are_refused(
        self, name: str, dtype: torch.dtype, kind: str, tmp_path: Path
    ) -> None:
        path = directory(tmp_path / "m", LLAMA)
        buffers = {"l.0.attn.bias": torch.ones(2, 2, dtype=torch.uint8), "ids": torch.ones(1, 9, dtype=torch.int64)}
        large = {"embed.weight": torch.ones(9, 9, dtype=torch.bfloat16)}
        save_file(large | buffers, path / "model.safetensors")
        assert resolve(str(path)).dtype == "bfloat16"
        save_file(large | {name: torch.ones(2, 2).to(dtype)}, path / "model.safetensors")
        with pytest.raises(CheckpointError, match=rf"'{name}' in .* is {kind}: the weights are already quantised"):
            resolve(str(path))

    @pytest.mark.parametrize("name", ["m.GGUF", "sha256-0a1b"])
    def test_a_gguf_file_is_told_by_its_first_letters(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"GGUF" + bytes(64))
        with pytest.raises(CheckpointError, match="It is damaged"):
            resolve(str(tmp_path / name))

    def test_home_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        directory(tmp_path / "m", LLAMA)
        assert resolve("~/m").path == tmp_path / "m"

    def test_the_config_is_checked_before_the_weights(self, tmp_path: Path) -> None:
        path = directory(tmp_path / "m", {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})
        (path / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match=r"already quantised \(gptq\)"):
            resolve(str(path))

    def test_no_or_broken_config(self, tmp_path: Path) -> None:
        path = directory(tmp_path / "m")
        with pytest.raises(CheckpointError, match=r"config\.json is missing"):
            resolve(str(path))
        (path / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config\.json .* not valid JSON"):
            resolve(str(path))

    def test_a_file_of_a_model(self, tmp_path: Path) -> None:
        path = directory(tmp_path / "m", LLAMA)
        with pytest.raises(CheckpointError, match="Give the directory that holds it"):
            resolve(str(path / "model.safetensors"))
        with pytest.raises(CheckpointError, match="neither a directory"):
            resolve(str(path / "config.json"))

    def test_arguments(self, tmp_path: Path) -> None:
        path = str(directory(tmp_path / "m", LLAMA))
        with pytest.raises(CheckpointError, match=r"got 'bfloat'\. Did you mean 'bfloat16'"):
            resolve(path, dtype="bfloat")
        with pytest.raises(CheckpointError, match=r"revision applies to hub ids only.*revision='main'"):
            resolve(path, revision="main")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model_type": ({"architectures": ["LlamaForCausalLM"]}, "no 'model_type'"),
    "odd model_type": ({"model_type": 3}, "no 'model_type'"),
    "unknown": ({"model_type": "lama"}, "does not know model_type 'lama' .* Did you mean 'llama'"),
    "quite unknown": ({"model_type": "zzzzzzzz"}, r"'zzzzzzzz' of 'x'\. Try a newer one"),
    "own code": ({"model_type": "zzz", "auto_map": {"AutoModel": "m.M"}}, "brings its own Python code"),
    "quantised": (
        LLAMA | {"quantization_config": {"bits": 4}},
        r"already quantised \(unknown\).* bfloat16 or float16 original",
    ),
    "quantised inside": (
        {"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "fp8"}}},
        r"already quantised \(fp8\)",
    ),
    "encoder": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a causal language model"),
    "encoder, nothing said": ({"model_type": "bert"}, "not a causal language model"),
    "encoder-decoder": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        "an encoder-decoder",
    ),
    "encoder-decoder with a causal class": ({"model_type": "bart"}, "an encoder-decoder"),
    "no head": (LLAMA | {"architectures": ["LlamaModel"]}, r"not a causal language model \(LlamaModel\)"),
    "a classifier": (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "not a causal"),
    "vision": ({"model_type": "vit", "architectures": ["ViTModel"]}, "not a causal language model"),
    "wrong values": (LLAMA | {"num_attention_heads": "four"}, "not valid for model_type 'llama'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_are_refused(case: str) -> None:
    config, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=words):
        check_config(config, "x")


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        {"model_type": "llama"},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "gpt_neox"},
        {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]},
        {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
        {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
        LLAMA | {"quantization_config": None},
        LLAMA | {"quantization_config": {}},
    ],
)
def test_configs_that_pass(config: dict[str, Any]) -> None:
    check_config(config, "x")


def test_own_code_is_accepted_only_when_asked() -> None:
    check_config({"model_type": "zzz", "auto_map": {"AutoModel": "m.M"}}, "x", trust_remote_code=True)


class TestBuiltin:
    def test_unknown_is_suggested(self) -> None:
        with pytest.raises(CheckpointError, match=r"unknown built-in model 'smollm'\. Did you mean 'smollm2-135m'"):
            resolve("builtin:smollm")

    def test_goes_through_the_asset_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = directory(tmp_path / "m", LLAMA)
        monkeypatch.setattr(assets, "path", lambda name: tmp_path / f"{name}.gguf")
        monkeypatch.setattr(gguf, "convert_gguf", lambda file, dtype: (path, f"{file.name} {dtype}"))
        source = resolve("builtin:smollm2-135m", dtype="float32")
        assert source == Source("builtin:smollm2-135m", path, "sha256:smollm2-135m.gguf float32", "float32")


class TestHub:
    @pytest.fixture
    def calls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """Stand in for the hub: one repository, at one commit."""
        seen: list[dict[str, Any]] = []
        directory(tmp_path / "c0ffee", LLAMA)

        def download(spec: str, **options: Any) -> str:
            seen.append({"spec": spec, **options})
            return str(tmp_path / "c0ffee")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        return seen

    def test_config_first_then_weights_of_that_commit(self, calls: list[dict[str, Any]], tmp_path: Path) -> None:
        assert resolve("org/name", revision="main") == Source("org/name", tmp_path / "c0ffee", "c0ffee", "float16")
        assert [call["revision"] for call in calls] == ["main", "c0ffee"]
        assert calls[0]["allow_patterns"] == ["config.json", "adapter_config.json"]
        assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in calls[1]["allow_patterns"])
        assert [call["local_files_only"] for call in calls] == [False, False]

    def test_refused_before_the_weights_are_fetched(self, calls: list[dict[str, Any]], tmp_path: Path) -> None:
        (tmp_path / "c0ffee" / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(CheckpointError, match="not a causal"):
            resolve("org/name")
        assert len(calls) == 1

    def test_offline(self, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        resolve("org/name", offline=True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        resolve("gpt2")
        resolve("gpt2", offline=False)
        assert [call["local_files_only"] for call in calls] == [True] * 4 + [False] * 2

    def test_code_is_fetched_only_when_trusted(self, calls: list[dict[str, Any]]) -> None:
        resolve("org/name", trust_remote_code=True)
        assert "*.py" in calls[1]["allow_patterns"]

    @pytest.mark.parametrize("spec", ["../x/y", "/gone", "a/b/c", "./m", "org/..", "o rg/x", ""])
    def test_what_cannot_be_an_id_is_never_asked_for(self, calls: list[dict[str, Any]], spec: str) -> None:
        with pytest.raises(CheckpointError, match=r"no such file or directory|model is empty"):
            resolve(spec)
        assert calls == []

    def test_not_reachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise errors.LocalEntryNotFoundError("no")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match="not in the local cache, and the hub cannot be reached"):
            resolve("org/name")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("GatedRepoError", "accept its terms"),
            ("RepositoryNotFoundError", "neither a path here nor a model on the hub"),
            ("RevisionNotFoundError", "has no revision 'v9'"),
        ],
    )
    def test_answers_of_the_hub(self, monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
        error = getattr(errors, kind)

        def fail(*_: object, **__: object) -> None:
            raise error.__new__(error)  # its constructor wants an HTTP response

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match=words):
            resolve("org/name", revision="v9")
