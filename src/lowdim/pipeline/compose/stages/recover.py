"""Recovery as a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lowdim.core.errors import RecipeError
from lowdim.core.lazy import Lazy
from lowdim.pipeline.compose.stage import GRID, RANK, Stage, Work
from lowdim.pipeline.recover.recipe import Recovery

if TYPE_CHECKING:
    from lowdim.models.disk.source import Source
    from lowdim.pipeline.recover import api
else:
    api = Lazy("lowdim.pipeline.recover.api")

_GIVEN = ("evaluation", "seed", "device", "trust_remote_code")


@dataclass(frozen=True)
class Recover(Stage):
    """Train the model to be like the one before all stages; its zeros stay where they are.

    The teacher has had no edit and has unlearnt nothing: what stands before this stage may be undone by it, which the
    measures show.

    Args:
        recipe: keys of a recipe of recovery: ``{minutes: 10, stage: blocks}``. What is evaluated, the seed and the
            device are the composition's.

    Example:
        >>> Recover.of({"minutes": 5}).settings(0).minutes
        5.0
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)

    breaks: ClassVar[frozenset[str]] = frozenset({RANK})
    remedy: ClassVar[str] = "Recover before factorising."

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the stage."""
        if taken := [key for key in _GIVEN if key in values]:
            raise RecipeError(f"recover.{taken[0]} is the composition's own key. Write it beside 'stages'.")
        made = cls(dict(values))
        if made.settings(0).masks.moves:
            raise RecipeError(
                "recover.masks lets zeros move, and a composition holds them where pruning put them. Take masks: fixed."
            )
        return made

    def settings(self, seed: int, device: str = "auto", compute: str = "auto", trusted: bool = False) -> Recovery:
        """Return the recipe of recovery."""
        how = {"compute": compute, "trust_remote_code": trusted} | dict(self.recipe)
        return Recovery(**how, seed=seed, device=device, evaluation={"text": None})

    def promises(self) -> frozenset[str]:
        """A grid, where the recipe rounds."""
        return frozenset({GRID}) if self.settings(0).grid is not None else frozenset()

    def renews(self) -> frozenset[str]:
        """The grid: its scales are fitted anew."""
        return self.promises()

    def check(self, held: frozenset[str]) -> None:
        """Refuse to train what is rounded, unless through a grid of its own."""
        super().check(held)
        if GRID in held and GRID not in self.promises():
            raise RecipeError(
                "recover after rounding moves the weights off their grid. Recover first, or train through the grid: "
                "recover: {quantize: int8}."
            )

    def described(self) -> dict[str, Any]:
        """The keys of the recipe as they were given."""
        return dict(self.recipe)

    def ahead(self, source: Source) -> float:
        """As `lowdim.pipeline.recover.api.plan` times it, with the model as it is now in the place of what will be.

        Raises:
            LowdimError: what recovery would refuse: the time or the text is too short, or the recipe does not fit.
        """
        recipe = self.settings(0, trusted=source.trusted)
        dense = Recovery(**recipe.to_dict() | {"teacher": recipe.teacher or str(source.path)})
        return sum(stage.seconds for stage in api.plan(source.path, dense).stages.values())

    def run(self, work: Work) -> dict[str, Any]:
        """Recover from disk to disk; what was begun is gone on with."""
        recipe = self.settings(work.seed, work.device, work.compute, work.source.trusted)
        teacher = recipe.teacher or work.original
        options: dict[str, Any] = {"progress": work.progress, "announce": work.announce}
        made = api.recover(work.source.path, recipe, out=work.out, teacher=teacher, resume=True, **options)
        stages = (made.manifest.get("recovery") or {}).get("stages", {})
        return {"steps": {name: stage["steps"] for name, stage in stages.items()}, "sparsity": made.sparsity}
