"""The front door: `pretrain` and `plan`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowdim.core.progress import Progress, Silent
from lowdim.train.pretrain.engine import Engine, Result
from lowdim.train.pretrain.plan import PretrainingPlan
from lowdim.train.pretrain.recipe import Pretraining


class PretrainingResult(Result):
    """What a pre-training made; its facts are in ``pretraining.json``.

    Attributes:
        facts: equal for equal recipes, texts and versions.
        run: what ``OUT.run.json`` holds: times, speed, memory, the machine; empty for a run that was finished before.
        out: the output directory.
    """

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        value: float = self.facts["validation"]["perplexity"]
        return value


def pretrain(
    recipe: Pretraining,
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> PretrainingResult:
    """Train a causal language model on text, from nothing or on, and write a stock Hugging Face directory.

    Under ``torchrun`` all processes call it alike; the first one writes. Beside ``out`` grow ``OUT.log.jsonl``, a line
    for every step, and ``OUT.run.json``. What diverges ends with the state that was saved last, and a warning.

    Args:
        recipe: what to do.
        out: output directory. It appears when it is complete; until then there is ``OUT.partial``.
        resume: go on from ``OUT.partial``; the result is the same to the byte as that of an uninterrupted run on as
            many processes.
        overwrite: replace an existing ``out``, once the new one is complete.
        progress: told of stages and their advance.
        announce: given the plan as text before the work begins.

    Raises:
        LowdimError: anything that the caller can put right: recipe, text, tokenizer, model, output directory; or
            another process has died.
    """
    how = {"resume": resume, "overwrite": overwrite}
    told = {"progress": progress or Silent(), "announce": announce or (lambda _: None)}
    made = Engine().run(recipe, Path(out), **how, **told)  # type: ignore[arg-type]
    return PretrainingResult(made.facts, made.run, made.out)


def plan(recipe: Pretraining, progress: Progress | None = None) -> PretrainingPlan:
    """Return what a pre-training would do, timed on this machine; nothing is written but tokens to the cache.

    Raises:
        LowdimError: as `pretrain`.
    """
    return Engine().timed(recipe, progress or Silent())
