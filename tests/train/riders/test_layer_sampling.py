"""Blocks that take turns: the chances, what stands still, what is remembered, other people's loops."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import finished
from tests.train.riders import sampled
from tests.train.riders.sampled import BLOCKS, Net, adamw, data, loss, train, weights
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lowdim.core.errors import CheckpointError, LowdimError, RecipeError
from lowdim.core.recipe.families import build
from lowdim.train.adapters.huggingface import RiderCallback
from lowdim.train.loop import Loop
from lowdim.train.optimizers.galore import GaLore
from lowdim.train.riders.layer_sampling import LayerSampling, _tensors
from lowdim.train.riders.lisa import LISA
from lowdim.train.riders.ows import OWS, outlier_shares
from lowdim.train.riders.sampling import Sampling


def frequencies(sampling: Sampling, probabilities: list[float], draws: int) -> Tensor:
    """Return how often each block was among the active ones."""
    blocks = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in probabilities)
    rider = LayerSampling(
        nn.ModuleDict({"layers": blocks}), torch.optim.SGD(blocks.parameters(), lr=0.1), sampling,
        probabilities=probabilities,
    )  # fmt: skip
    counts = torch.zeros(len(probabilities))
    for step in range(1, draws + 1):
        rider.stepped(step)
        counts[list(rider.active)] += 1
    return counts / draws


# ---------------------------------------------------------------- chances


def test_one_block_at_a_time_comes_as_often_as_its_probability() -> None:
    p, draws = torch.tensor([0.5, 0.3, 0.2]), 2000
    found = frequencies(LISA(active=1, every=1), p.tolist(), draws)
    assert ((found - p).abs() < 3 * (p * (1 - p) / draws).sqrt()).all()


def test_two_of_three_are_drawn_one_after_the_other() -> None:
    """The first is among them with .5 + .3 * .5 / .7 + .2 * .5 / .8 = 0.839, and not with 2 * .5."""
    draws = 3000
    found = frequencies(LISA(active=2, every=1), [5.0, 3.0, 2.0], draws)
    assert float(found[0]) == pytest.approx(0.839, abs=3 * 0.0067)
    assert float(found.sum()) == pytest.approx(2.0)


def test_orders_of_depth() -> None:
    assert LISA().worths(4, None) == [1.0] * 4
    assert LISA(order="increase").worths(4, None) == [1.0, 2.0, 3.0, 4.0]
    assert LISA(order="decrease").worths(4, None) == [4.0, 3.0, 2.0, 1.0]
    assert build("sampling", {"name": "owlore", "active": 3}) == OWS(active=3)


def test_outliers_are_counted_on_data() -> None:
    model = Net()
    with torch.no_grad():
        model.layers[2][0].weight[0, :3] = 50.0  # three of 120 weights of the block stand out
    before, batches = weights(model), [data(step) for step in range(3)]
    shares = outlier_shares(model, batches, m=5.0)
    assert torch.equal(before, weights(model))
    assert shares[2] == pytest.approx(3 / 120)
    assert shares[0] < 0.02
    rider = LayerSampling(model, adamw(model), OWS(active=1, m=5.0), data=batches)
    assert rider.probabilities == pytest.approx([share / sum(shares) for share in shares])


# ---------------------------------------------------------------- what stands still


def test_frozen_blocks_stand_still_to_the_bit_and_the_rest_trains() -> None:
    model = Net()
    optimizer = adamw(model)
    rider = LayerSampling(model, optimizer, LISA(active=1, every=2))
    seen = set()
    for step in range(10):
        active = rider.active
        seen.add(active)
        before = [torch.cat([p.detach().flatten() for p in block.parameters()]) for block in model.layers]
        outside = model.head.weight.detach().clone()
        train(model, optimizer, range(step, step + 1))
        for index, block in enumerate(model.layers):
            after = torch.cat([p.detach().flatten() for p in block.parameters()])
            assert torch.equal(before[index], after) == (index not in active)
        assert not torch.equal(outside, model.head.weight)
        assert (rider.active != active) <= ((step + 1) % 2 == 0)
    assert len(seen) > 1
    assert [each["step"] for each in rider.history] == [0, 2, 4, 6, 8, 10]


def test_all_blocks_at_a_time_is_plain_training() -> None:
    ends = []
    for sample in (False, True):
        model = Net()
        optimizer = adamw(model)
        if sample:
            LayerSampling(model, optimizer, LISA(active=BLOCKS, every=1))
        train(model, optimizer, range(5))
        ends.append(weights(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("galore", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_the_optimizer_remembers_the_active_blocks_alone(galore: bool, keep: bool) -> None:
    def made() -> tuple[Net, torch.optim.Optimizer]:
        model = Net()
        return model, GaLore(rank=2).build(model) if galore else adamw(model)

    full, plain = made()
    train(full, plain, range(1))
    frozen = {id(p) for block in full.layers[1:] for p in block.parameters()}
    bytes_ = {id(p): sum(v.nbytes for v in s.values() if isinstance(v, Tensor)) for p, s in plain.state.items()}
    everything, one = sum(bytes_.values()), sum(size for place, size in bytes_.items() if place not in frozen)
    model, optimizer = made()
    rider = LayerSampling(model, optimizer, LISA(active=1, every=1, keep_state=keep))
    train(model, optimizer, range(24))
    assert {each["active"][0] for each in rider.history} == set(range(BLOCKS))
    assert max(each["state_bytes"] for each in rider.history) == (everything if keep else one)


def test_what_was_frozen_before_stays_frozen() -> None:
    model = Net()
    for block in model.layers:
        block[0].weight.requires_grad_(False)
    optimizer = adamw(model)
    rider = LayerSampling(model, optimizer, LISA(active=2, every=1))
    before = model.layers[0][0].weight.detach().clone()
    train(model, optimizer, range(6))
    assert torch.equal(before, model.layers[0][0].weight)
    rider.remove()
    assert [p.requires_grad for p in model.layers[0].parameters()] == [False, True, True, True]
    train(model, optimizer, range(3))
    assert rider.step == 6


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointed_blocks_train_behind_frozen_ones(reentrant: bool, table: bool) -> None:
    ends = []
    for checkpointed in (None, reentrant):
        model = Net(checkpointed)
        model.table.requires_grad_(table)
        optimizer = adamw(model)
        rider = LayerSampling(model, optimizer, LISA(active=1, every=1))
        train(model, optimizer, range(8))
        assert (model.hook is None) == table
        rider.remove()
        assert model.hook is None
        ends.append(weights(model))
    assert torch.allclose(*ends, atol=1e-6)


# ---------------------------------------------------------------- loops


def test_a_loop_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    def made() -> Loop:
        model = Net()
        optimizer = adamw(model)
        return Loop(
            model, optimizer, loss=loss, clip=1.0, riders=[LayerSampling(model, optimizer, LISA(active=2, every=3))]
        )

    loop = made()
    loop.run(map(data, range(5)))
    torch.save(loop.state_dict(), tmp_path / "state")
    loop.run(map(data, range(5, 12)))
    again = made()
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    again.run(map(data, range(5, 12)))
    assert torch.equal(weights(loop.model), weights(again.model))
    assert loop.riders[0].state_dict() == again.riders[0].state_dict()
    model = Net()
    other = LayerSampling(model, adamw(model), LISA(active=1, every=3))
    with pytest.raises(CheckpointError, match="Use the same sampling"):
        other.load_state_dict(loop.riders[0].state_dict())


def turns(rider: LayerSampling) -> list[list[int]]:
    return [each["active"] for each in rider.history]


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("sampling", [LISA(active=1, every=3), OWS(active=1, every=3)])
def test_an_optimizer_that_is_read_before_the_rider_is_made_keeps_what_it_knows(sampling: Sampling, seed: int) -> None:
    """The blocks of step 0, which the rider draws first, are not those that train at the checkpoint."""
    given: dict[str, Any] = {"probabilities": [1.0, 2.0, 3.0, 4.0], "seed": seed}
    model = Net()
    optimizer = adamw(model)
    rider = LayerSampling(model, optimizer, sampling, **given)
    train(model, optimizer, range(5))
    saved = deepcopy((model.state_dict(), optimizer.state_dict(), rider.state_dict()))
    train(model, optimizer, range(5, 9))
    assert turns(rider)[0] != turns(rider)[1]

    again = Net()
    again.load_state_dict(saved[0])
    other = adamw(again)
    other.load_state_dict(saved[1])
    resumed = LayerSampling(again, other, sampling, **given)
    resumed.load_state_dict(saved[2])
    assert resumed.state_bytes() == sum(held.nbytes for held in _tensors(saved[1]["state"]))
    train(again, other, range(5, 9))
    assert torch.equal(weights(model), weights(again))
    assert rider.state_dict() == resumed.state_dict()


def test_a_fresh_run_releases_what_the_optimizer_knew_before_it() -> None:
    model = Net()
    optimizer = adamw(model)
    train(model, optimizer, range(2))
    rider = LayerSampling(model, optimizer, LISA(active=1, every=9))
    everything = rider.state_bytes()
    train(model, optimizer, range(2, 3))
    (active,) = rider.active
    frozen = {p for index, block in enumerate(model.layers) if index != active for p in block.parameters()}
    assert not frozen & set(optimizer.state)
    assert rider.state_bytes() < everything


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling": LISA(active=1, every=1)},
        {"sampling": LISA(active=1, every=3)},
        {"sampling": OWS(active=1, every=3), "probabilities": [1.0, 2.0, 3.0]},
    ],
)
def test_the_trainer_of_transformers_takes_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The Trainer reads the optimizer before it makes the rider; here inside a turn of other blocks than the first."""
    rows = [{"input_ids": (ids := list(range(i, i + 6))), "labels": ids} for i in range(16)]

    def trained(home: str, steps: int, resume: bool = False) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **sizes))
        arguments = TrainingArguments(
            str(tmp_path / home), max_steps=steps, save_steps=5, per_device_train_batch_size=2, report_to=[],
            use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant", learning_rate=1e-2,
            activation_checkpointing=True,
        )  # fmt: skip
        callback = RiderCallback(LayerSampling, "layer_sampling", seed=4, **settings)
        Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train(resume_from_checkpoint=resume)  # type: ignore[arg-type]
        assert callback.training is not None
        return weights(model), turns(callback.training)

    whole = trained("whole", 6)
    trained("parts", 5)
    again = trained("parts", 6, True)
    assert whole[1] == again[1] and len({tuple(a) for a in whole[1]}) > 1
    assert torch.equal(whole[0], again[0])


def test_two_ranks_take_the_same_turns_and_train_as_one(tmp_path: Path) -> None:
    done = finished(2, tmp_path, sampled.ranked)
    found = [json.loads((done / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    model = Net()
    optimizer = adamw(model)
    rider = LayerSampling(model, optimizer, LISA(active=2, every=2))
    train(model, optimizer, range(sampled.STEPS))
    assert [each["active"] for each in found[0]["history"]] == [each["active"] for each in rider.history]
    assert torch.allclose(torch.tensor(found[0]["weights"]), weights(model), atol=1e-4)
    assert "find_unused_parameters=True" in found[0]["ddp"]
    assert "fully_shard decides in its first pass" in found[0]["fsdp"]


# ---------------------------------------------------------------- what is refused


def test_what_cannot_take_turns_is_refused() -> None:
    model = Net()
    model.layers[1].requires_grad_(False)
    early = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(LowdimError, match="block 1 has no trainable weight"):
        LayerSampling(model, early, LISA())
    model.layers[1].requires_grad_(True)
    with pytest.raises(
        LowdimError, match=r"block 1 has weights that the optimizer has not.*before any block is frozen"
    ):
        LayerSampling(model, early, LISA())
    with pytest.raises(RecipeError, match="active=5 of 4 blocks"):
        LayerSampling(model, adamw(model), LISA(active=5))
    with pytest.raises(RecipeError, match="Give data to measure them on, or probabilities"):
        LayerSampling(model, adamw(model), OWS(active=2))
    with pytest.raises(RecipeError, match="sampling lisa looks at no data"):
        LayerSampling(model, adamw(model), LISA(), data=data(0))
    with pytest.raises(RecipeError, match="Leave one of them out"):
        LayerSampling(model, adamw(model), OWS(active=1), data=data(0), probabilities=[1, 1, 1, 1])
    for wrong in ([1.0, 2.0], [1, 1, 1, -1], [1, 1, 1, float("nan")]):
        with pytest.raises(RecipeError, match="probabilities must be 4 numbers of at least 0"):
            LayerSampling(model, adamw(model), LISA(), probabilities=wrong)
    with pytest.raises(RecipeError, match="only 1 blocks have a probability above 0"):
        LayerSampling(model, adamw(model), LISA(active=2), probabilities=[1, 0, 0, 0])
