from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lowdim.core.errors import LowdimError
from lowdim.nn.residual.added import Gates
from lowdim.train.optimizers.adam import Adam, AdamW
from lowdim.train.optimizers.muon import Muon


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.norm, self.head = (
            nn.Embedding(7, 6),
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 7),
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.inner(self.table(ids))))
        return out


def step(net: Net, optimizer: Any) -> None:
    net(torch.arange(7)).logsumexp(-1).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_go_by_muon_and_the_rest_by_adamw() -> None:
    net, other = Net(), Net()
    optimizer = Muon(lr=0.01, adam_lr=0.02).build(net)
    muon = torch.optim.Muon([other.inner.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in other.parameters() if p is not other.inner.weight]
    adam = torch.optim.AdamW(rest, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for _ in range(3):
        step(net, optimizer)
        other(torch.arange(7)).logsumexp(-1).sum().backward()
        for each in (muon, adam):
            each.step()
            each.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_its_state_is_that_of_one_optimizer() -> None:
    net = Net()
    optimizer = Muon().build(net)
    step(net, optimizer)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    step(net, optimizer)
    other = Net()
    other.load_state_dict(weights)
    again = Muon().build(other)
    again.load_state_dict(state)
    step(other, again)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert len(state["state"]) == len(list(net.parameters()))


def test_a_rate_that_is_changed_reaches_the_step() -> None:
    net = Net()
    optimizer = Muon().build(net)
    before = copy.deepcopy(net.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(net, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_without_a_matrix_it_is_refused() -> None:
    with pytest.raises(LowdimError, match="no matrix inside the blocks"):
        Muon().build(nn.Embedding(3, 2))


@pytest.mark.parametrize("rule", [AdamW(weight_decay=0.5), Adam(weight_decay=0.5), Muon(weight_decay=0.5)], ids=repr)
def test_gates_are_not_pulled_to_zero(rule: Any) -> None:
    net = nn.Sequential(Net(), Gates(1))
    decays = {id(p): group["weight_decay"] for group in rule.build(net).param_groups for p in group["params"]}
    assert decays.pop(id(net[1].gate)) == 0.0  # type: ignore[arg-type]
    assert set(decays.values()) == {0.5} and len(decays) == len(list(net[0].parameters()))


def test_the_head_of_a_wrapped_model_is_left_to_adamw() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=False, **sizes))
    wrapped = torch.nn.Module()
    wrapped.module = model  # as DistributedDataParallel and torch.compile do
    alone, within = (
        [[id(p) for p in group["params"]] for group in Muon().build(each).param_groups] for each in (model, wrapped)
    )
    assert within == alone
    assert id(model.lm_head.weight) in within[1]
