"""Tokens per second of end-to-end recovery, over a plain loop in the Trainer of Transformers; in turn, in one run.

Both have the same student, teacher, text, forward KL, fp32 masters under bf16 compute, Adam, tokens a step, threads.
The plain loop is what one would write: ``compute_loss`` with both models' logits, softmaxes in fp32, and autocast over
fp32 weights; the masks are put back after every step.

    python benchmarks/recover_speed.py PRUNED --json benchmarks/results/recover_speed.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from waiting import sleep_while_waiting

from lowdim.core.machine import machine
from lowdim.data.batch import split
from lowdim.models.load import load
from lowdim.models.structure.zeros import mask_of
from lowdim.pipeline.recover.blocks import split_text
from lowdim.pipeline.recover.distill import DistillStage
from lowdim.pipeline.recover.pair import open_pair
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import read_calibration

ROUNDS, SEQUENCES = 5, 4


class Plain(Trainer):
    """Distillation as one would write it."""

    teacher: PreTrainedModel

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the KL divergence from the teacher, the mean over tokens."""
        with torch.no_grad():
            wanted = self.teacher(input_ids=inputs["input_ids"]).logits.float().log_softmax(-1)
        out = model(input_ids=inputs["input_ids"])
        made = out.logits.float().log_softmax(-1)
        tokens = inputs["input_ids"].numel()
        loss = nn.functional.kl_div(made.flatten(0, 1), wanted.flatten(0, 1), reduction="sum", log_target=True) / tokens
        return (loss, out) if return_outputs else loss


class Masks(TrainerCallback):
    """Puts the zeros back after every step."""

    def __init__(self, masks: dict[nn.Parameter, Tensor]) -> None:
        self.masks = masks

    @torch.no_grad()
    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Mask the weights."""
        for parameter, mask in self.masks.items():
            parameter.mul_(mask)


def plain(pair: Any, rows: Tensor, steps: int) -> float:
    """Return the seconds of some steps of the Trainer, its first one left out."""
    assert pair.student.source is not None and pair.teacher.source is not None
    model = load(pair.student.source.path, torch.float32)
    model.requires_grad_(False)
    blocks = [(n, p) for n, p in model.named_parameters() if ".layers." in n]
    for _, parameter in blocks:
        parameter.requires_grad_(True)
    masks = {p: mask for _, p in blocks if p.dim() == 2 and (mask := mask_of(p.detach())) is not None}
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] = time.perf_counter() - seconds[-1]

    with tempfile.TemporaryDirectory() as place:
        settings = TrainingArguments(
            output_dir=place,
            per_device_train_batch_size=SEQUENCES,
            max_steps=steps + 1,
            learning_rate=1e-9,
            bf16=pair.student.stream.compute == torch.bfloat16,  # as the stage does, where the processor multiplies it
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        data: Any = [{"input_ids": row} for row in rows]
        trainer = Plain(model=model, args=settings, train_dataset=data, callbacks=[Masks(masks), Clock()])
        trainer.teacher = load(pair.teacher.source.path, pair.student.stream.compute)
        trainer.train()
    return statistics.median(seconds[1:])


def main() -> None:
    """Time both in turn; print tokens per second and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pruned model whose lowdim.json names its teacher")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sleep_while_waiting()
    recipe = Recovery(stage="distill", distill={"sequences": SEQUENCES}, calibration={"samples": 64})
    pair = open_pair(given.model, recipe)
    data = read_calibration(pair.student, None, pair.student.tokenizer())
    text = split_text(list(split([data.whole], recipe.batch_tokens)), 0.1)
    stage = DistillStage(pair, text, None)
    size = text.train[0].input_ids.numel()
    times: dict[str, list[float]] = {"lowdim": [], "lowdim, the teacher heard before": [], "Trainer": []}
    for _ in range(given.rounds):
        step, taught = stage.time_step()
        times["lowdim"].append(step + taught)
        times["lowdim, the teacher heard before"].append(step)
        times["Trainer"].append(plain(pair, data.whole.input_ids[: 4 * SEQUENCES], 2))
    rates = {name: size / statistics.median(seconds) for name, seconds in times.items()}
    found = {"machine": machine(), "tokens_a_step": size, "tokens_per_s": rates, "seconds": times}
    for name, rate in rates.items():
        print(f"{name:<36} {rate:7.0f} tokens/s {rate / rates['Trainer']:6.2f}x")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
