from __future__ import annotations

import pytest
import torch
from tests.models.tickets import build, matrices, mlp

from lowdim.core.errors import RecipeError
from lowdim.core.masks import Masks
from lowdim.core.random import generator
from lowdim.merge.combine import largest
from lowdim.train.tickets.instant import InstantSoup

TOTAL = 72
X = torch.randn(64, 6, generator=generator(0, "x"))
Y = torch.randint(0, 3, (64,), generator=generator(0, "y"))


class Loop:
    """A training loop of five steps per epoch, in an order of its own for each seed."""

    def __init__(self, model):
        self.model, self.calls = model, []
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

    def __call__(self, epochs, seed):
        self.calls.append((epochs, seed))
        draw = generator(seed, "order")
        for _ in range(round(10 * epochs)):
            rows = torch.randint(0, 64, (16,), generator=draw)
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(X[rows]), Y[rows]).backward()
            self.optimizer.step()


def prune(sparsity=0.8, seed=0, **settings):
    model = build("mlp")
    loop = Loop(model)
    found = InstantSoup(**settings).prune(model, loop.optimizer, loop, sparsity, include=["*"], seed=seed)
    return model, loop, found


@pytest.mark.parametrize("merge", ["union", "intersection"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.83, 0.97])
def test_reaches_the_sparsity_exactly_and_leaves_the_model_pruned(merge, sparsity):
    model, _, found = prune(sparsity, merge=merge)
    assert found.masks.kept() == round((1 - sparsity) * TOTAL)
    for name, mask in found.masks.items():
        assert not dict(model.named_parameters())[name][~mask].any()


def test_union_keeps_at_least_what_one_keeps_and_intersection_at_most():
    kept = {merge: prune(merge=merge, rounds=1)[2].rounds[0].kept for merge in ("union", "intersection")}
    one = round(0.9 * TOTAL)
    assert kept["intersection"] < one < kept["union"]
    assert prune(denoisers=1, rounds=1)[2].rounds[0].kept == one


def test_one_copy_is_iterative_magnitude_pruning():
    model = build("mlp")
    loop = Loop(model)
    masks = Masks.from_dict({n: torch.ones_like(dict(model.named_parameters())[n]).bool() for n in matrices(model)})

    def train(epochs, seed):
        handle = loop.optimizer.register_step_post_hook(lambda *_: masks.apply_(model))
        loop(epochs, seed)
        handle.remove()

    keep = TOTAL
    for _ in range(3):
        train(0.5, 4)
        weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
        state = torch.utils._pytree.tree_map(
            lambda v: v.clone() if isinstance(v, torch.Tensor) else v, loop.optimizer.state_dict()
        )
        train(0.2, 5)
        keep = round(0.9 * keep)
        masks = Masks.from_dict(largest(dict(model.named_parameters()), masks, keep))
        model.load_state_dict(weights)
        loop.optimizer.load_state_dict(state)
        masks.apply_(model)
    train(0.5, 4)
    expected = Masks.from_dict(largest(dict(model.named_parameters()), masks, 14))
    expected.apply_(model)
    other, _, found = prune(1 - 14 / TOTAL, seed=4, denoisers=1, weak=0.2, rounds=3)
    assert found.masks == expected
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_copies_on_one_data_order_agree_and_merge_to_themselves():
    model = build("mlp")
    loop = Loop(model)
    found = InstantSoup(rounds=2).prune(model, loop.optimizer, lambda epochs, _: loop(epochs, 0), 0.8, include=["*"])
    assert [(r.kept, r.agreement) for r in found.rounds] == [(65, 1.0), (58, 1.0)]


def test_copies_leave_no_trace_in_weights_and_optimizer():
    straight = build("mlp")
    loop = Loop(straight)
    loop(0.5, 0)
    loop(0.5, 0)
    model, other, _ = prune(0.0, slack=0.0, rounds=1, step=1e-9)
    assert other.calls == [(0.5, 0), *((0.1, k) for k in range(1, 6)), (0.5, 0)]
    for a, b in zip(straight.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(straight.parameters(), model.parameters(), strict=True):
        buffers = [loop.optimizer.state[a]["momentum_buffer"], other.optimizer.state[b]["momentum_buffer"]]
        assert torch.equal(*buffers)


def test_masked_weights_are_zero_during_training():
    model = build("mlp")
    loop = Loop(model)
    zeros = []

    def train(epochs, seed):
        loop(epochs, seed)
        zeros.append(sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1))

    found = InstantSoup(denoisers=2, rounds=3).prune(model, loop.optimizer, train, 0.8, include=["*"])
    after = [0, *(TOTAL - r.kept for r in found.rounds)]
    assert zeros == [n for n in after[:-1] for _ in range(3)] + after[-1:]
    assert found.one_shot == TOTAL - 14 - after[-1]


def test_stops_within_slack_of_the_target():
    found = prune(0.12, slack=0.05, denoisers=1)[2]
    assert [r.kept for r in found.rounds] == [65]  # 7 of 72 gone, 2 to go, fewer than 3.6
    assert found.one_shot == 2


def test_bad_input_is_refused():
    model = mlp()
    loop = Loop(model)
    with pytest.raises(RecipeError, match=r"7\.weight"):
        InstantSoup().prune(model, loop.optimizer, loop, 0.5, include=["7.weight"])
    with pytest.raises(RecipeError, match=r"sparsity must be at least 0 and below 1 .*; got 1"):
        InstantSoup().prune(model, loop.optimizer, loop, 1.0)
    for settings in ({"denoisers": 0}, {"step": 1.0}, {"weak": -1}, {"merge": "median"}, {"rounds": -1}):
        with pytest.raises(RecipeError, match=next(iter(settings))):
            InstantSoup(**settings)


def test_the_head_stays_dense_by_default():
    model = build("mlp")
    loop = Loop(model)
    found = InstantSoup(rounds=1).prune(model, loop.optimizer, loop, 0.5)
    assert list(found.masks) == ["0.weight"]
    assert found.masks.kept() == 24
    assert model[2].weight.all()
