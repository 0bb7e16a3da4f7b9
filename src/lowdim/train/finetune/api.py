"""The front door: `finetune` and `plan`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowdim.core.progress import Progress, Silent
from lowdim.train.finetune.engine import Finetuner
from lowdim.train.finetune.plan import FinetuningPlan
from lowdim.train.finetune.recipe import Finetuning
from lowdim.train.pretrain.engine import Result


class FinetuningResult(Result):
    """What a fine-tuning made; its facts are in ``finetuning.json``.

    Attributes:
        facts: equal for equal recipes, models, rows and versions.
        run: what ``OUT.run.json`` holds: times, memory, the machine; empty for a run that was finished before.
        out: the output directory.
    """

    @property
    def accuracy(self) -> float | None:
        """Share of the preferences held out, ties apart, that the model shares; None where there are none."""
        value: float | None = self.facts["validation"].get("accuracy")
        return value

    @property
    def changes(self) -> dict[str, Any]:
        """How the output differs from the model that was trained on, as both are on disk."""
        found: dict[str, Any] = self.facts["changes"]
        return found


def finetune(
    recipe: Finetuning,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> FinetuningResult:
    """Train a model on answers or on preferences, and write a stock Hugging Face directory.

    The zeros of a pruned model stay, whatever is trained: `KeepZeros` for all weights, masked adapters, entries that
    are chosen among the kept ones. The output is stored as the model is, dense or packed, every tensor in its own type,
    and is compared with it on disk. Under ``torchrun`` all processes call it alike; the first one writes.

    Args:
        recipe: what to do.
        out: output directory. It appears when it is complete; until then there is ``OUT.partial``.
        resume: go on from ``OUT.partial``; the result is the same to the byte as that of an uninterrupted run on as
            many processes.
        overwrite: replace an existing ``out``, once the new one is complete.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins.

    Raises:
        LowdimError: anything that the caller can put right: recipe, rows, model, output directory; or another process
            has died.
    """
    how = {"resume": resume, "overwrite": overwrite}
    told = {"progress": progress or Silent(), "announce": announce or (lambda _: None)}
    made = Finetuner().run(recipe, Path(out), **how, **told)  # type: ignore[arg-type]
    return FinetuningResult(made.facts, made.run, made.out)


def plan(recipe: Finetuning, progress: Progress | None = None) -> FinetuningPlan:
    """Return what a fine-tuning would do, timed on this machine; nothing is written but tokens to the cache.

    Raises:
        LowdimError: as `finetune`.
    """
    found = Finetuner().timed(recipe, progress or Silent())
    assert isinstance(found, FinetuningPlan)
    return found
