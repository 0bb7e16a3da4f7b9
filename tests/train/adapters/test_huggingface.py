"""The Trainer of transformers: masks hold, checkpoints resume to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.zoo import ZOO
from tests.train.adapters.trainers import Text, tune
from tests.train.small import Counter
from transformers import Trainer, TrainingArguments

from lowdim.core.errors import CheckpointError, LowdimError
from lowdim.core.masks import Masks
from lowdim.train import RigL
from lowdim.train.adapters.huggingface import KeepZerosCallback, RiderCallback, SparseTrainingCallback


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


def pruned() -> Any:
    model = ZOO["llama"]()
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "_proj" in name:
            weight.data[torch.rand(weight.shape, generator=torch.Generator().manual_seed(number)) < 0.5] = 0.0
    return model


def zeros(model: Any, masks: Masks) -> int:
    weights = dict(model.named_parameters())
    return sum(int((weights[name] == 0).sum()) for name in masks)


@pytest.mark.filterwarnings("ignore")
class TestKeepZeros:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"gradient_accumulation_steps": 1, "max_grad_norm": 0.1},
            {"bf16": True},
            {"optim": "adafactor"},
            {"torch_compile": True, "torch_compile_backend": "eager"},
            {"gradient_checkpointing": True},
        ],
        ids=lambda given: next(iter(given), "defaults"),
    )
    def test_all_zeros_and_no_others(self, settings: dict[str, Any], tmp_path: Path) -> None:
        model = pruned()
        masks, before = Masks.of(model), {n: p.detach().clone() for n, p in model.named_parameters()}
        off = sum(int((~mask).sum()) for mask in masks.values())
        callback = KeepZerosCallback(masks)
        tune(tmp_path, model, callback, save_strategy="no", **settings)
        masks.check(model)
        assert zeros(model, masks) == off
        assert all(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
        assert callback.training is not None
        assert callback.training.step == 6

    def test_which_are_lost_without_it(self, tmp_path: Path) -> None:
        model = pruned()
        masks = Masks.of(model)
        tune(tmp_path, model, None, save_strategy="no", max_steps=1)
        assert zeros(model, masks) == 0

    def test_resumes_to_the_bit_also_into_a_longer_run(self, tmp_path: Path) -> None:
        model, again, longer = pruned(), pruned(), pruned()
        masks = Masks.of(model)
        tune(tmp_path, model, KeepZerosCallback(masks))
        half = str(tmp_path / "checkpoint-3")
        tune(tmp_path, again, KeepZerosCallback(), half)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        tune(tmp_path, longer, KeepZerosCallback(), half, max_steps=9, save_strategy="no")
        masks.check(longer)
        (tmp_path / "checkpoint-3" / "keep_zeros.pt").unlink()
        with pytest.raises(CheckpointError, match=r"keep_zeros\.pt does not exist"):
            tune(tmp_path, pruned(), KeepZerosCallback(), half)

    def test_the_best_checkpoint_and_a_second_training(self, tmp_path: Path) -> None:
        model, callback = pruned(), KeepZerosCallback()
        masks = Masks.of(model)
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3}
        trainer = tune(tmp_path, model, callback, metric_for_best_model="loss", greater_is_better=True, **best)
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
        masks.check(model)
        trainer.train()
        masks.check(model)
        assert callback.training is not None
        assert callback.training.masks == masks

    def test_a_checkpoint_that_has_lost_its_zeros_is_refused(self, tmp_path: Path) -> None:
        masks = Masks.of(pruned())
        tune(tmp_path / "kept", pruned(), KeepZerosCallback())
        tune(tmp_path / "lost", pruned(), None)
        found = tmp_path / "lost" / "checkpoint-3"
        shutil.copy(tmp_path / "kept" / "checkpoint-3" / "keep_zeros.pt", found)
        for callback, match in (
            (KeepZerosCallback(masks), "are not zero"),
            (KeepZerosCallback(), "was not pruned, or"),
        ):
            with pytest.raises(LowdimError, match=match):
                tune(tmp_path / "lost", pruned(), callback, str(found))


@pytest.mark.filterwarnings("ignore")
def test_a_search_for_settings_saves_in_a_folder_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("run-0", "run-1"):
        monkeypatch.setattr(Trainer, "_get_output_dir", lambda self, trial, run=run: str(tmp_path / run))
        fit(tmp_path)
        for step in (6, 12):
            assert (tmp_path / run / f"checkpoint-{step}" / "sparse_training.pt").exists()
        saved = torch.load(tmp_path / run / "checkpoint-12" / "sparse_training.pt", weights_only=True)
        assert saved["step"] == 12 and not list(tmp_path.glob("checkpoint-*"))
