"""One command from dense to recovered: a recipe of pruning with a section ``recover``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowdim.core.errors import RecipeError
from lowdim.core.progress import Progress
from lowdim.core.recipe import read
from lowdim.core.recipe.override import assignments
from lowdim.models import ranks
from lowdim.pipeline.recover.api import plan as plan_recovery
from lowdim.pipeline.recover.api import recover
from lowdim.pipeline.recover.plan import RecoveryPlan
from lowdim.pipeline.recover.recipe import Recovery
from lowdim.prune.api import prune
from lowdim.prune.recipe import Recipe
from lowdim.prune.speed import MeasureSpeed

SECTION = "recover"
_SHARED = ("evaluation", "seed", "device", "compute", "trust_remote_code")


def split(file: Path | None, flags: Mapping[str, Any], given: Iterable[str]) -> tuple[Recipe, Recovery | None]:
    """Return the recipes of both steps; without a section ``recover`` there is only pruning.

    What is evaluated, the seed, the device and the form of storage are those of the whole. Weights are rounded in the
    last step, through the grid; calibration text that ``recover`` does not name is that of pruning.

    Args:
        file: a recipe in YAML.
        flags: laid over it, by dotted key; those that are None are left out.
        given: ``KEY=VALUE``, laid over both; ``recover.minutes=4`` is of the second step.

    Raises:
        RecipeError: a key is unknown or a value is wrong, in either step.
    """
    values = read(file) if file else {}
    section = values.pop(SECTION, None)
    own = [text for text in given if not text.strip().startswith(f"{SECTION}.")]
    later = [(key.removeprefix(f"{SECTION}."), value) for key, value in assignments(g for g in given if g not in own)]
    pruning = Recipe.laid_over(values, flags, own)
    if section is None and not later:
        return pruning, None
    if not isinstance(section or {}, Mapping):
        raise RecipeError(f"{SECTION} must be a mapping such as 'minutes: 10', got {section!r}.")
    whole = pruning.to_dict()
    shared = {key: whole[key] for key in (*_SHARED, *({"storage"} & pruning.model_fields_set)) if key in whole}
    text = {"source": whole["calibration"]["source"]} | dict((section or {}).get("calibration") or {})
    base = {**shared, "quantize": whole["quantize"], "quantize_group": whole["quantize_group"]}
    recovery = Recovery.laid_over({**base, **(section or {}), "calibration": text}, dict(later))
    nothing = {"evaluation": {"text": None}, "quantize": "none", "storage": "dense"}
    return Recipe(**whole | nothing), recovery


def plan(model: str, recipe: Recipe, recovery: Recovery, *, revision: str | None = None) -> RecoveryPlan:
    """Return what the second step would do, timed with the dense model in the place of the pruned one.

    Raises:
        LowdimError: the model cannot be used, the text or the time is too short, or the recipe does not fit the model.
    """
    if recovery.quantize == "int3" and recipe.target:
        raise RecipeError("pruned weights cannot be stored in quantize='int3', which has no mask. Take 'int4'.")
    dense = Recovery(**recovery.to_dict() | {"teacher": recovery.teacher or model})
    found = plan_recovery(model, dense, revision=revision)
    idle = 0 if recovery.masks.moves else round(recipe.target * found.weights)
    return replace(found, weights=found.weights - idle, zeros=recipe.target)


def prune_and_recover(
    model: str,
    recipe: Recipe,
    recovery: Recovery,
    *,
    out: Path,
    revision: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    speed: MeasureSpeed | None = None,
) -> Path:
    """Prune a model on disk into ``OUT.pruned``, recover that into ``OUT``, and remove it; see both steps' functions.

    Raises:
        LowdimError: anything that the caller can put right; what is finished of either step stays for ``resume``, and
            what the second step would refuse is refused before the first.
    """
    between = out.with_name(f"{out.name}.pruned")
    with ranks.launched():
        stages = None
        if not between.exists() and not out.exists():  # what cannot be recovered need not be pruned
            stages = plan(model, recipe, recovery, revision=revision).stages
        prune(
            model,
            recipe,
            out=between,
            revision=revision,
            resume=resume,
            overwrite=overwrite and not resume,
            progress=progress,
        )
        recover(
            between,
            recovery,
            out=out,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            announce=announce,
            speed=speed,
            stages=stages,
        )
        if ranks.rank() == 0:
            shutil.rmtree(between, ignore_errors=True)
            between.with_name(f"{between.name}.run.json").unlink(missing_ok=True)
    return out
