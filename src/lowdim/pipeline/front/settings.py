"""What a front is made from, checked before any work."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

from lowdim.core.errors import RecipeError, suggest
from lowdim.data.tokens import Bos
from lowdim.evaluate.quality import tasks
from lowdim.pipeline.front.forms import Form, choose

MINUTES = 10.0
"""Of training that each trained form gets where the user does not say."""
CONTEXT = 512
"""Tokens in a window, and in a sequence of training, where the user does not say and the model takes as many."""
REFERENCE = "dense-int8"
"""The form whose bytes per token are the budget where the user does not say."""


@dataclass(frozen=True)
class Settings:
    """What to make and measure.

    Attributes:
        model: a directory, hub id, GGUF file or ``builtin:`` name.
        forms: names of contestants; none means all.
        recover: also train: the dense forms through their grid, the one that has none on the text itself, the sparse
            ones to be like the dense model.
        minutes: of training for each trained form; `MINUTES` if not given.
        budget_mb: megabytes read per token that the recommended form may take; those of `REFERENCE` if not given.
        text: that perplexity is measured on.
        windows: of it, at most so many.
        context: tokens in a window.
        tasks: zero-shot tasks.
        limit: questions per task.
        bos: where the start-of-text token of the text and the questions goes, see `lowdim.data.tokens.Bos`.
        calibration: text for pruning and training.
        samples: sequences of it, where it is not the default of pruning and of recovery.
        tokens: generated per timed turn.
        seed: of every draw.
        trust_remote_code: run the Python code that the model brings along.

    Raises:
        RecipeError: values that cannot be, or do not go together.

    Example:
        >>> Settings("builtin:smollm2-135m", recover=True).each
        10.0
    """

    model: str
    forms: tuple[str, ...] = ()
    recover: bool = False
    minutes: float | None = None
    budget_mb: float | None = None
    text: str = "builtin"
    windows: int | None = None
    context: int | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    bos: str = "tokenizer"
    calibration: str = "builtin"
    samples: int | None = None
    tokens: int = 32
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.recover:
            raise RecipeError(f"--minutes {self.minutes:g} is for training, and nothing is trained without --recover.")
        for name in ("minutes", "budget_mb"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise RecipeError(f"--{name.replace('_', '-')} must be a number above 0, got {value:g}.")
        for name, least in (("windows", 1), ("context", 2), ("limit", 1), ("samples", 1), ("tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"--{name} must be at least {least}, got {value}.")
        if self.bos not in get_args(Bos):
            raise RecipeError(f"--bos: unknown policy {self.bos!r}. {suggest(self.bos, get_args(Bos))}")
        object.__setattr__(self, "tasks", tasks.expand(self.tasks))
        if self.limit is not None and not self.tasks:
            raise RecipeError(f"--limit {self.limit} is of tasks, and none are asked. Name --tasks, or leave it out.")
        names = {form.name for form in self.chosen() if form.made}
        if not names:
            raise RecipeError("--forms names nothing that is measured here. Add a dense or a sparse form.")
        if self.budget_mb is None and REFERENCE not in names:
            raise RecipeError(
                f"--forms leaves out {REFERENCE}, whose bytes are the budget unless --budget-mb gives another. Add "
                f"{REFERENCE}, or say --budget-mb."
            )

    @property
    def each(self) -> float:
        """Minutes of training for each trained form."""
        return MINUTES if self.minutes is None else self.minutes

    def chosen(self) -> list[Form]:
        """Return the contestants."""
        return choose(self.forms, self.recover)

    @property
    def asking(self) -> dict[str, Any]:
        """Which questions are asked of the tasks, and how: arguments of `zeroshot.evaluate_tasks`."""
        return {"limit": self.limit, "seed": self.seed, "bos": self.bos}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"forms": list(self.forms), "tasks": list(self.tasks)}
