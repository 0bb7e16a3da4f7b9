"""One small training in three people's loops: a plain one, the Trainer of transformers, and Lightning's."""

from __future__ import annotations

import copy
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from lowdim.train import RigL, SparseTraining
from lowdim.train.adapters import huggingface, lightning

Weights = dict[str, Tensor]
STEPS = 8


class Net(pl.LightningModule):
    """A network that all three loops train; its optimizer is made by ``make``."""

    make: Callable[[Any], torch.optim.Optimizer]

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
        self.make = lambda parameters: torch.optim.AdamW(parameters, lr=0.02)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self(**batch)["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self(**batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


class Points(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8 * STEPS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        source = torch.Generator().manual_seed(index)
        return {"x": torch.randn(16, generator=source), "labels": torch.randint(3, (), generator=source)}


def weights(net: Net) -> Weights:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def zeros(net: Net) -> float:
    held = [net.net[0].weight, net.net[2].weight]
    return sum(int((w == 0).sum()) for w in held) / sum(w.numel() for w in held)  # type: ignore[operator,misc]


class Way(ABC):
    """A loop of eight steps; ``settings`` None trains densely. A checkpoint is written after steps 4 and 8."""

    settings: ClassVar[dict[str, Any]] = {"sparsity": 0.8, "method": RigL(every=2)}
    callback: Any = None

    def __init__(self, home: Path) -> None:
        self.home = home
        self.training: SparseTraining | None = None

    @abstractmethod
    def fit(
        self,
        net: Net,
        name: str,
        settings: dict[str, Any] | None,
        resume: Any = None,
        each: Callable[[int, Any], None] = lambda step, loop: None,
        last: Callable[[Net], None] | None = None,
    ) -> None:
        """Train.

        Args:
            net: is trained in place.
            name: of the run and its checkpoints.
            settings: of `SparseTraining`; None for dense training.
            resume: a checkpoint.
            each: called after every step with the steps done and with what holds the optimizer.
            last: writes weights when training is over.
        """

    @abstractmethod
    def checkpoint(self, name: str, step: int) -> Any:
        """Return a checkpoint that was written."""

    @abstractmethod
    def read(self, checkpoint: Any) -> Weights:
        """Return the weights in a checkpoint."""

    @abstractmethod
    def mix(self, checkpoint: Any, other: Any) -> Any:
        """Return a checkpoint with the state of `SparseTraining` that another one holds."""

    @abstractmethod
    def change(self, loop: Any, optimizer: torch.optim.Optimizer) -> None:
        """Let a loop go on with another optimizer."""


class Plain(Way):
    def fit(self, net, name, settings, resume=None, each=lambda step, loop: None, last=None):  # type: ignore[no-untyped-def]
        holder = {"optimizer": net.make(net.parameters())}
        optimizer, earlier, first = holder["optimizer"], self.training, 0
        if resume is not None:
            net.load_state_dict(resume["model"])
            optimizer.load_state_dict(resume["optimizer"])
            first = resume["step"]
        if settings is not None:
            if earlier is not None:
                earlier.remove()
            self.training = SparseTraining(net, optimizer, total_steps=STEPS, **settings)
            if resume is not None:
                self.training.load_state_dict(resume["sparse"] or {})
            elif earlier is not None and earlier.model is net:
                self.training.follow(earlier)
        for step, batch in list(enumerate(torch.utils.data.DataLoader(Points(), 8), 1))[first:]:
            net(**batch)["loss"].backward()
            holder["optimizer"].step()
            holder["optimizer"].zero_grad()
            if step % 4 == 0:
                state = self.training.state_dict() if self.training and settings else None
                kept = [net.state_dict(), optimizer.state_dict(), state, step]
                saved = dict(zip(["model", "optimizer", "sparse", "step"], copy.deepcopy(kept), strict=True))
                self.home.mkdir(exist_ok=True)
                torch.save(saved, self.home / f"{name}-{step}.pt")
            each(step, holder)
        if last is not None:
            last(net)
            if self.training is not None and settings:
                self.training.settle()
        if self.training is not None and settings:
            self.training.finish()

    def checkpoint(self, name: str, step: int) -> Any:
        return torch.load(self.home / f"{name}-{step}.pt", weights_only=True)

    def read(self, checkpoint: Any) -> Weights:
        found: Weights = checkpoint["model"]
        return found

    def mix(self, checkpoint: Any, other: Any) -> Any:
        return {**checkpoint, "sparse": other["sparse"]}

    def change(self, loop: Any, optimizer: torch.optim.Optimizer) -> None:
        loop["optimizer"] = optimizer


class Hugging(Way):
    best: ClassVar[dict[str, Any]] = {}

    def fit(self, net, name, settings, resume=None, each=lambda step, loop: None, last=None):  # type: ignore[no-untyped-def]
        class Told(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                each(state.global_step, trainer)

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if last is not None:
                    last(kwargs["model"])

        arguments = TrainingArguments(
            output_dir=str(self.home / name),
            max_steps=STEPS,
            per_device_train_batch_size=8,
            save_steps=4,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
            **self.best,
        )
        if settings is not None and self.callback is None:
            self.callback = huggingface.SparseTrainingCallback(**settings)
        callbacks = [Told()] if settings is None else [Told(), self.callback]
        made = (net.make(net.parameters()), None)
        asked: dict[str, Any] = {"train_dataset": Points(), "eval_dataset": Points(), "optimizers": made}
        scores = iter(range(0, -99, -1))
        asked["compute_metrics"] = lambda _: {"score": next(scores)}
        trainer = Trainer(net, arguments, callbacks=callbacks, **asked)
        trainer.train(resume_from_checkpoint=resume)
        self.training = self.callback.training if settings is not None else self.training

    def checkpoint(self, name: str, step: int) -> Any:
        return str(self.home / name / f"checkpoint-{step}")

    def read(self, checkpoint: Any) -> Weights:
        return load_file(f"{checkpoint}/model.safetensors")

    def mix(self, checkpoint: Any, other: Any) -> Any:
        shutil.copy(f"{other}/sparse_training.pt", checkpoint)
        return checkpoint

    def change(self, loop: Any, optimizer: torch.optim.Optimizer) -> None:
        loop.optimizer = optimizer


class Light(Way):
    before: tuple[pl.Callback, ...] = ()
    behind: tuple[pl.Callback, ...] = ()
    trainer: pl.Trainer

    def fit(self, net, name, settings, resume=None, each=lambda step, loop: None, last=None):  # type: ignore[no-untyped-def]
        class Told(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                each(trainer.global_step, trainer)

            def on_train_end(self, trainer: Any, module: Any) -> None:
                if last is not None:
                    last(module)

        if settings is not None and self.callback is None:
            self.callback = lightning.SparseTrainingCallback(**settings)
        saver = ModelCheckpoint(self.home / name, filename="{step}", save_top_k=-1, every_n_train_steps=4)
        mine = [] if settings is None else [self.callback]
        self.trainer = pl.Trainer(
            max_epochs=STEPS // 2,
            limit_train_batches=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*self.before, *mine, *self.behind, Told(), saver],  # type: ignore[list-item]
        )
        data = torch.utils.data.DataLoader(Points(), 8)
        self.trainer.fit(net, data, torch.utils.data.DataLoader(Points(), 64), ckpt_path=resume, weights_only=False)
        self.training = self.callback.training if settings is not None else self.training

    def checkpoint(self, name: str, step: int) -> Any:
        return str(self.home / name / f"step={step}.ckpt")

    def read(self, checkpoint: Any) -> Weights:
        found: Weights = torch.load(checkpoint, weights_only=False)["state_dict"]
        return found

    def mix(self, checkpoint: Any, other: Any) -> Any:
        mine, theirs = (torch.load(path, weights_only=False) for path in (checkpoint, other))
        key = "SparseTrainingCallback"
        mine["callbacks"][key] = theirs["callbacks"][key]
        torch.save(mine, checkpoint)
        return checkpoint

    def change(self, loop: Any, optimizer: torch.optim.Optimizer) -> None:
        loop.strategy.optimizers = [optimizer]


WAYS: dict[str, type[Way]] = {"plain": Plain, "transformers": Hugging, "lightning": Light}
