"""Each form of a model, written to a directory of its own by what this package offers every user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowdim.core.progress import Progress
from lowdim.core.quantize import Grid
from lowdim.data.batch import split
from lowdim.data.calibration import calibration
from lowdim.models.disk import manifest
from lowdim.models.quantize import quantize
from lowdim.pipeline.front.forms import FORMS, Form
from lowdim.pipeline.front.settings import CONTEXT, Settings
from lowdim.pipeline.recover.api import plan, recover
from lowdim.pipeline.recover.blocks import split_text
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe


class Maker:
    """Makes forms; what is finished is found again, and what was interrupted goes on.

    Args:
        base: directory of the dense model in bf16.
        place: where the forms' directories are.
        settings: of the front.
        most: the longest sequence that the model takes; ``None`` where it does not say.
        progress: told of stages and their advance.
        announce: given the plan of every training.
    """

    def __init__(
        self,
        base: Path,
        place: Path,
        settings: Settings,
        most: int | None,
        progress: Progress,
        announce: Callable[[str], None],
    ) -> None:
        self.base, self.place, self.settings, self.most = base, place, settings, most
        self.progress, self.announce = progress, announce

    def make(self, form: Form) -> Path:
        """Return the directory of a form, made if need be.

        Raises:
            LowdimError: as pruning, recovery and rounding raise.
        """
        if form.plain and not form.trained:
            return self.base
        out = self.place / form.name.replace(":", "of")
        if form.trained:
            self._train(form, out)
        elif form.sort == "sparse":
            options: dict[str, Any] = {"out": out, "resume": True, "progress": self.progress}
            prune(self.settings.model, sparse_recipe(form, self.settings), **options)
        elif not manifest.exists(out):
            with self.progress.stage(f"Round to {form.kind}", 1, "models") as stage:
                trusted = self.settings.trust_remote_code
                quantize(self.base, out, Grid.of(form.kind, 64), overwrite=True, trust_remote_code=trusted)
                stage.advance()
        return out

    def _train(self, form: Form, out: Path) -> None:
        student = self.base
        if form.sort == "sparse":
            student = self.make(FORMS[f"sparse-{form.pattern}-bf16"])
        recover(
            str(student),
            recovery_recipe(form, self.settings, self.most),
            teacher=self.settings.model,
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
        dtype="bfloat16",
        calibration=_calibration(settings),
        evaluation={"text": None},
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
    )


def recovery_recipe(form: Form, settings: Settings, most: int | None) -> Recovery:
    """Return how a form is trained: both stages, masks fixed, the last stage through the grid if there is one.

    The dense model in bf16 is its teacher already, and is trained to predict the text.

    Args:
        form: a trained one.
        settings: of the front.
        most: the longest sequence that the model takes.
    """
    chosen = _calibration(settings)
    return Recovery(
        **({"stage": "distill", "distill": {"kl": 0.0, "ce": 1.0}} if form.plain else {}),
        minutes=settings.each,
        quantize="none" if form.kind == "bf16" else form.kind,
        storage="auto" if form.plain else "packed",
        calibration={"context": min(CONTEXT, most or CONTEXT)} | chosen,
        evaluation={"text": None},
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
    )


def check_text(forms: Sequence[Form], settings: Settings, most: int | None, tokenizer: Any, vocabulary: int) -> None:
    """Refuse a text for training that is too short, before anything is made.

    Raises:
        LowdimError: there are fewer sequences than asked for, or fewer than two batches.
    """
    trained = next((form for form in forms if form.trained), None)
    if trained is None:
        return
    recipe = recovery_recipe(trained, settings, most)
    asked = recipe.calibration
    data = calibration(
        asked.source,
        tokenizer,
        samples=asked.samples,
        context=asked.context or CONTEXT,
        seed=recipe.seed,
        vocab_size=vocabulary,
    )
    split_text(list(split([data.whole], recipe.batch_tokens)), asked.held)


def check_time(forms: Sequence[Form], settings: Settings, most: int | None) -> None:
    """Refuse minutes that are too few to train in, timed with the dense model, before anything is made.

    Raises:
        LowdimError: see `lowdim.pipeline.recover.api.plan`.
    """
    trained = [form for form in forms if form.trained]
    if trained:
        recipe = recovery_recipe(trained[-1], settings, most)  # with both stages where any has them
        plan(settings.model, Recovery(**recipe.to_dict() | {"teacher": settings.model}))


def _calibration(settings: Settings) -> dict[str, Any]:
    context = {} if settings.context is None else {"context": settings.context}
    samples = {} if settings.samples is None else {"samples": settings.samples}
    return {"source": settings.calibration} | context | samples
