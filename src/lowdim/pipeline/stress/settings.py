"""What is stressed, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lowdim.core.errors import RecipeError
from lowdim.core.settings import Range, check, check_all, count, within
from lowdim.evaluate.quality import tasks
from lowdim.evaluate.quality.hard import TOLERANCE, Verdict
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.recipe import Recipe

_GIVEN = ("sparsity", "evaluation", "seed", "trust_remote_code")
GRID = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)


@dataclass(frozen=True)
class Settings:
    """What to prune, how far, and what to ask.

    Attributes:
        model: a directory, hub id, GGUF file or ``builtin:`` name.
        grid: shares of zeros; 0 is pruned and measured like the others, and shows what the measurement itself moves.
        recipe: keys of a recipe of pruning, but for sparsity, evaluation and seed.
        minutes: of training by which each pruned model is recovered too; ``None`` for none.
        recovery: keys of a recipe of recovery, but for minutes, evaluation and seed.
        tasks: asked beside the hard ones.
        limit: questions per task.
        tolerance: share of the questions of a task that may be lost.
        own: the same of single tasks.
        text: that perplexity is measured on; ``None`` for no perplexity.
        windows: of it, at most so many.
        context: tokens in a window.
        bos: where the start-of-text token of the text and the questions goes, see `lowdim.data.tokens.Bos`.
        seed: of every draw.
        trust_remote_code: run the Python code that the model brings along.

    Raises:
        RecipeError: values that cannot be, or do not go together.

    Example:
        >>> Settings("model", grid=(0.5, 0.1)).grid
        (0.1, 0.5)
    """

    model: str
    grid: tuple[float, ...] = GRID
    recipe: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = within(None, above=0)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    limit: int | None = count(None)
    tolerance: float = TOLERANCE
    own: Mapping[str, float] = field(default_factory=dict)
    text: str | None = "builtin"
    windows: int | None = count(None)
    context: int | None = count(None, least=2)
    bos: str = "tokenizer"
    seed: int = count(0, least=0)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_all(self)
        for share in self.grid:
            check("a sparsity of the grid", share, Range(least=0, below=1))
        if not any(self.grid):
            raise RecipeError(f"the grid {list(self.grid)} prunes nothing. Give sparsities above 0, such as 0.05,0.5.")
        object.__setattr__(self, "grid", tuple(sorted(set(self.grid))))
        given = {"tasks": list(self.tasks), "bos": self.bos}
        object.__setattr__(self, "tasks", Recipe(sparsity=0.0, evaluation=given).evaluation.tasks)
        Verdict({}, self.tolerance, self.own)
        for name in ("windows", "context"):
            if self.text is None and getattr(self, name) is not None:
                raise RecipeError(
                    f"{name} is of the text that perplexity is measured on, and there is none. Leave it out."
                )
        if taken := [key for key in _GIVEN if key in self.recipe]:
            raise RecipeError(
                f"{taken[0]} is not the recipe's to say here: the grid prunes, the hard tasks are asked, and the seed "
                "is that of the whole. Take it out of the recipe."
            )
        if self.recovery and self.minutes is None:
            raise RecipeError(
                "a recipe of recovery is given, and no minutes to recover. Say how long: --recover MINUTES."
            )
        if taken := [key for key in ("minutes", *_GIVEN[1:]) if key in self.recovery]:
            raise RecipeError(f"recover.{taken[0]} is not the recipe's to say here. Take it out.")
        for point in self.grid:
            self.pruning(point)
        self.recovering()

    @property
    def asked(self) -> tuple[str, ...]:
        """The hard tasks, and those beside them."""
        return tuple(dict.fromkeys([*tasks.PRESETS["hard"], *self.tasks]))

    def pruning(self, share: float) -> Recipe:
        """Return how the model is pruned at a point of the grid."""
        return Recipe(**self._common, **self.recipe, sparsity=share, evaluation={"text": None})

    def measuring(self) -> Recipe:
        """Return what is measured, as the recipe that evaluations read."""
        size = {} if self.context is None else {"context": self.context}
        how = {"text": self.text, "windows": self.windows, "limit": self.limit, "bos": self.bos}
        asked = {"tasks": list(self.asked), **how, **size}
        return Recipe(sparsity=0.0, evaluation=asked, **self._common)

    def recovering(self) -> Recovery:
        """Return how a pruned model is recovered: on the text that it was pruned on."""
        own = self.pruning(self.grid[-1]).calibration
        text = {"source": own.source} | ({} if own.context is None else {"context": own.context})
        text |= self.recovery.get("calibration") or {}
        how = {**self.recovery, "calibration": text, "minutes": self.minutes, "evaluation": {"text": None}}
        return Recovery(**how, **self._common)

    @property
    def _common(self) -> dict[str, Any]:
        return {"seed": self.seed, "trust_remote_code": self.trust_remote_code}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        plain = {
            "recipe": dict(self.recipe),
            "recovery": dict(self.recovery),
            "own": dict(self.own),
            "grid": list(self.grid),
            "tasks": list(self.asked),
        }
        return asdict(self) | plain
