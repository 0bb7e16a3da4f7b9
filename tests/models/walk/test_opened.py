"""What is opened, and what is refused before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as t
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from tests.prune import tiny
from torch import nn

from lowdim.core.errors import CheckpointError, LowdimError, NumericalError
from lowdim.data.batch import Batch
from lowdim.evaluate.inspect import inspect
from lowdim.infer.sparse.load import load as load_for_inference
from lowdim.models.disk import manifest
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.disk.convert import convert
from lowdim.models.disk.source import resolve
from lowdim.models.load import load, quiet
from lowdim.models.walk.opened import open_model
from lowdim.prune.api import plan, prune

HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "num_hidden_layers": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1},
    "falcon_h1": {},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
}
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def never() -> Iterator[None]:
    """Calibration data that nobody may look at."""
    pytest.fail("calibration data was read")
    yield


class TestNumbersThatJsonLacks:
    @pytest.mark.parametrize("bare", [False, True])
    @pytest.mark.parametrize("kind", HYBRIDS)
    def test_a_config_with_an_infinity_opens(self, kind: str, bare: bool, tmp_path: Path) -> None:
        known = t.CONFIG_MAPPING[kind]
        sizes = {key: value for key, value in SIZES.items() if key in known.__dataclass_fields__}
        known(**sizes | HYBRIDS[kind]).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        limits = [name for name in config if "limit" in name] or ["time_step_limit"]
        spelled = [0.0, float("inf")] if bare else [0.0, {"__float__": "Infinity"}]
        (tmp_path / "config.json").write_text(json.dumps(config | dict.fromkeys(limits, spelled)))
        save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
        source = resolve(str(tmp_path))
        assert source.path == tmp_path

    @pytest.mark.parametrize("bare", [False, True])
    def test_it_is_written_as_it_was_given(self, bare: bool, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in")
        config = json.loads((source / "config.json").read_text())
        config["own"] = float("-inf") if bare else {"__float__": "-Infinity"}
        (source / "config.json").write_text(json.dumps(config))
        prune(str(source), tiny.recipe(method="magnitude"), out=tmp_path / "out")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["own"] == config["own"]


class TestWeights:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize(
        "name", ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.norm.weight"]
    )
    def test_a_damaged_one_is_named_before_calibration(self, name: str, value: float, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in", "llama", torch.bfloat16)
        held = load_file(source / "model.safetensors")
        held[name].view(-1)[3] = value
        save_file(held, source / "model.safetensors", {"format": "pt"})
        recipe = tiny.recipe(method="wanda")
        with pytest.raises(NumericalError, match=rf"tensor '{name}' holds NaN or Inf"):
            prune(str(source), recipe, calibration=never(), out=tmp_path / "out")
        with pytest.raises(NumericalError, match=rf"tensor '{name}' holds NaN or Inf"):
            prune(load(source), recipe, calibration=never())
        with pytest.raises(NumericalError, match=rf"tensor '{name}' holds NaN or Inf"):
            inspect(source, calibration=never())
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_one_too_large_for_the_dtype_that_is_asked_for(self, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in", "llama", torch.bfloat16)
        held = load_file(source / "model.safetensors")
        held["model.embed_tokens.weight"][0, 0] = -1e6
        save_file(held, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(NumericalError, match=r"'model\.embed_tokens\.weight' holds -\d.*, more than float16 can"):
            prune(str(source), tiny.recipe(dtype="float16"), calibration=never(), out=tmp_path / "out")

    def test_what_is_no_weight_may_hold_anything(self, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in")
        held = load_file(source / "model.safetensors") | {"model.layers.0.mask": torch.full((2,), float("-inf"))}
        save_file(held, source / "model.safetensors", {"format": "pt"})
        prune(str(source), tiny.recipe(method="wanda"), calibration=tiny.tokens(), out=tmp_path / "out")

    @pytest.mark.parametrize("method", ["wanda", "magnitude"])
    @pytest.mark.parametrize(
        ("name", "count"),
        [
            ("model.embed_tokens.weight", 2),
            ("model.layers.1.mlp.up_proj.weight", 1),
            ("model.layers.2.input_layernorm.weight", 1),
            ("model.norm.weight", 1),
        ],
    )
    def test_one_that_is_not_on_disk_is_named(self, name: str, count: int, method: str, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in")
        held = load_file(source / "model.safetensors")
        del held[name]
        save_file(held, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"lacks {count} of the model's weights, first '{name}'"):
            prune(str(source), tiny.recipe(method=method), calibration=never(), out=tmp_path / "out")

    def test_names_of_a_wrapped_model_and_blocks_that_are_not_there(self, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in")
        held = load_file(source / "model.safetensors")
        save_file({f"_orig_mod.{n}": v for n, v in held.items()}, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match="lacks 30 of"):
            open_model(source)
        save_file(held, source / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": 4}
        (source / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"lacks 9 of .* 'model\.layers\.3"):
            open_model(source)

    @pytest.mark.parametrize("method", ["wanda", "magnitude"])
    def test_those_of_a_model_that_is_offloaded_are_not_in_memory(self, method: str) -> None:
        model = cpu_offload(tiny.model(), execution_device=torch.device("cpu"))
        with pytest.raises(LowdimError, match=r"no numbers: .* Load the model without device_map"):
            prune(model, tiny.recipe(method=method), calibration=never())

    def test_nor_is_anything_of_a_model_that_was_made_empty(self) -> None:
        with torch.device("meta"):
            model = t.LlamaForCausalLM(t.LlamaConfig(**SIZES))
        with pytest.raises(LowdimError, match="inv_freq of the model in memory has no numbers"):
            plan(model, tiny.recipe())


class TestTiedWeights:
    """A config that ties head and embedding, and a checkpoint that has either, or both."""

    def changed(self, held: dict[str, torch.Tensor], case: str) -> None:
        embedding = held["model.embed_tokens.weight"]
        if case == "both, different":
            held["lm_head.weight"] = embedding.flip(0) + 0.1
        elif case == "both, equal":
            held["lm_head.weight"] = embedding.clone()
        else:
            held["lm_head.weight"] = held.pop("model.embed_tokens.weight")

    @pytest.mark.parametrize("case", ["both, different", "both, equal", "the head alone"])
    def test_it_is_the_model_that_transformers_loads(self, case: str, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in")
        held = load_file(source / "model.safetensors")
        self.changed(held, case)
        save_file(held, source / "model.safetensors", {"format": "pt"})
        with quiet():
            stock = t.AutoModelForCausalLM.from_pretrained(source)
        stream = open_model(source, compute="float32").stream
        assert stream.numel() == sum(parameter.numel() for parameter in stock.parameters())
        for _ in range(2):
            [found] = stream.forward([Batch(tiny.tokens())])
            assert torch.allclose(found, tiny.logits(stock), atol=1e-5)


class Tuned(nn.Linear):
    """What PEFT puts in the place of a layer."""

    adapter_layer_names = ("lora_A",)

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.base_layer = base


class Wrapper(nn.Module):
    """What PEFT puts around a model."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_model, self.peft_config = base, {"default": SimpleNamespace(peft_type="PREFIX_TUNING")}


def tuned_inside() -> Any:
    model = tiny.model()
    model.model.layers[1].mlp.up_proj = Tuned(model.model.layers[1].mlp.up_proj)
    return model


class TestAdapters:
    @pytest.mark.parametrize("make", [tuned_inside, lambda: Wrapper(tiny.model())])
    @pytest.mark.parametrize(
        "use",
        [
            lambda model, out: prune(model, tiny.recipe(), calibration=never()),
            lambda model, out: prune(model, tiny.recipe(), calibration=never(), out=out),
            lambda model, out: plan(model, tiny.recipe()),
            lambda model, out: inspect(model),
        ],
    )
    def test_models_with_one(self, make: Callable[[], Any], use: Callable[[Any, Path], Any], tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"holds a PEFT adapter .* Merge it first: .*merge_and_unload\(\)"):
            use(make(), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("beside", [False, True])
    @pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
    def test_directories_with_one(self, file: str, beside: bool, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in") if beside else tmp_path
        (source / file).write_text("{}")
        words = r"holds a PEFT adapter .* Merge it first: .*merge_and_unload\(\)"
        for use in (resolve, Checkpoint, load_for_inference, lambda path: plan(path, tiny.recipe())):
            with pytest.raises(CheckpointError, match=words):
                use(str(source))

    @pytest.mark.filterwarnings("ignore")  # of PEFT's own
    def test_peft_itself(self, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"])
        wrapped, native = peft.get_peft_model(tiny.model(), config), tiny.model()
        native.add_adapter(config)
        wrapped.save_pretrained(tmp_path)
        for model in (wrapped, native, str(tmp_path)):
            with pytest.raises(CheckpointError, match="Merge it first"):
                plan(model, tiny.recipe())
        assert plan(wrapped.merge_and_unload(), tiny.recipe()).layers


class TestOtherObjects:
    @pytest.mark.parametrize("name", ["_orig_mod", "module"])
    def test_wrapped_models_say_what_is_inside(self, name: str) -> None:
        wrapper = nn.Module()
        setattr(wrapper, name, tiny.model())
        with pytest.raises(LowdimError, match=rf"got Module\. Give the model that it wraps, its \.{name}\."):
            prune(wrapper, tiny.recipe())  # type: ignore[arg-type]

    @pytest.mark.parametrize("model", [None, 3, nn.Linear(2, 2), ["a"]])
    def test_what_is_no_model(self, model: Any) -> None:
        with pytest.raises(LowdimError, match=f"path or hub id of one; got {type(model).__name__}"):
            open_model(model)


class TestNewerThanThis:
    @pytest.mark.parametrize("storage", ["dense", "packed"])
    def test_a_record(self, storage: str, tmp_path: Path) -> None:
        recipe = tiny.recipe(method="magnitude", storage=storage)
        out = prune(str(tiny.save(tmp_path / "in")), recipe, out=tmp_path / "out").out
        record = json.loads((out / manifest.FILE).read_text()) | {"schema": 2, "novelty": 1}
        (out / manifest.FILE).write_text(json.dumps(record))
        other = {"dense": "packed", "packed": "dense"}[storage]
        for use in (
            load,
            load_for_inference,
            resolve,
            lambda path: plan(path, recipe),
            lambda path: convert(path, tmp_path / "c", other),
        ):
            with pytest.raises(CheckpointError, match=r"lowdim\.json has schema 2; .* Upgrade lowdim"):
                use(str(out))

    @pytest.mark.parametrize("known", [True, False])
    def test_a_packed_file(self, known: bool, tmp_path: Path) -> None:
        out = prune(
            str(tiny.save(tmp_path / "in")), tiny.recipe(method="magnitude", storage="packed"), out=tmp_path / "o"
        ).out
        file = next(out.glob("packed*.safetensors"))
        metadata = {"format": "pt", "lowdim.format": "5"} | ({"lowdim.packed": "{}"} if known else {})
        save_file(load_file(file), file, metadata)
        with pytest.raises(CheckpointError, match=r"is packed in format '5'; .* Upgrade lowdim"):
            load(out)


class TestWithoutTokenizer:
    def test_tokens_need_none(self, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in")
        assert prune(str(source), tiny.recipe(), calibration=tiny.tokens(), out=tmp_path / "out").sparsity > 0.6
        assert open_model(source).tokenizer() is None

    def test_text_needs_one(self, tmp_path: Path) -> None:
        with pytest.raises(LowdimError, match="needs the model's tokenizer"):
            prune(str(tiny.save(tmp_path / "in")), tiny.recipe(), calibration=["a text"], out=tmp_path / "out")

    def test_one_that_cannot_be_read_is_said(self, tmp_path: Path) -> None:
        source = tiny.save(tmp_path / "in")
        (source / "tokenizer.json").write_text("{")
        with pytest.warns(UserWarning, match="tokenizer in .* cannot be read"):
            assert prune(str(source), tiny.recipe(), calibration=tiny.tokens(), out=tmp_path / "out").sparsity > 0.6


class TestNothingToDo:
    @pytest.mark.parametrize(
        "settings",
        [
            {"method": "wanda"},
            {"method": "sparsegpt", "sequential": "true", "exact_errors": True},
            {"method": "wanda", "allocation": "owl"},
            {"score": "saliency"},
            {"method": "wanda", "refine": "dsnot"},
            {"method": "wanda", "pattern": "structured"},
        ],
    )
    def test_at_zero_nothing_is_looked_at(self, settings: dict[str, Any], tmp_path: Path) -> None:
        source, recipe = tiny.save(tmp_path / "in"), tiny.recipe(sparsity=0.0, **settings)
        result = prune(str(source), recipe, calibration=never(), out=tmp_path / "out")
        assert (result.sparsity, result.manifest["fallbacks"], result.manifest["data"]) == (0.0, [], {})
        before, after = tiny.stored(source), tiny.stored(tmp_path / "out")
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_rounding_is_something_to_do(self) -> None:
        recipe = tiny.recipe(sparsity=0.0, method="sparsegpt", quantize="int8")
        with pytest.raises(pytest.fail.Exception, match="calibration data was read"):
            prune(tiny.model(), recipe, calibration=never())
