"""AST: masks follow the weights, pruned ones decay, counts stay exact."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowdim.core import registry
from lowdim.core.errors import CheckpointError, LowdimError, NumericalError, PatternError, RecipeError
from lowdim.core.pattern import NM, Pattern, Unstructured, parse
from lowdim.runs import tree
from lowdim.train.loop import Loop
from lowdim.train.nm.adaptive import AdaptiveMasks
from lowdim.train.nm.ast import AST

STEPS = 12


def net(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 4))


def batch(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=source), torch.randint(4, (16,), generator=source)


BATCHES = [batch(step) for step in range(STEPS)]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(batch[0].to(dtype)).float(), batch[1])


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def drawn(parameters: Mapping[str, Tensor], pattern: Pattern, share: float = 0.5) -> dict[str, Tensor]:
    return {n: pattern.mask(p.detach().abs(), round(p.numel() * share)) for n, p in parameters.items()}


def begun(
    model: nn.Module,
    settings: AST,
    pattern: str | Pattern = "2:4",
    masks: Mapping[str, Tensor] | None = None,
    optimizer: Any = torch.optim.AdamW,
    master: bool = False,
    **more: Any,
) -> tuple[Loop, AdaptiveMasks]:
    parameters = matrices(model)
    legal = parse(pattern).resolve("matrix")
    trained = optimizer(model.parameters(), lr=0.02)
    given = drawn(parameters, legal) if masks is None else masks
    moving = AdaptiveMasks(parameters, given, pattern, settings, trained, STEPS, **more)
    loop = Loop(model, trained, loss=loss, projected=moving.projections(), riders=[moving], master=master)
    return loop, moving


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def wide(loop: Loop) -> list[Tensor]:
    return list(loop.state_dict()["master"])


# ---------------------------------------------------------------- identities


def test_groups_keep_their_number_after_every_refresh() -> None:
    model = net()
    loop, moving = begun(model, AST(every=2))

    def look(step: int, _: float) -> None:
        for name, parameter in matrices(model).items():
            kept = moving.masks[name].reshape(-1, 4).sum(1)
            assert kept.tolist() == [2] * len(kept)
            assert bool((parameter[~moving.masks[name]] == 0).all())
            assert not bool(parameter[~moving.masks[name]].signbit().any())

    loop.run(BATCHES, look)
    assert [update["step"] for update in moving.history] == [2, 4, 6, 8, 10]  # none after the last step
    assert any(update["flipped"] for update in moving.history)


def test_without_decay_it_is_the_plain_straight_through_estimator() -> None:
    model, other = net(), net()
    loop, moving = begun(model, AST(decay=0.0, every=3), optimizer=torch.optim.SGD)
    held = {name: p.detach().clone() for name, p in matrices(other).items()}
    masks = drawn(held, NM(2, 4))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.02)
    for step, each in enumerate(BATCHES, 1):
        for name, parameter in matrices(other).items():
            parameter.data = held[name].masked_fill(~masks[name], 0.0)
        optimizer.zero_grad()
        loss(other, each).backward()
        for name, parameter in matrices(other).items():
            parameter.data = held[name]
        optimizer.step()
        if step in (3, 6, 9):
            masks = drawn(held, NM(2, 4))
    loop.run(BATCHES)
    assert all(torch.equal(mine, held[name]) for name, mine in zip(held, wide(loop), strict=True))
    assert all(torch.equal(moving.masks[name], masks[name]) for name in held)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_a_mask_of_ones_is_dense_training(pattern: str) -> None:
    model, other = net(), net()
    ones = {name: torch.ones_like(p, dtype=torch.bool) for name, p in matrices(model).items()}
    begun(model, AST(decay=0.5, ramp=0.0, every=1), pattern, ones)[0].run(BATCHES)
    Loop(other, torch.optim.AdamW(other.parameters(), lr=0.02), loss=loss).run(BATCHES)
    assert torch.equal(weights(model), weights(other))


def one(settings: AST, gradient: float = 0.0, steps: int = 1) -> tuple[Tensor, AdaptiveMasks]:
    """Train W = [4, -1, 3, 2] under the mask [1, 0, 1, 0] with a given gradient; return W."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, -1.0, 3.0, 2.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    masks = {"weight": torch.tensor([[True, False, True, False]])}
    moving = AdaptiveMasks({"weight": model.weight}, masks, "2:4", settings, optimizer, 8)
    loop = Loop(
        model,
        optimizer,
        loss=lambda model, x: model(x).sum(),
        projected=moving.projections(),
        riders=[moving],
    )
    loop.run([torch.full((1, 4), gradient)] * steps)
    return loop.state_dict()["master"][0], moving


def test_a_pruned_weight_without_a_gradient_shrinks_and_a_kept_one_does_not() -> None:
    assert one(AST(decay=0.25, ramp=0.0, every=7))[0].tolist() == [[4.0, -0.75, 3.0, 1.5]]


def test_the_gradient_of_a_pruned_weight_goes_straight_through() -> None:
    assert one(AST(decay=0.0, every=7), 0.5)[0].tolist() == [[3.5, -1.5, 2.5, 1.5]]


def test_the_decay_rises_linearly() -> None:
    # T_0 = 4 of 8 steps: (1 - 1/16)(1 - 2/16)(1 - 3/16)(1 - 4/16)(1 - 4/16)
    left = 15 / 16 * 14 / 16 * 13 / 16 * 12 / 16 * 12 / 16
    found, moving = one(AST(decay=0.25, ramp=0.5, every=2), steps=5)
    assert found[0].tolist() == pytest.approx([4.0, -left, 3.0, 2 * left])
    assert [update["decay"] for update in moving.history] == [0.125, 0.25]


def test_a_weight_comes_back_and_the_flips_are_counted() -> None:
    # all grow by 1: [5, 0, 4, 3], and the same two are the largest
    found, moving = one(AST(decay=0.0, every=1), -1.0, steps=1)
    assert found.tolist() == [[5.0, 0.0, 4.0, 3.0]]
    assert moving.history == [{"step": 1, "decay": 0.0, "flipped": 0.0, "from_start": 0.0}]
    found, moving = one(AST(decay=0.0, every=1), 3.0, steps=2)
    assert found.tolist() == [[-2.0, -7.0, -3.0, -4.0]]  # at step 1: [1, -4, 0, -1], of ties the first is kept
    assert moving.masks["weight"].tolist() == [[False, True, False, True]]
    assert [(u["flipped"], u["from_start"]) for u in moving.history] == [(0.5, 0.5), (0.5, 1.0)]


# ---------------------------------------------------------------- patterns and layers


@pytest.mark.parametrize(
    "pattern", [Unstructured("row"), Unstructured("matrix"), Unstructured("global"), NM(1, 4), parse("2x2")], ids=repr
)
def test_every_layer_keeps_as_many_as_at_the_start(pattern: Pattern) -> None:
    model = net()
    share = 0.25 if pattern == NM(1, 4) else 0.5
    masks = drawn(matrices(model), pattern, share)
    loop, moving = begun(model, AST(every=2), pattern, masks)
    loop.run(BATCHES)
    for name, mask in masks.items():
        assert moving.masks.kept(name) == int(mask.sum())
        assert torch.equal(pattern.mask(moving.masks[name].float(), int(mask.sum())), moving.masks[name])
    assert moving.history[-1]["from_start"] > 0


def test_layers_of_other_numbers_keep_their_own() -> None:
    model = net()
    some = matrices(model)
    masks = {"0.weight": NM(1, 4).mask(some["0.weight"].abs(), 32), "2.weight": NM(2, 4).mask(some["2.weight"], 32)}
    loop, moving = begun(model, AST(every=2), "2:4", masks)
    loop.run(BATCHES)
    assert [moving.masks.kept(name) for name in masks] == [32, 32]


def test_kept_zeros_of_a_group_are_filled() -> None:
    model = net()
    masks = drawn(matrices(model), NM(2, 4))
    masks["0.weight"][0, masks["0.weight"][0].nonzero()[0]] = False
    loop, moving = begun(model, AST(every=2), "2:4", masks)
    loop.run(BATCHES)
    assert moving.masks.kept("0.weight") == 64


def test_gpt2s_layers_are_grouped_along_their_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(4, 8))
    weight = model[0].weight
    mask = NM(2, 4).mask(weight.detach().t().abs(), 16).t()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    moving = AdaptiveMasks({"w": weight}, {"w": mask}, "2:4", AST(every=1), optimizer, STEPS, transposed={"w"})
    Loop(model, optimizer, loss=loss, projected=moving.projections(), riders=[moving]).run(BATCHES)
    assert moving.masks["w"].t().reshape(-1, 4).sum(1).tolist() == [2] * 8
    assert any(update["flipped"] for update in moving.history)


def test_experts_in_one_parameter_have_masks_of_their_own() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, 8))
    mask = torch.stack([Unstructured("matrix").mask(w.abs(), k) for w, k in zip(weight.data, (8, 16, 20), strict=True)])
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scale = torch.rand(3, 8)
    moving = AdaptiveMasks(
        {"w": weight},
        {"w": mask},
        Unstructured("matrix"),
        AST(every=1, score="wanda"),
        optimizer,
        2,
        column_scales={"w": scale},
    )
    project = moving.projections()[weight]
    assert torch.equal(project(weight.data), weight.data * mask)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    found = moving.masks["w"]
    assert found.sum((1, 2)).tolist() == [8, 16, 20]
    scores = weight.data.abs() * scale[:, None]
    assert all(torch.equal(found[i], Unstructured("matrix").mask(scores[i], k)) for i, k in enumerate((8, 16, 20)))


def test_wanda_weighs_the_columns() -> None:
    model = net()
    scales = {name: torch.ones(p.shape[1]) for name, p in matrices(model).items()}
    scales["0.weight"][::2] = 1e4
    loop, moving = begun(model, AST(every=2, score="wanda"), column_scales=scales)
    loop.run(BATCHES)
    assert moving.masks["0.weight"][:, ::2].all()
    assert not moving.masks["0.weight"][:, 1::2].any()
    assert not moving.masks["2.weight"][:, ::2].all()


def test_a_narrow_model_trains_through_wide_copies() -> None:
    model = net().bfloat16()
    loop, moving = begun(model, AST(every=2), master=True)
    loop.run(BATCHES)
    for (name, parameter), copy in zip(matrices(model).items(), wide(loop)[::2], strict=True):
        mask = moving.masks[name]
        assert copy.dtype == torch.float32
        assert torch.equal(parameter.data, copy.masked_fill(~mask, 0.0).bfloat16())
        assert bool(copy[~mask].all())


# ---------------------------------------------------------------- going on


def test_it_goes_on_with_the_same_bytes_from_any_step() -> None:
    loop = begun(net().bfloat16(), AST(every=3, decay=0.01), master=True)[0]
    states = [deepcopy(loop.state_dict())]
    loop.run(BATCHES, lambda *_: states.append(deepcopy(loop.state_dict())))
    text, tensors = tree.pack(loop.state_dict())
    for step, state in enumerate(states[:-1]):
        other = begun(net().bfloat16(), AST(every=3, decay=0.01), master=True)[0]
        other.load_state_dict(tree.unpack(*tree.pack(state)))
        other.run(BATCHES[step:])
        again, others = tree.pack(other.state_dict())
        assert again == text
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)


def test_a_state_of_another_run_is_refused() -> None:
    loop, moving = begun(net(), AST(every=3))
    state = moving.state_dict()
    before = moving.masks.hash()
    loop.run(BATCHES)
    moved = moving.state_dict()
    assert moving.masks.hash() != before
    for other, words in (
        (begun(net(), AST(every=2))[1], "another settings.*'every': 3.*'every': 2"),
        (begun(net(32), AST(every=3))[1], r"another layers.*\[16, 8\].*\[32, 8\]"),
        (begun(net(), AST(every=3), NM(2, 8), drawn(matrices(net()), NM(2, 8), 0.25))[1], "another pattern"),
    ):
        was = other.masks.hash()
        with pytest.raises(CheckpointError, match=words):
            other.load_state_dict(moved)
        assert other.masks.hash() == was
    with pytest.raises(CheckpointError, match="not saved by AdaptiveMasks"):
        moving.load_state_dict({"step": 1})
    moving.load_state_dict(state)
    assert moving.masks.hash() == before
    assert moving.history == []


def test_it_gets_off() -> None:
    model = net()
    loop, moving = begun(model, AST(every=1))
    moving.finish()
    loop.run(BATCHES)
    assert moving.history == []


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_is_named() -> None:
    model = net()
    some, optimizer = matrices(model), torch.optim.SGD(model.parameters(), lr=0.1)
    masks = drawn(some, NM(2, 4))

    def made(**other: Any) -> AdaptiveMasks:
        given: dict[str, Any] = {"parameters": some, "masks": masks, "pattern": "2:4", "settings": AST()}
        return AdaptiveMasks(**{**given, "optimizer": optimizer, "total_steps": 100, **other})

    cases: list[tuple[type[LowdimError], str, dict[str, Any]]] = [
        (RecipeError, "every 10 steps never move in a run of 10", {"total_steps": 10}),
        (RecipeError, "total_steps must be a whole number", {"total_steps": 0}),
        (RecipeError, "there is no weight", {"parameters": {}, "masks": {}}),
        (LowdimError, "2.weight has no mask", {"masks": {"0.weight": masks["0.weight"]}}),
        (LowdimError, "2.weight has no weight", {"parameters": {"0.weight": some["0.weight"]}}),
        (LowdimError, r"0.weight has shape \(8, 16\)", {"masks": masks | {"0.weight": masks["0.weight"].t()}}),
        (LowdimError, "0.weight is not trained", {"optimizer": torch.optim.SGD([some["2.weight"]], lr=0.1)}),
        (PatternError, "mask of 0.weight is not one of pattern 2:4", {"masks": drawn(some, Unstructured("matrix"))}),
        (PatternError, "0.weight has 8 inputs, not a multiple of 3", {"pattern": NM(1, 3)}),
        (RecipeError, "Wanda needs the size.*lacks 0.weight", {"settings": AST(score="wanda")}),
        (RecipeError, "Magnitude looks at no inputs", {"column_scales": {"0.weight": torch.ones(8)}}),
        (
            LowdimError,
            r"column scales of 0.weight have shape \(7,\); it has 8 inputs",
            {"settings": AST(score="wanda"), "column_scales": {n: torch.ones(7) for n in some}},
        ),
    ]
    for error, words, other in cases:
        with pytest.raises(error, match=words):
            made(**other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decay": -1e-4}, "decay must be at least 0"),
        ({"ramp": 1.5}, "ramp must be between 0 and 1"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"score": "obs"}, "unknown score 'obs'"),
        ({"slorb": -1}, "slorb must be a whole number"),
        ({"slorb_init": "xavier"}, "unknown slorb_init 'xavier'"),
    ],
)
def test_settings_are_held_to_their_ranges(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        AST(**settings)


def test_a_loop_must_compute_with_the_masks() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moving = AdaptiveMasks(matrices(model), drawn(matrices(model), NM(2, 4)), "2:4", AST(), optimizer, STEPS)
    with pytest.raises(LowdimError, match=r"nothing computes with the masked 0\.weight"):
        Loop(model, optimizer, loss=loss, riders=[moving]).run(BATCHES)


def test_nan_is_named_by_its_weight() -> None:
    model = net()
    loop, _ = begun(model, AST(every=1))
    with pytest.raises(NumericalError, match=r"0\.weight holds NaN"):
        loop.run([(batch(0)[0] * torch.nan, batch(0)[1])])


def test_it_is_registered() -> None:
    entry = registry.find("masks", "ast")
    assert entry.load() is AST
    assert (entry.arxiv, entry.year) == ("2407.20584", 2025)


def test_what_is_pruned_decays_where_an_objective_is_climbed_too() -> None:
    ends = []
    for sign, up in ((1.0, False), (-1.0, True)):
        model = net()
        parameters, optimizer = matrices(model), torch.optim.SGD(model.parameters(), lr=0.02, maximize=up)
        masks = drawn(parameters, parse("2:4"))
        moving = AdaptiveMasks(parameters, masks, "2:4", AST(every=2, decay=0.5), optimizer, STEPS)
        loop = Loop(
            model,
            optimizer,
            loss=lambda m, batch, sign=sign: sign * loss(m, batch),
            projected=moving.projections(),
            riders=[moving],
        )
        loop.run(BATCHES)
        ends.append(weights(model))
    assert torch.equal(*ends)
