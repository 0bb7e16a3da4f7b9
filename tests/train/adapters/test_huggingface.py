"""The Trainer of transformers: masks hold, checkpoints resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import VOCAB, ZOO
from tests.train.small import Counter
from torch import Tensor
from transformers import Trainer, TrainingArguments

from lowdim.core.errors import CheckpointError
from lowdim.train import RigL
from lowdim.train.adapters.huggingface import RiderCallback, SparseTrainingCallback


class Text(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(VOCAB, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def train(home: Path, callbacks: list[Any], resume: Any = None) -> Any:
    arguments = TrainingArguments(
        output_dir=str(home),
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        learning_rate=1e-2,
        save_steps=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = ZOO["llama"]()
    Trainer(model, arguments, train_dataset=Text(), callbacks=callbacks).train(resume_from_checkpoint=resume)
    return model


def fit(home: Path, resume: Any = None, **settings: Any) -> tuple[Any, SparseTrainingCallback]:
    callback = SparseTrainingCallback(sparsity=0.7, method=RigL(every=3), **settings)
    return train(home, [callback], resume), callback


@pytest.mark.filterwarnings("ignore")
def test_masks_hold_and_a_checkpoint_resumes(tmp_path: Path) -> None:
    model, callback = fit(tmp_path / "a")
    training = callback.training
    assert training is not None
    assert training.step == 12
    assert [entry["step"] for entry in training.history] == [3, 6]
    weights = dict(model.named_parameters())
    assert all(not weights[name][~mask].any() for name, mask in training.masks.items())
    assert training.sparsity() == pytest.approx(0.7, abs=1e-3)

    again, resumed = fit(tmp_path / "a", resume=str(tmp_path / "a" / "checkpoint-6"))
    assert resumed.training is not None
    assert resumed.training.masks == training.masks
    assert resumed.training.history == training.history
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_without_masks(tmp_path: Path) -> None:
    fit(tmp_path)
    (tmp_path / "checkpoint-6" / "sparse_training.pt").unlink()
    with pytest.raises(CheckpointError, match=r"sparse_training\.pt does not exist"):
        fit(tmp_path, resume=str(tmp_path / "checkpoint-6"))


@pytest.mark.filterwarnings("ignore")
def test_any_rider_rides(tmp_path: Path) -> None:
    several = [RiderCallback(Counter, "one"), RiderCallback(Counter, "hundred", start=100)]
    train(tmp_path, several)
    for callback, start in zip(several, (0, 100), strict=True):
        assert callback.training is not None
        assert callback.training.state_dict() == {"step": 12, "before": start + 12, "after": start + 12}
        assert callback.training.total_steps == 12
    assert {path.stem for path in (tmp_path / "checkpoint-6").glob("*.pt")} >= {"one", "hundred"}

    again = RiderCallback(Counter, "hundred")
    train(tmp_path, [again], resume=str(tmp_path / "checkpoint-6"))
    assert again.training is not None
    assert again.training.state_dict() == {"step": 12, "before": 112, "after": 112}
