"""Models that treat their blocks in every way there is: what is learnt of them, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.every_causal_lm import build, recipe
from tests.models.zoo import ZOO
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from lowdim.core.errors import LowdimError
from lowdim.data.batch import Batch
from lowdim.models.walk.stream import Stream
from lowdim.prune.session import open_session

WIDTH = 8


class Odd(nn.Module):
    """A block that returns, takes and keeps what a test wants it to."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return hidden_states + torch.tanh(self.mix(hidden_states))


class Other(Odd):
    """The same by another name."""


class Hands(Odd):
    """Returns a state beside its hidden states, in another place than most, and adds the one that it is given."""

    def forward(self, hidden_states: Tensor, state: Tensor | None = None, **kwargs: Any) -> Any:
        out = super().forward(hidden_states if state is None else hidden_states + state)
        return None, out.mean(-1, keepdim=True), out


class Lists(Hands):
    """The same in a list."""

    def forward(self, hidden_states: Tensor, state: Tensor | None = None, **kwargs: Any) -> Any:
        return list(super().forward(hidden_states, state))


class Shares(Odd):
    """Writes into a dictionary that all blocks are given, and reads what the one before wrote."""

    def forward(self, hidden_states: Tensor, notes: dict[str, Tensor] | None = None, **kwargs: Any) -> Any:
        assert notes is not None
        out = super().forward(hidden_states + notes.get("last", torch.zeros(1)))
        notes["last"] = out.mean(-1, keepdim=True)
        return out


class Remembers(Odd):
    """Adds how often it has been called."""

    calls = 0

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        self.calls += 1
        return super().forward(hidden_states) + self.calls


class Sums(Odd):
    """Gives each token the sum of all before it, padding or not."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return super().forward(hidden_states.cumsum(1))


Loop = Callable[["Net", Tensor], Tensor]


def plainly(net: Net, hidden: Tensor) -> Tensor:
    for block in net.layers:
        hidden = block(hidden)
    return hidden


class Net(PreTrainedModel):
    """A causal LM of such blocks, which a loop of the test's own runs."""

    config_class = LlamaConfig

    def __init__(self, blocks: list[nn.Module], loop: Loop = plainly) -> None:
        sizes = {"hidden_size": WIDTH, "num_attention_heads": 1, "num_hidden_layers": len(blocks)}
        super().__init__(LlamaConfig(vocab_size=16, **sizes))
        self.embed_tokens = nn.Embedding(16, WIDTH)
        self.layers = nn.ModuleList(blocks)
        self.lm_head = nn.Linear(WIDTH, 16, bias=False)  # what get_output_embeddings finds
        self.loop = loop
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.loop(self, self.embed_tokens(input_ids))))


def handing(net: Net, hidden: Tensor) -> Tensor:
    state = None
    for block in net.layers:
        _, state, hidden = block(hidden, state=state)
    return hidden


def sharing(net: Net, hidden: Tensor) -> Tensor:
    notes: dict[str, Tensor] = {}
    for block in net.layers:
        hidden = block(hidden, notes=notes)
    return hidden


def halving(net: Net, hidden: Tensor) -> Tensor:
    for block in net.layers:
        hidden = block(hidden) / 2
    return hidden


def adding_in_place(net: Net, hidden: Tensor) -> Tensor:
    for block in net.layers:
        hidden = block(hidden).add_(1)
    return hidden


def backwards(net: Net, hidden: Tensor) -> Tensor:
    for block in reversed(net.layers):
        hidden = block(hidden)
    return hidden


def twice(net: Net, hidden: Tensor) -> Tensor:
    return plainly(net, plainly(net, hidden))


def remembering(net: Net, hidden: Tensor) -> Tensor:
    """Give each block, in a list, what all blocks before it returned."""
    seen = [hidden]
    for block in net.layers:
        hidden = block(hidden, seen=[sum(seen), len(seen)])
        seen.append(hidden)
    return hidden


def weighing(net: Net, hidden: Tensor) -> Tensor:
    """Give the head the mean of what all blocks returned."""
    seen = [hidden]
    for block in net.layers:
        seen.append(block(seen[-1]))
    return torch.stack(seen).mean(0)


def stopping(net: Net, hidden: Tensor) -> Tensor:
    return net.layers[0](hidden)


def ids() -> Tensor:
    return torch.randint(0, 16, (3, 7), generator=torch.Generator().manual_seed(0))


def two_walks(net: Net, batch: Batch) -> list[Tensor]:
    """Return the logits of a walk in which every block runs before it counts, and of a second walk."""
    stream = Stream(net)
    activations = stream.capture([batch])
    for index in range(len(stream)):
        with stream.block(index) as block, torch.no_grad():
            for activation in activations:
                block.forward(activation)
                block.advance(activation)
    return [*stream.logits(activations), *stream.forward([batch])]


@pytest.mark.parametrize(
    ("blocks", "loop"),
    [
        ([Odd, Odd, Odd], plainly),
        ([Odd, Other, Odd], plainly),
        ([Hands, Hands, Hands], handing),
        ([Hands, Lists, Lists], handing),
        ([Shares, Shares, Shares], sharing),
    ],
    ids=["alike", "two classes", "a state handed on", "a list", "a dictionary shared"],
)
def test_blocks_of_every_kind_give_the_models_own_logits(blocks: list[type[nn.Module]], loop: Loop) -> None:
    torch.manual_seed(0)
    net = Net([make() for make in blocks], loop)
    with torch.no_grad():
        expected = net(ids()).logits
    for found in two_walks(net, Batch(ids())):
        assert torch.equal(found, expected)
    assert Stream(net).manners.hands_on == (loop in (handing, sharing))


@pytest.mark.parametrize(
    ("block", "loop", "why"),
    [
        (Odd, halving, "changes the hidden states between blocks 0 and 1"),
        (Odd, adding_in_place, "changes the hidden states between blocks 0 and 1"),
        (Odd, backwards, "calls block 2 where block 0 was due"),
        (Odd, twice, "calls block 0 more than once"),
        (Odd, stopping, "forward ends before block 1"),
        (Odd, remembering, "what it gives block 1 beside the hidden states depends on those of earlier blocks"),
        (Odd, weighing, "its head is given more than what the last block returns"),
        (Remembers, plainly, "gives other numbers when it runs again"),
    ],
)
def test_what_cannot_be_walked_is_refused_with_the_reason(block: type[nn.Module], loop: Loop, why: str) -> None:
    net = Net([block() for _ in range(3)], loop)
    with pytest.raises(LowdimError, match=why):
        Stream(net).capture([Batch(ids())])
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("kind", ["inkling2_text", "xlm", "hrm_text", "zamba2", "inkling_text", "gemma3n_text"])
def test_memory_and_disk_give_one_verdict(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(kind, tmp_path)
        said = []
        for make in (lambda: Stream(model).manners, lambda: open_session(str(tmp_path), recipe()).stream.manners):
            try:
                made = make()
                said.append(("", made.padding, made.hands_on))
            except LowdimError as error:
                said.append((str(error), False, False))
    assert said[0] == said[1]
    assert bool(said[0][0]) == (kind in ("inkling2_text", "xlm", "hrm_text", "zamba2"))


def test_blocks_that_share_a_weight_are_refused() -> None:
    blocks = [Odd() for _ in range(3)]
    blocks[2].mix = blocks[0].mix
    with pytest.raises(LowdimError, match=r"blocks 0 and 2 share the weight 'mix\.weight'"):
        _ = Stream(Net(blocks)).manners


def test_layers_of_one_block_that_share_a_weight_are_refused() -> None:
    model = ZOO["llama"]()
    for block in model.model.layers:
        block.mlp.gate_proj.weight = block.mlp.up_proj.weight
    stream = Stream(model)
    with pytest.raises(LowdimError, match=r"mlp\.gate_proj and mlp\.up_proj in block 0 share the weight 'mlp\.up_proj"):
        _ = stream.manners
    assert {"gate_proj", "up_proj"} <= {layer.name.rpartition(".")[2] for layer in stream.describe(0)[0]}


def test_a_model_that_padding_disturbs_sees_none() -> None:
    torch.manual_seed(0)
    net, mask = Net([Sums() for _ in range(2)]), torch.ones(3, 7, dtype=torch.int64)
    mask[0, :3], mask[2, 5:] = 0, 0
    stream = Stream(net)
    assert not stream.manners.padding
    assert all(made.mask is None for made in stream.capture([Batch(ids(), mask)]))
    [found] = stream.forward([Batch(ids(), mask)])
    with torch.no_grad():
        for row, places in zip(range(3), mask.bool(), strict=True):
            alone = net(ids()[row, places][None]).logits[0]
            assert torch.allclose(found[row, places], alone, atol=1e-6)


@pytest.mark.parametrize("kind", ZOO)
def test_padding_disturbs_no_model_of_the_zoo(kind: str) -> None:
    manners = Stream(ZOO[kind]()).manners
    assert manners.padding
    assert not manners.hands_on
