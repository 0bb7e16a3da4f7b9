from __future__ import annotations

import pytest
import torch
from tests.models.tickets import every_kind, random_ticket, vector

from lowdim.core.errors import LowdimError, NumericalError
from lowdim.core.masks import Masks
from lowdim.merge.combine import blend, iou, kept_count, largest, mix, running_average, union
from lowdim.merge.soup import Soup
from lowdim.models.ticket import Ticket


def test_mix_is_linear_for_weights_and_statistics_and_takes_integers_from_the_last():
    first, second = random_ticket("conv", 1), random_ticket("conv", 2)
    mixed = mix([first, second], [0.25, 0.75])
    for name in ("0.weight", "1.running_var", "7.bias"):
        expected = 0.25 * first.state[name].double() + 0.75 * second.state[name].double()
        assert torch.equal(mixed[name], expected.float())
    assert mixed["1.num_batches_tracked"].dtype == torch.int64
    assert mixed["1.num_batches_tracked"] == second.state["1.num_batches_tracked"] == 5


def test_mix_with_a_zero_ignores_even_what_is_not_finite():
    broken = vector(float("nan"), 1.0)
    assert torch.equal(mix([broken, vector(1.0, 2.0)], [0, 1])["w"], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("first", "second", "made"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_dtype_of_a_mix_holds_the_values_of_all_in_any_order(first, second, made):
    tickets = [Ticket({"w": torch.tensor([value]).to(dtype)}, Masks()) for value, dtype in ((3, first), (5, second))]
    assert mix(tickets, [0.5, 0.5])["w"].dtype == Soup().merge(tickets).state["w"].dtype == made


@every_kind
def test_equal_masks_lose_nothing(kind):
    tickets = [random_ticket(kind, seed, mask_seed=0) for seed in range(3)]
    mixed = blend(tickets, [1 / 3] * 3, tickets[0].masks.kept())
    assert mixed.masks == tickets[0].masks
    for name in mixed.state:
        if mixed.state[name].is_floating_point():
            mean = sum(t.state[name].double() for t in tickets) / 3
            torch.testing.assert_close(mixed.state[name].double(), mean, atol=1e-7, rtol=1e-6)


@every_kind
def test_different_masks_are_pruned_to_the_exact_count_over_all_layers(kind):
    tickets = [random_ticket(kind, seed) for seed in range(3)]
    keep = tickets[0].masks.kept()
    mixed = blend(tickets, [1 / 3] * 3, keep)
    assert mixed.masks.kept() == keep
    state = mix(tickets, [1 / 3] * 3)
    magnitudes = torch.cat([state[name].abs().flatten() for name in mixed.masks])
    kept = torch.cat([mixed.state[name].abs().flatten() for name in mixed.masks])
    assert torch.equal(kept.sort().values[-keep:], magnitudes.sort().values[-keep:])
    assert int((kept != 0).sum()) == keep


def test_ties_go_to_the_earlier_layer_and_index_and_legal_zeros_to_what_is_legal():
    state = {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([1.0, 0.0])}
    everywhere = {name: torch.tensor([True, True]) for name in state}
    found = largest(state, everywhere, 2)
    assert found["a"].tolist() == [True, True]
    assert found["b"].tolist() == [False, False]
    legal = {"a": torch.tensor([False, False]), "b": torch.tensor([True, True])}
    zeros = {name: torch.zeros(2) for name in state}
    assert largest(zeros, legal, 1)["b"].tolist() == [True, False]


def test_more_than_there_is_and_nan_are_refused():
    with pytest.raises(LowdimError, match="3 weights are to be kept, but the tickets hold 2"):
        blend([vector(1.0, 2.0, 0.0)], [1.0], 3)
    with pytest.raises(NumericalError):
        blend([vector(float("nan"), 2.0)], [1.0], 1)


def test_a_sparser_ticket_taken_whole_keeps_zeros_where_the_others_have_weights():
    found = blend([vector(5.0, 0.0, 0.0, 0.0), vector(0.0, 1.0, 2.0, 0.0)], [1.0, 0.0], 3)
    assert found.state["w"].tolist() == [5.0, 0.0, 0.0, 0.0]
    assert found.masks["w"].tolist() == [True, True, True, False]


def test_running_mean_equals_the_plain_mean():
    tickets = [vector(float(k), 1.0, -float(k * k)) for k in range(1, 6)]
    mean = running_average(tickets, [1 / (k + 1) for k in range(1, 5)], 3, prune_each=False)
    torch.testing.assert_close(mean.state["w"], torch.tensor([3.0, 1.0, -11.0]))


def test_pruning_at_every_ticket_is_another_average():
    tickets = [vector(2.0, 0.0, 0.0), vector(0.0, 3.0, 0.0), vector(0.0, 0.0, 3.6)]
    factors = [1 / 2, 1 / 3]
    # once at the end: mean (2/3, 1, 1.2) -> 1.2; every time: (1, 1.5) -> 1.5; then (2/3 * 1.5, 3.6/3) -> 1.2
    once = running_average(tickets, factors, 1, prune_each=False).state["w"]
    torch.testing.assert_close(once, torch.tensor([0.0, 0.0, 1.2]))
    tickets[2] = vector(2.5, 0.0, 0.0)
    # once: (4.5/3, 1, 0) -> the first; every time: (1.5 second) then (2.5/3, 1) -> the second
    once = running_average(tickets, factors, 1, prune_each=False).state["w"]
    every = running_average(tickets, factors, 1, prune_each=True).state["w"]
    torch.testing.assert_close(once, torch.tensor([1.5, 0.0, 0.0]))
    torch.testing.assert_close(every, torch.tensor([0.0, 1.0, 0.0]))


def test_counts():
    tickets = [vector(1.0, 2.0, 0.0, 0.0), vector(1.0, 0.0, 0.0, 0.0)]
    assert kept_count(tickets[:1], None) == 2
    assert kept_count(tickets, 0.25) == 3
    with pytest.raises(LowdimError, match=r"different numbers of weights \(\[1, 2\]\); give sparsity"):
        kept_count(tickets, None)
    with pytest.raises(LowdimError, match=r"sparsity must be at least 0 and below 1 .*; got 1"):
        kept_count(tickets, 1.0)
    with pytest.raises(LowdimError, match="no tickets"):
        kept_count([], None)


def test_tickets_of_two_models_are_refused():
    with pytest.raises(LowdimError, match="tickets 0 and 1 differ"):
        mix([random_ticket("mlp", 0), random_ticket("conv", 0)], [0.5, 0.5])
    with pytest.raises(LowdimError, match="tickets 0 and 2 differ"):
        mix([vector(1.0), vector(1.0), vector(1.0, 2.0)], [1, 1, 1])


def test_union_and_overlap():
    a, b = vector(1.0, 1.0, 0.0).masks, vector(0.0, 1.0, 1.0).masks
    assert union([a, b])["w"].tolist() == [True, True, True]
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, a) == 1.0
    assert iou(vector(0.0).masks, vector(0.0).masks) == 1.0
