"""A small text, and the Trainer of transformers on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.models.zoo import VOCAB
from torch import Tensor
from transformers import Trainer, TrainingArguments


class Text(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(VOCAB, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def tune(home: Path, model: Any, callback: Any, resume: Any = None, optimizer: Any = None, **settings: Any) -> Trainer:
    given: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.5,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(output_dir=str(home), **(given | settings))
    callbacks = [callback] if callback else []
    both: Any = (optimizer, None)
    trainer = Trainer(model, arguments, train_dataset=Text(), eval_dataset=Text(), callbacks=callbacks, optimizers=both)
    trainer.train(resume_from_checkpoint=resume)
    return trainer
