"""Losses of ours in TRL's DPOTrainer; only where TRL is installed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import model as model

from lowdim.core.errors import LowdimError
from lowdim.train import DPO, TODO

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TRL's own

ROWS = [
    {"prompt": "ab", "chosen": "c", "rejected": "dd", "tie": False},
    {"prompt": "xy", "chosen": "zz", "rejected": "a", "tie": True},
    {"prompt": "b", "chosen": "cd", "rejected": "e", "tie": False},
    {"prompt": "de", "chosen": "f", "rejected": "g", "tie": False},
]


def losses(place: Path, home: Path, rows: list[dict[str, Any]], **named: Any) -> list[float]:
    """Train for three steps on all rows; return the losses, by TRL's own DPO where no loss is given."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from lowdim.train.adapters.trl import PreferenceTrainer

    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    given = {"precompute_ref_log_probs": True, **named.pop("args", {})}
    config = DPOConfig(
        str(home), max_steps=3, per_device_train_batch_size=len(rows), learning_rate=1e-3, beta=0.1, logging_steps=1,
        report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, activation_checkpointing=False,
        lr_scheduler_type="constant", **given,
    )  # fmt: skip
    cls = PreferenceTrainer if named else DPOTrainer
    net = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    trainer = cls(net, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, **named)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_ties_have_their_loss(model: Path, tmp_path: Path) -> None:
    found = losses(model, tmp_path, ROWS, preference=TODO(beta=1.0))
    win, tie = math.log1p(math.exp(0.5)), 2 * math.log1p(math.exp(0.5)) - math.log(math.expm1(1.0))
    assert found[0] == pytest.approx((3 * win + tie) / 4, abs=1e-3) and found[2] < found[0]


def test_without_ties_and_margin_it_is_their_dpo(model: Path, tmp_path: Path) -> None:
    rows = [row for row in ROWS if not row["tie"]]
    theirs = losses(model, tmp_path / "trl", rows)
    for rule in (TODO(beta=0.1, alpha=0.0), DPO(beta=0.1)):
        assert losses(model, tmp_path / "ours", rows, preference=rule) == pytest.approx(theirs, abs=2e-4)


def test_what_cannot_be_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(LowdimError, match="a row is a tie, which this loss has no place for"):
        losses(model, tmp_path, ROWS, preference=DPO())
    with pytest.raises(LowdimError, match="needs DPOConfig"):
        losses(model, tmp_path, ROWS, preference=TODO(), args={"precompute_ref_log_probs": False})
