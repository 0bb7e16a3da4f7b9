"""A named shape at full depth over few blocks, and every form that a model takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.results import saved

from lowdim.core.progress import Silent
from lowdim.core.quantize import Grid
from lowdim.infer.bench import models, run
from lowdim.infer.bench.decode import LowdimDecoder, TorchDecoder, time_prefill, time_steps
from lowdim.infer.bench.errors import BenchError
from lowdim.infer.bench.result import Contestant
from lowdim.infer.bench.settings import Settings
from lowdim.infer.bench.shapes import SHAPES, Shape
from lowdim.infer.bench.timing import Deadline
from lowdim.infer.sparse.linear import SparseLinear
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.quantize import quantize

TINY = Shape(hidden=64, intermediate=96, layers=5, heads=4, kv_heads=2, vocab=50, tied=False)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr(models, "STREAMED", TINY.block * 2)
    monkeypatch.setattr(models, "free_memory", lambda: 2 * 10**6)
    return Settings(shape="tiny", sparsities=(0.5,), dtypes=("bf16", "int8"))


@pytest.fixture
def base(settings: Settings) -> models.Base:
    return models.random_base(settings)


def test_a_deep_model_cycles_through_distinct_copies_of_one_block(base):
    assert base.distinct == 4, "int8 at 50% takes 5.1 of the 16 bits that the patched limit asks for"
    deep = models.build(base, Contestant("torch", "bf16"))
    weights = [layer.mlp.up_proj.weight for layer in deep.model.layers]
    assert len(weights) == TINY.layers
    assert len({w.data_ptr() for w in weights}) == base.distinct
    assert all(torch.equal(w, weights[0]) for w in weights)
    assert deep.config.num_hidden_layers == TINY.layers


def test_where_memory_holds_all_blocks_none_is_used_twice(settings, monkeypatch):
    monkeypatch.setattr(models, "free_memory", lambda: 10**9)
    base = models.random_base(settings)
    deep = models.build(base, Contestant("torch", "bf16"))
    assert len({layer.mlp.up_proj.weight.data_ptr() for layer in deep.model.layers}) == TINY.layers


def test_three_bits_skip_no_zeros(settings):
    asked = replace(settings, dtypes=("int4", "int3"))
    assert [str(who) for who in models.wanted(asked)] == [
        "torch bf16 dense",
        "lowdim int4 dense",
        "lowdim int4 50%",
        "lowdim int3 dense",
    ]
    assert [str(who) for who in models.wanted(asked, 0.6)][2:] == ["lowdim int4 60%", "lowdim int3 dense"]


def test_a_model_that_was_rounded_is_measured_as_it_is_stored(tmp_path):
    out = quantize(saved(tmp_path / "model", "llama"), tmp_path / "out", Grid(4))
    base = models.loaded_base(Settings(model=str(out), dtypes=("int4", "bf16")))
    assert (base.rounded, base.zeros, base.sparse) == ("int4", 0.0, False)
    made = models.build(base, Contestant("lowdim", "int4")).get_submodule("model.layers.0.mlp.up_proj")
    stored = Checkpoint(out).read_packed("model.layers.0.mlp.up_proj.weight")
    assert isinstance(made, SparseLinear)
    assert torch.equal(made.values, stored.values)
    decoded = models.build(base, Contestant("lowdim", "bf16")).get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(decoded, SparseLinear)
    assert torch.equal(decoded.weight, stored.weight())


def test_a_tied_head_stays_tied(settings, monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", replace(TINY, tied=True))
    base = models.random_base(settings)
    for who in models.wanted(settings)[:2]:
        deep = models.build(base, who)
        assert torch.equal(deep.lm_head.weight, deep.model.embed_tokens.weight)


def test_a_deep_model_computes_and_caches_every_layer(base):
    deep = models.build(base, Contestant("torch", "bf16"))
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        whole = deep(ids).logits[0, -1]
        cache = deep(ids[:, :-1], use_cache=True).past_key_values
        step = deep(ids[:, -1:], past_key_values=cache).logits[0, -1]
    assert len(cache) == TINY.layers
    assert torch.isfinite(whole).all()
    assert torch.allclose(whole.float(), step.float(), atol=0.05)


def test_forms_differ_in_storage_and_agree_in_what_they_compute(base, settings):
    ids = torch.arange(1, 9)[None]
    for who in models.wanted(settings):
        made = models.build(base, who)
        assert isinstance(made.model.layers[4].mlp.up_proj, SparseLinear) == (who.engine == "lowdim")
        form = "dense" if not who.sparsity else "packed"
        if who.engine == "lowdim":
            kernels = models.kernels(made)
            assert sum(n for name, n in kernels.items() if name.startswith(f"{form} {who.dtype}")) >= 7 * TINY.layers
            assert made.model.layers[0].mlp.up_proj.sparsity == pytest.approx(who.sparsity, abs=0.05)
        if not who.sparsity:
            with torch.inference_mode():
                logits = made(ids).logits.float()
            expected = base_logits(base, ids)
            assert (logits - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("form", ["packed", "dense"])
def test_drawn_zeros_lie_as_a_user_would_get_them_and_it_is_said_why(base, settings, form, monkeypatch):
    monkeypatch.setenv("LOWDIM_FORM", form)
    built, forms = run._build(base, settings, Silent(), Deadline(), ())
    for who, model in built.items():
        if who.sparsity:
            kernels = models.kernels(model)
            assert sum(n for name, n in kernels.items() if name.startswith(form)) >= 7 * TINY.layers
            assert forms[who] == (f"{7 * TINY.layers} × {who.dtype}: {form}: LOWDIM_FORM={form}",)
        else:
            assert forms[who] == ()


def base_logits(base: models.Base, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return models.build(base, Contestant("torch", "fp32"))(ids).logits


def test_building_a_form_leaves_the_base_alone(base, settings):
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    for who in models.wanted(settings):
        models.build(base, who)
    assert all(torch.equal(before[name], p) for name, p in base.model.named_parameters())


def test_bytes_per_token_count_every_use_of_a_shared_block(base):
    deep = models.build(base, Contestant("torch", "bf16"))
    assert models.bytes_per_token(deep) == 2 * (TINY.layers * TINY.block + TINY.vocab * TINY.hidden)


def test_products_name_the_layers_of_each_shape_and_count_the_whole_depth(base):
    found = {product.names: (product.count, tuple(product.weight.shape)) for product in models.products(base)}
    assert found == {
        ("q_proj", "o_proj"): (10, (64, 64)),
        ("k_proj", "v_proj"): (10, (32, 64)),
        ("gate_proj", "up_proj"): (10, (96, 64)),
        ("down_proj",): (5, (64, 96)),
        ("lm_head",): (1, (50, 64)),
    }


def test_memory_is_checked_before_it_is_taken(settings, monkeypatch):
    monkeypatch.setattr(models, "free_memory", lambda: 10_000)
    with pytest.raises(BenchError, match=r"--shape tiny needs about .* GB of memory, 0\.0 GB is free"):
        models.random_base(settings)


def test_without_knowledge_of_the_memory_nothing_is_refused(settings, monkeypatch):
    monkeypatch.setattr(models, "free_memory", lambda: None)
    assert models.random_base(settings).shape is TINY


def test_decoders_give_a_time_per_token_and_choose_the_same_tokens(base):
    fp32 = models.build(base, Contestant("torch", "fp32"))
    ours = models.build(base, Contestant("lowdim", "fp32"))
    decoders = {
        Contestant("torch", "fp32"): TorchDecoder(fp32),
        Contestant("lowdim", "fp32"): LowdimDecoder(ours),
    }
    steps = time_steps(decoders, tokens=6, vocab=TINY.vocab, rounds=2)
    assert {who.engine: len(seconds) for who, seconds in steps.items()} == {"torch": 12, "lowdim": 12}
    prefills = time_prefill(decoders, prompt=20, vocab=TINY.vocab, rounds=2)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in prefills.values())


def test_layers_that_keep_their_weight_turned_are_seen_too(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=64, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    models._drop_all(model, 0.6)
    model.save_pretrained(tmp_path / "gpt2")
    base = models.loaded_base(Settings(model=str(tmp_path / "gpt2"), dtypes=("fp32",)))
    assert base.zeros == pytest.approx(0.6, abs=0.01)
    found = {tuple(p.weight.shape): p.names for p in models.products(base)}
    assert found == {
        (192, 64): ("c_attn",),
        (64, 64): ("c_proj",),
        (256, 64): ("c_fc",),
        (64, 256): ("c_proj",),
        (40, 64): ("lm_head",),
    }
    built = models.build(base, Contestant("lowdim", "fp32", base.zeros))
    assert sum(n for name, n in models.kernels(built).items() if name.startswith("packed fp32")) == 8


@pytest.mark.parametrize(
    "own",
    [{"num_beams": 4}, {"num_return_sequences": 2, "do_sample": True}, {"stop_strings": ["a"]}, {"max_length": 3}],
)
def test_what_a_model_says_of_generating_does_not_stop_the_clock(base, own):
    from transformers import GenerationConfig

    model = models.build(base, Contestant("torch", "fp32"))
    model.generation_config = GenerationConfig(**own)
    assert len(TorchDecoder(model).decode([1, 8, 15], 5)) == 5
