"""The contract of a merger, and one that is added from outside."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from tests.models.tickets import every_kind, random_ticket, vector
from torch import Tensor

from lowdim.core import registry
from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.masks import Masks
from lowdim.core.settings import within
from lowdim.merge.base import Merger, Tensorwise
from lowdim.merge.pools import LotteryPools
from lowdim.merge.soup import Soup
from lowdim.models.ticket import Ticket
from lowdim.train.tickets.suptickets import SupTickets


@dataclass(frozen=True)
class Shifted(Tensorwise):
    """The base and a part of what the networks changed on average."""

    scale: float = within(0.5, least=0)

    def mix(self, tensors, base):
        assert base is not None
        return base.double() + self.scale * (torch.stack(list(tensors)).double().mean(0) - base.double())


@dataclass(frozen=True)
class Middle(Tensorwise):
    def mix(self, tensors: list[Tensor], base: Tensor | None) -> Tensor:
        return torch.stack(list(tensors)).median(0).values


MERGERS = [Soup(), LotteryPools(), SupTickets(), SupTickets(average="moving"), Middle()]


def test_a_merger_registered_at_run_time_merges_and_differs(monkeypatch):
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setitem(sys.modules, "house_of_a_test", SimpleNamespace(Middle=Middle))
    registry.register("merger", "middle", "house_of_a_test:Middle", title="The middle value")
    assert "middle" in registry.names("merger")
    tickets = [vector(1.0, 2.0), vector(2.0, 9.0), vector(9.0, 4.0)]
    found = {name: registry.find("merger", name).load()().merge(tickets) for name in ("soup", "middle")}
    assert found["middle"].state["w"].tolist() == [2.0, 4.0]
    assert found["soup"].state["w"].tolist() == [4.0, 5.0]


@every_kind
@pytest.mark.parametrize("merger", MERGERS, ids=repr)
def test_every_merger_keeps_the_structure_and_the_number_of_weights(merger: Merger, kind):
    tickets = [random_ticket(kind, seed) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in ticket.state.items()} for ticket in tickets]
    made = merger.merge(tickets)
    assert made.masks.kept() == tickets[0].masks.kept()
    for name, tensor in tickets[0].state.items():
        assert made.state[name].dtype == tensor.dtype
        assert made.state[name].shape == tensor.shape
    for name, mask in made.masks.items():
        assert not made.state[name][~mask].any()
    for ticket, held in zip(tickets, before, strict=True):
        assert all(torch.equal(ticket.state[name], held[name]) for name in held)


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
def test_what_does_not_fit_together_is_refused(merger: Merger):
    with pytest.raises(LowdimError, match="no tickets"):
        merger.merge([])
    with pytest.raises(LowdimError, match="differ in their tensors"):
        merger.merge([vector(1.0, 2.0), vector(1.0, 2.0, 3.0)])


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(merger: Merger, wrong: float):
    good, bad = vector(1.0, 2.0), vector(1.0, wrong)
    with pytest.raises(LowdimError, match=r"^w of ticket 1 holds 1 values that are NaN or infinite"):
        merger.merge([good, bad])
    with pytest.raises(LowdimError, match=r"^w of ticket 0 holds 1 values"):
        merger.merge([bad, bad])


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
def test_buffers_may_be_infinite_where_all_are(merger: Merger):
    def ticket(*seen: float) -> Ticket:
        held = vector(1.0, 2.0)
        return Ticket({**held.state, "seen": torch.tensor(seen)}, held.masks)

    made = merger.merge([ticket(0.0, -float("inf")), ticket(0.0, -float("inf"))])
    assert made.state["seen"].tolist() == [0.0, -float("inf")]
    for other in (0.0, float("inf"), float("nan")):
        with pytest.raises(LowdimError, match=r"^seen of ticket [01] holds 1 values"):
            merger.merge([ticket(0.0, -float("inf")), ticket(0.0, other)])


def test_a_base_is_what_changes_are_measured_from():
    base, tickets = vector(1.0, 1.0), [vector(3.0, 1.0), vector(5.0, 1.0)]
    assert Shifted().merge(tickets, base).state["w"].tolist() == [2.5, 1.0]
    assert Shifted(scale=2).merge(tickets, base).state["w"].tolist() == [7.0, 1.0]
    with pytest.raises(LowdimError, match="differ in their tensors"):
        Shifted().merge(tickets, vector(1.0))
    with pytest.raises(RecipeError, match="scale must be at least 0; got -1"):
        Shifted(scale=-1)


def test_sparsity_of_your_own():
    tickets = [vector(1.0, 2.0, 0.0, 0.0), vector(1.0, 0.0, 4.0, 1.0)]
    assert Middle().merge(tickets, sparsity=0.5).masks.kept() == 2
    with pytest.raises(LowdimError, match="give sparsity"):
        Middle().merge(tickets)


def test_pools_begin_with_the_base():
    tickets = [vector(8.0, 1.0), vector(4.0, 1.0)]
    assert LotteryPools().merge(tickets, vector(0.0, 4.0, mask=(1, 1))).state["w"].tolist() == [4.0, 2.0]
    assert LotteryPools().merge(tickets, factor=0.75).state["w"].tolist() == [5.0, 1.0]


def test_the_base_of_sparse_networks_may_be_dense():
    states = [random_ticket("conv", seed, mask_seed=0) for seed in range(2)]
    base = Ticket(random_ticket("conv", 7).state, Masks())
    merged = Shifted(scale=1.0).merge(states, base)
    assert merged.masks == states[0].masks
    assert torch.allclose(merged.state["7.bias"], Soup().merge(states).state["7.bias"])
