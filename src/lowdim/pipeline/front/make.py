"""Each form of a model, written to a directory of its own by what this package offers every user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowdim.core.progress import Progress
from lowdim.core.quantize import Grid
from lowdim.models.disk import manifest
from lowdim.models.quantize import quantize
from lowdim.pipeline.front.forms import FORMS, Form
from lowdim.pipeline.front.settings import Settings
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe


class Maker:
    """Makes forms; what is finished is found again, and what was interrupted goes on.

    Args:
        base: directory of the dense model in bf16.
        place: where the forms' directories are.
        settings: of the front.
        progress: told of stages and their advance.
        announce: given the plan of every training.
    """

    def __init__(
        self, base: Path, place: Path, settings: Settings, progress: Progress, announce: Callable[[str], None]
    ) -> None:
        self.base, self.place, self.settings = base, place, settings
        self.progress, self.announce = progress, announce

    def make(self, form: Form) -> Path:
        """Return the directory of a form, made if need be.

        Raises:
            LowdimError: as pruning, recovery and rounding raise.
        """
        if form.name == "dense-bf16":
            return self.base
        out = self.place / form.name.replace(":", "of")
        if form.trained:
            self._train(form, out)
        elif form.sort == "sparse":
            options: dict[str, Any] = {"out": out, "resume": True, "progress": self.progress}
            prune(str(self.base), sparse_recipe(form, self.settings), **options)
        elif not manifest.exists(out):
            with self.progress.stage(f"Round to {form.kind}", 1, "models") as stage:
                quantize(self.base, out, Grid.of(form.kind, 64), overwrite=True)
                stage.advance()
        return out

    def _train(self, form: Form, out: Path) -> None:
        student = self.base
        if form.sort == "sparse":
            student = self.make(FORMS[f"sparse-{form.pattern}-bf16"])
        recover(
            str(student),
            recovery_recipe(form, self.settings),
            teacher=self.base,
            out=out,
            resume=True,
            progress=self.progress,
            announce=self.announce,
        )


def sparse_recipe(form: Form, settings: Settings) -> Recipe:
    """Return how a sparse form is pruned: Wanda's mask, kept weights refitted, packed.

    Example:
        >>> from lowdim.pipeline.front.forms import FORMS
        >>> recipe = sparse_recipe(FORMS["sparse-2:4-int8"], Settings("model"))
        >>> recipe.target, recipe.quantize, recipe.storage
        (0.5, 'int8', 'packed')
    """
    shape: dict[str, Any] = {"pattern": form.pattern} if ":" in form.pattern else {"sparsity": form.zeros}
    return Recipe(
        **shape,
        score="wanda",
        repair="refit",
        quantize="none" if form.kind == "bf16" else form.kind,
        storage="packed",
        calibration=_calibration(settings),
        evaluation={"text": None},
        seed=settings.seed,
    )


def recovery_recipe(form: Form, settings: Settings) -> Recovery:
    """Return how a form is trained: both stages, masks fixed, the last stage through the grid if there is one."""
    return Recovery(
        minutes=settings.each,
        quantize="none" if form.kind == "bf16" else form.kind,
        storage="packed",
        calibration=_calibration(settings),
        evaluation={"text": None},
        seed=settings.seed,
    )


def _calibration(settings: Settings) -> dict[str, Any]:
    context = {} if settings.context is None else {"context": settings.context}
    samples = {} if settings.samples is None else {"samples": settings.samples}
    return {"source": settings.calibration} | context | samples
