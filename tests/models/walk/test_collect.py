from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from torch import Tensor, nn

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch
from lowdim.models.structure.layers import Layer
from lowdim.models.walk.calls import Activation
from lowdim.models.walk.collect import Collector
from lowdim.models.walk.stream import Block, Stream

GROUPS = {
    "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "gpt2": [["c_attn"], ["attn.c_proj"], ["c_fc"], ["mlp.c_proj"]],
    "phi": [["q_proj", "k_proj", "v_proj", "fc1"], ["dense"], ["fc2"]],
    "falcon": [["query_key_value", "dense_h_to_4h"], ["attention.dense"], ["dense_4h_to_h"]],
    "gpt-neox": [["query_key_value"], ["attention.dense"], ["dense_h_to_4h"], ["dense_4h_to_h"]],
}


def batch(mask: Tensor | None = None, fill: int = 5) -> Batch:
    ids = torch.randint(1, 96, (3, 10), generator=torch.Generator().manual_seed(0))
    return Batch(ids if mask is None else torch.where(mask.bool(), ids, fill), mask)


def left_mask() -> Tensor:
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[0, :4], mask[2, :1] = 0, 0
    return mask


def collected(kind: str, batches: list[Batch], needs: Iterable[str] = ("square",)) -> Collector:
    """Return the statistics of the second block."""
    stream = Stream(ZOO[kind]())
    activations = stream.capture(batches)
    with stream.block(0) as block:
        for activation in activations:
            block.advance(activation)
    with stream.block(1) as block:
        collector = Collector(block, needs)
        collector.run(activations)
    return collector


@pytest.mark.parametrize("kind", GROUPS)
def test_layers_are_grouped_by_the_input_they_share_in_the_order_of_the_calls(kind: str) -> None:
    collector = collected(kind, [batch(), batch()])
    assert len(collector.groups) == len(GROUPS[kind])
    for found, expected in zip(collector.groups, GROUPS[kind], strict=True):
        assert len(found) == len(expected)
        assert all(any(name.endswith(end) for name in found) for end in expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_sums_are_those_of_the_whole_models_inputs(kind: str) -> None:
    needs = ("square", "moments", "gram")
    collector = collected(kind, [batch(), batch()], needs)
    model, seen = ZOO[kind](), dict[str, Tensor]()
    for name in collector.layers:

        def note(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = args[0].detach().reshape(-1, args[0].shape[-1]).double()

        model.get_submodule(name).register_forward_pre_hook(note)
    model(input_ids=batch().input_ids, use_cache=False)
    for name, x in seen.items():
        found = collector.statistics(name)
        assert found.tokens == 60
        assert torch.allclose(found.gram.double(), 2 * x.t() @ x, rtol=1e-4, atol=1e-4)
        assert torch.allclose(found.square.double(), 2 * x.square().sum(0), rtol=1e-5)
        assert torch.allclose(found.total.double(), 2 * x.sum(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ZOO)
def test_what_padding_holds_changes_no_bit(kind: str) -> None:
    needs = ("square", "gram", "moments")
    one, other = (collected(kind, [batch(left_mask(), fill)], needs) for fill in (5, 77))
    assert one.notes == []
    for name in one.layers:
        pairs = zip(one.statistics(name).tensors(), other.statistics(name).tensors(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom", "gemma3", "mixtral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_more_padding_changes_no_sum(kind: str, side: str) -> None:
    def longer(extra: int) -> Batch:
        plain, more = batch(left_mask()), torch.zeros(3, extra, dtype=torch.int64)
        parts = [(more, plain.input_ids), (more, plain.attention_mask)]
        if side == "right":
            parts = [pair[::-1] for pair in parts]
        return Batch(*(torch.cat(pair, 1) for pair in parts))

    short, padded = collected(kind, [longer(0)]), collected(kind, [longer(6)])
    for name in short.layers:
        a, b = short.statistics(name), padded.statistics(name)
        assert a.tokens == b.tokens
        assert a.tokens == 25 or "experts" in name
        assert torch.allclose(a.square, b.square, rtol=1e-5), name


class Twins(nn.Module):
    """Two layers; whether the second is given the first one's input is told by the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.finished = 0

    def forward(self, hidden: Tensor) -> Tensor:
        other = hidden if float(hidden[0, 0, 0]) > 0 else hidden.clone()
        out: Tensor = self.last(self.one(hidden) + self.two(other))
        self.finished += 1
        return out


def toy(module: nn.Module, names: Iterable[str]) -> Block:
    layers = [Layer(n, module.get_submodule(n), f"{n}.weight", module.get_submodule(n).weight.data) for n in names]
    return Block(0, "blocks.0", module, layers, [], {}, [])


def activation(first: float = 1.0, mask: Tensor | None = None) -> Activation:
    return Activation(Batch(torch.zeros(2, 3, dtype=torch.int64), mask), torch.full((2, 3, 4), first), [((), {})])


def test_inputs_shared_on_one_batch_alone_are_refused_with_a_way_out() -> None:
    collector = Collector(toy(Twins(), ["one", "two"]), ["square"])
    with pytest.raises(LowdimError, match=r"'one' and 'two' shared their input .*targets\.exclude=\['two'\]"):
        collector.run([activation(1.0), activation(-1.0)])


class Delayed(nn.Module):
    """Two layers with one input, the second of which runs once more, on another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.one(hidden) + self.two(hidden) + self.two(hidden[:, :1] * 3)
        return out


def test_every_input_of_a_layer_that_runs_twice_counts() -> None:
    collector = Collector(toy(Delayed(), ["one", "two"]), ["square"])
    collector.run([activation(1.0), activation(2.0)])
    assert [collector.statistics(name).tokens for name in ("one", "two")] == [12, 16]
    assert collector.statistics("one").square.tolist() == [6 + 24] * 4
    assert collector.statistics("two").square.tolist() == [6 + 24 + 9 * 2 * (1 + 4)] * 4
    assert collector.groups == [["one"], ["two"]]


def test_only_the_first_batch_runs_to_the_end() -> None:
    module = Twins()
    Collector(toy(module, ["one", "two"]), ["square"]).run([activation()] * 5)
    assert module.finished == 1
    Collector(toy(module, ["one", "two"]), ["square"]).run([activation() for _ in range(5)], advance=True)
    assert module.finished == 6


def test_a_layer_never_called_has_empty_statistics_and_a_group_of_its_own() -> None:
    module = Twins()
    module.spare = nn.Linear(7, 2)
    collector = Collector(toy(module, ["spare", "one", "last"]), ["square"])
    collector.run([activation()])
    assert collector.groups == [["one"], ["last"], ["spare"]]
    assert (collector.statistics("spare").tokens, len(collector.statistics("spare").square)) == (0, 7)


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.one(hidden.mean(1))[:, None]


def test_where_padding_cannot_be_told_it_says_so() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    collector = Collector(toy(Pooling(), ["one"]), ["square"])
    collector.run([activation(mask=mask), activation(mask=mask)])
    assert collector.notes == [("one", "padding could not be told from tokens in this layer's input")]
    assert collector.statistics("one").tokens == 4


class Stumbling(Twins):
    def __init__(self, error: type[BaseException], at: int) -> None:
        super().__init__()
        self.error, self.at = error, at

    def forward(self, hidden: Tensor) -> Tensor:
        self.at -= 1
        if self.at < 0:
            raise self.error
        return super().forward(hidden)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_hooks_are_gone_whatever_happens(error: type[BaseException], at: int) -> None:
    module = Stumbling(error, at)
    mine = module.one.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(error):
        Collector(toy(module, ["one", "two"]), ["square"]).run([activation()] * 4)
    hooks: list[Any] = [hook for child in module.modules() for hook in child._forward_pre_hooks]
    assert hooks == [mine.id]
