"""The shares of ProRes follow the steps of the optimizer, in our loop and in the Trainer, and after a resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.nn.placement.decoders import decoder
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from lowdim.core.errors import LowdimError
from lowdim.models.load import load
from lowdim.nn.placement import ProRes, set_step
from lowdim.train.adapters.huggingface import RiderCallback
from lowdim.train.loop import Loop
from lowdim.train.riders.prores import ResidualWarmup


def loss(model: Any, ids: Tensor) -> Tensor:
    found: Tensor = model(ids, labels=ids, use_cache=False).loss
    return found


def shares(model: Any) -> list[float]:
    return [float(block.prores.a) for block in model.model.layers]


def looped() -> tuple[Any, Loop, list[list[float]]]:
    model = decoder("llama")
    ProRes(steps=2).apply_(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rider = ResidualWarmup(model, optimizer)
    seen: list[list[float]] = []
    model.register_forward_pre_hook(lambda m, args: seen.append(shares(m)))
    return model, Loop(model, optimizer, loss=loss, accumulate=2, riders=[rider]), seen


BATCHES = [torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(i)) for i in range(20)]


def test_in_our_loop() -> None:
    _, loop, seen = looped()
    loop.run(BATCHES)
    linear = [[min(step / (2 * block), 1.0) for block in range(1, 5)] for step in range(10)]
    expected = [row for row in linear for _ in (0, 1)]  # two batches of one step see one share
    assert torch.allclose(torch.tensor(seen), torch.tensor(expected))
    (again, resumed, _), (first, second, _) = looped(), looped()
    second.run(BATCHES[:6])
    resumed.load_state_dict(copy.deepcopy(second.state_dict()))
    assert shares(again) == shares(first) == [1.0, 0.75, 0.5, 0.375]
    losses = [loop.run(BATCHES[6:]) for loop in (second, resumed)]
    assert losses[0] == losses[1]


class Text(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(64, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


@pytest.mark.filterwarnings("ignore")
def test_in_the_trainer(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    for resume in (None, True):
        model = decoder("llama")
        ProRes(steps=2).apply_(model)
        callback = RiderCallback(ResidualWarmup, "prores")
        Trainer(model, arguments, train_dataset=Text(), callbacks=[callback]).train(resume_from_checkpoint=resume)
        assert shares(model) == [1.0, 1.0, pytest.approx(2 / 3), 0.5]
    assert torch.equal(
        load(tmp_path / "checkpoint-4").model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight
    )
    assert shares(load(tmp_path / "checkpoint-2")) == [1.0, 0.5, pytest.approx(1 / 3), 0.25]


def test_a_model_without_a_ramp() -> None:
    model = decoder("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LowdimError, match="the model has no ProRes"):
        ResidualWarmup(model, optimizer)


@pytest.mark.filterwarnings("ignore")
def test_a_second_training_goes_on_from_the_shares_of_the_first(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
    )
    model = decoder("llama")
    ProRes(steps=2).apply_(model)
    trainer = Trainer(model, arguments, train_dataset=Text(), callbacks=[RiderCallback(ResidualWarmup, "prores")])
    seen: list[list[float]] = []
    model.register_forward_pre_hook(lambda m, args: seen.append(shares(m)))
    for _ in range(2):
        trainer.train()
    assert torch.allclose(torch.tensor([row[1] for row in seen]), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("left", "after"), [(8, [1.0] * 4), (3, [1.0, 1.0, 1.0, 0.75])], ids=["ended", "half"])
def test_a_checkpoint_goes_on_from_its_shares(left: int, after: list[float], tmp_path: Path) -> None:
    model = decoder("llama")
    ProRes(steps=2).apply_(model)
    set_step(model, left)
    model.save_pretrained(tmp_path / "saved")
    ours, theirs = load(tmp_path / "saved"), load(tmp_path / "saved")
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    rider = ResidualWarmup(ours, optimizer)
    assert (rider.step, shares(ours)) == (left, shares(model))
    Loop(ours, optimizer, loss=loss, riders=[rider]).run(BATCHES[:3])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
    )
    callback = RiderCallback(ResidualWarmup, "prores")
    Trainer(theirs, arguments, train_dataset=Text(), callbacks=[callback]).train()
    assert shares(ours) == shares(theirs) == after
