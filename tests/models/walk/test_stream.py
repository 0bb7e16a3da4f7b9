from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tests.models.zoo import ZOO
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowdim.core.errors import NumericalError
from lowdim.data.batch import Batch
from lowdim.models.disk.checkpoint import Checkpoint
from lowdim.models.load import quiet
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.inputs import model_inputs
from lowdim.models.walk.skeleton import empty_model
from lowdim.models.walk.stream import Stream, compute_dtype, watched

ROUTED = ("mixtral", "qwen3-moe")


def batches() -> list[Batch]:
    """A full batch, one padded on the left, one padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 96, (3, 11), generator=generator) for _ in range(3)]
    masks = [torch.ones(3, 11, dtype=torch.int64) for _ in range(2)]
    masks[0][0, :4], masks[0][2, :1] = 0, 0
    masks[1][1, 7:] = 0
    return [Batch(ids[0]), Batch(ids[1], masks[0]), Batch(ids[2], masks[1])]


@torch.no_grad()
def plain(model: PreTrainedModel) -> list[Tensor]:
    return [model(**model_inputs(model, batch)).logits for batch in batches()]


def on_disk(kind: str, path: Path, compute: torch.dtype = torch.float32) -> Stream:
    with quiet():
        ZOO[kind]().save_pretrained(path)
        model = empty_model(path, torch.float32)
    return Stream(model, Checkpoint(path), stored=torch.float32, compute=compute)


def check(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == 3
    for batch, a, b in zip(batches(), found, expected, strict=True):
        real = torch.ones(3, 11, dtype=torch.bool) if batch.attention_mask is None else batch.attention_mask.bool()
        assert b[real].isfinite().all()
        assert torch.allclose(a[real], b[real], atol=1e-5)


@pytest.mark.parametrize("kind", ZOO)
def test_a_model_in_memory_gives_its_own_logits(kind: str) -> None:
    model = ZOO[kind]()
    check(list(Stream(model).forward(batches())), plain(model))


@pytest.mark.parametrize("kind", ZOO)
def test_a_model_on_disk_gives_its_own_logits_twice(kind: str, tmp_path: Path) -> None:
    stream, expected = on_disk(kind, tmp_path), plain(ZOO[kind]())
    check(list(stream.forward(batches())), expected)
    check(list(stream.forward(batches())), expected)
    assert all(parameter.is_meta for parameter in stream.model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_a_block_in_bf16_keeps_exact_masters_however_often_it_is_loaded(kind: str, tmp_path: Path) -> None:
    stream, model = on_disk(kind, tmp_path, torch.bfloat16), ZOO[kind]()
    for _ in range(2):
        with stream.block(1) as block:
            assert {p.dtype for p in block.module.parameters()} == {torch.bfloat16}
            for name, master in block.masters.items():
                assert torch.equal(master, model.get_parameter(f"{block.name}.{name}")), name
    found = list(stream.forward(batches()))
    assert found[0].dtype == torch.bfloat16
    assert float((found[0].float() - plain(model)[0]).abs().mean()) < 0.1 * float(plain(model)[0].abs().mean())


def test_left_padding_changes_no_logit() -> None:
    for kind in ZOO:
        model = ZOO[kind]()
        ids = batches()[0].input_ids[:1]
        padded = Batch(
            torch.cat([torch.zeros(1, 5, dtype=torch.int64), ids], 1),
            torch.cat([torch.zeros(1, 5, dtype=torch.int64), torch.ones_like(ids)], 1),
        )
        alone, with_padding = Stream(model).forward([Batch(ids), padded])
        assert torch.allclose(with_padding[:, 5:], alone, atol=2e-5), kind


@pytest.mark.parametrize("kind", ZOO)
def test_layers_and_what_is_skipped_are_the_same_with_and_without_weights(kind: str, tmp_path: Path) -> None:
    disk, memory = on_disk(kind, tmp_path), Stream(ZOO[kind]())
    for index in range(3):
        with memory.block(index) as block:
            full = [(layer.name, layer.parameter, layer.shape) for layer in block.layers]
            skipped = block.skipped
        for stream in (disk, memory):
            layers, left = stream.describe(index)
            assert [(layer.name, layer.parameter, layer.shape) for layer in layers] == full
            assert left == skipped
    assert bool(skipped) == (kind in ROUTED)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen3-moe"])
def test_a_layers_input_times_its_weight_is_its_output(kind: str) -> None:
    stream = Stream(ZOO[kind]())
    activations = stream.capture(batches()[:1])
    with stream.block(0) as block:
        layer = next(layer for layer in block.layers if "mlp" in layer.name)
        seen: list[tuple[Tensor, Tensor]] = []
        layer.module.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
        with torch.no_grad():
            block.forward(activations[0])
        x, y = seen[0]
        bias = getattr(layer.module, "bias", None)
        made = x @ layer.weight().t() + (0 if bias is None else bias)
        assert torch.allclose(made.reshape(y.shape), y, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen3-moe"])
@pytest.mark.parametrize("disk", [False, True])
def test_what_is_written_to_a_layer_is_in_the_block_and_in_its_master(kind: str, disk: bool, tmp_path: Path) -> None:
    stream = on_disk(kind, tmp_path) if disk else Stream(ZOO[kind]())
    activations = stream.capture(batches()[:1])
    with stream.block(0) as block, torch.no_grad():
        before = block.forward(activations[0])
        for layer in block.layers:
            layer.write(layer.weight() * 0.0 - 0.0)
        after = block.forward(activations[0])
        assert not torch.equal(before, after)
        for layer in block.layers:
            held = block.masters[layer.parameter.removeprefix(f"{block.name}.")]
            assert not held.any()
            assert not torch.signbit(held).any()


class TestLeavesTheModelAsItWas:
    def state(self, model: PreTrainedModel) -> dict[str, object]:
        return {
            name: (
                type(m),
                m.training,
                "forward" in vars(m),
                len(m._forward_hooks),
                len(m._forward_pre_hooks),
            )
            for name, m in model.named_modules()
        } | {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}

    def odd(self, kind: str) -> PreTrainedModel:
        model = ZOO[kind]().train()
        model.get_submodule(Stream(model).block_name(1)).eval()
        next(model.parameters()).requires_grad_(False)
        return model

    @pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
    def test_after_success(self, kind: str) -> None:
        model = self.odd(kind)
        before = self.state(model)
        for _ in Stream(model).forward(batches()):
            pass
        assert self.state(model) == before

    @pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
    @pytest.mark.parametrize("calls", [0, 1, 2])
    @pytest.mark.parametrize("part", [0, 1, 2])
    def test_after_an_interrupt_inside(self, kind: str, part: int, calls: int) -> None:
        model = self.odd(kind)
        stream, left = Stream(model), [calls]

        def interrupt(module: nn.Module, args: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        hooked = [model.get_input_embeddings(), stream.blocks[0], next(stream.blocks[1].children())][part]
        hooked.register_forward_pre_hook(interrupt)
        before = self.state(model)
        with pytest.raises(KeyboardInterrupt) as caught:
            list(stream.forward(batches()))
        assert self.state(model) == before
        assert caught.tb is not None  # the frames are alive: nothing was left to the garbage collector

    def test_a_walk_that_is_dropped_half_way(self) -> None:
        model = self.odd("llama")
        before = self.state(model)
        walk = Stream(model).forward(batches())
        next(walk)
        del walk
        assert self.state(model) == before


def _patched(block: nn.Module) -> None:
    own = type(block).forward
    block.__dict__["forward"] = lambda hidden, *args, **kwargs: own(block, 2 * hidden, *args, **kwargs)


def _dispatched(block: nn.Module) -> None:
    add_hook_to_module(block, AlignDevicesHook(io_same_device=True))


def _steered(block: nn.Module) -> None:
    block.register_forward_hook(lambda module, args, out: out + 1)


def _steered_before(block: nn.Module) -> None:
    block.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))


@pytest.mark.parametrize("place", [slice(1), slice(1, 2), slice(2, None), slice(None)])
@pytest.mark.parametrize("change", [_patched, _dispatched, _steered, _steered_before])
def test_forwards_and_hooks_that_blocks_were_given_act_once_and_stay(
    change: Callable[[nn.Module], None], place: slice
) -> None:
    model = ZOO["llama"]()
    for block in model.model.layers[place]:
        change(block)
    expected = plain(model)
    own = [dict(vars(block)) for block in model.model.layers]
    check(list(Stream(model).forward(batches())), expected)
    assert [dict(vars(block)) for block in model.model.layers] == own


def test_a_block_that_makes_nan_is_named() -> None:
    model = ZOO["llama"]()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"block 'model\.layers\.1' produced NaN or Inf"):
        list(Stream(model).forward(batches()))


def test_nan_in_padding_is_nobodys_concern() -> None:
    stream = Stream(ZOO["llama"]())
    [made] = stream.capture(batches()[1:2])
    made.hidden = made.hidden.clone()
    with stream.block(0) as block:
        block.forward = lambda activation, keep: activation.hidden  # type: ignore[method-assign]
        made.hidden[0, 0] = torch.nan
        block.advance(made)
        made.hidden[1, 0] = torch.nan
        with pytest.raises(NumericalError):
            block.advance(made)


def test_no_batches_make_no_activations() -> None:
    stream = Stream(ZOO["llama"]())
    assert stream.capture([]) == []
    assert list(stream.forward([])) == []


def test_every_block_gets_its_own_arguments() -> None:
    [made] = Stream(ZOO["gemma3"]()).capture(batches()[1:2])
    assert isinstance(made, Activation)
    assert len(made.calls) == 3
    masks = [kwargs["attention_mask"] for _, kwargs in made.calls]
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(
    ("requested", "stored", "device", "expected"),
    [
        ("float32", torch.bfloat16, "cpu", torch.float32),
        ("bfloat16", torch.float32, "cpu", torch.bfloat16),
        ("auto", torch.float16, "cuda", torch.float16),
    ],
)
def test_compute_dtype(requested: str, stored: torch.dtype, device: str, expected: torch.dtype) -> None:
    assert compute_dtype(requested, stored, torch.device(device)) == expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_on_a_cpu_bf16_is_used_where_it_is_native(
    native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert compute_dtype("auto", torch.float16, torch.device("cpu")) == expected


class Steps:
    """Progress that notes where it was told of."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def stage(self, name: str, total: int, unit: str = "") -> Steps:
        self.total = total
        return self

    def log(self, text: str) -> None: ...

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None: ...

    def advance(self, amount: int = 1) -> None:
        self.done += amount


def test_a_walk_advances_from_its_first_block_on_and_changes_no_bit() -> None:
    model, steps = ZOO["llama"](), Steps()
    expected = list(Stream(model).forward(batches()))
    walk = watched(Stream(model).forward, len(Stream(model)), "Evaluate", steps)(batches())
    found = [next(walk)]
    assert steps.done == 3 * len(Stream(model))
    found += walk
    assert steps.done == steps.total == 3 * (len(Stream(model)) + 1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
