"""The recipe of a composition: its stages in order, and what is measured, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import PlainSerializer, PlainValidator, model_validator

from lowdim.core import registry
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.recipe import Document, Seed
from lowdim.pipeline.compose.stage import Stage
from lowdim.prune.recipe import Recipe
from lowdim.prune.recipe.schema import Evaluation, Short

_FORM = "Write a stage as its name, or as {name: {setting: value}}, such as prune: {sparsity: 0.5}"


def _stages(value: object) -> tuple[Stage, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise RecipeError(f"stages must be a list, got {value!r}. {_FORM}.")
    return tuple(each if isinstance(each, Stage) else _stage(each) for each in value)


def _stage(value: object) -> Stage:
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise RecipeError(f"stages: got {value!r}. {_FORM}.")
    [(name, settings)] = value.items()
    if name not in registry.names("stage"):
        raise RecipeError(f"stages: unknown stage {name!r}. {suggest(str(name), registry.names('stage'))}")
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise RecipeError(f"stages: {name} must be a mapping of settings, got {settings!r}. {_FORM}.")
    made: Stage = registry.find("stage", name).load().of(settings)
    return made


def _described(stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
    return [{stage.word(): stage.described()} for stage in stages]


class Composition(Document):
    """Everything that decides what a composition writes.

    Args:
        stages: in their order, each a name or a mapping ``{name: {setting: value}}``: prune, round, recover, factorise,
            edit, unlearn. None at all is the model as it is.
        orders: "given", or "both": also the order in which the two stages of ``pair`` change places.
        pair: which two stages change places, counted from 1; not needed where there are two.
        verify: what happens to what a stage breaks of the invariants before it: "impose" puts it right, counts it and
            says so; "refuse" ends the run.
        evaluation: what is measured of each model, see `lowdim.prune.recipe.schema.Evaluation`.
        compute: of forward passes.
        seed: of every draw.
        device: where it is computed.
        trust_remote_code: run the Python code that the model brings along, with all that you may do.

    Raises:
        RecipeError: an unknown key or stage, a value of the wrong type or range, or orders that cannot be.

    Example:
        >>> recipe = Composition(stages=[{"prune": {"sparsity": 0.5}}, "edit"], orders="both")
        >>> [[stage.word() for stage in order] for order in recipe.chains().values()]
        [['prune', 'edit'], ['edit', 'prune']]
    """

    stages: Annotated[tuple[Stage, ...], PlainValidator(_stages), PlainSerializer(_described)] = ()
    orders: Literal["given", "both"] = "given"
    pair: tuple[int, int] | None = None
    verify: Literal["impose", "refuse"] = "impose"
    evaluation: Evaluation = Evaluation()
    compute: Annotated[Literal["auto", "float32", "bfloat16"], Short] = "auto"
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False

    sections: ClassVar = {"evaluation": Evaluation}

    def __init__(self, **values: Any) -> None:
        if isinstance(values.get("pair"), list):
            values["pair"] = tuple(values["pair"])
        super().__init__(**values)

    @model_validator(mode="after")
    def _orders(self) -> Self:
        if self.orders == "given":
            if self.pair is not None:
                raise RecipeError("pair says which stages change places, and orders is 'given'. Take orders: both.")
            return self
        count = len(self.stages)
        if count < 2:
            raise RecipeError(f"orders: both needs two stages that change places, and there are {count}.")
        if self.pair is None and count > 2:
            raise RecipeError(
                f"orders: both of {count} stages: say which two change places, counted from 1, such as pair: [1, 2]."
            )
        if not all(1 <= place <= count for place in self._pair) or len(set(self._pair)) < 2:
            raise RecipeError(f"pair must be two different stages of 1 to {count}, got {list(self._pair)}.")
        return self

    @property
    def _pair(self) -> tuple[int, int]:
        return self.pair or (1, 2)

    def chains(self) -> dict[str, tuple[Stage, ...]]:
        """Return the orders by the names of the directories that their results appear in."""
        found = {"model": self.stages}
        if self.orders == "both":
            one, other = (place - 1 for place in self._pair)
            turned = list(self.stages)
            turned[one], turned[other] = turned[other], turned[one]
            found["reversed"] = tuple(turned)
        return found

    def measuring(self) -> Recipe:
        """Return what is measured, as the recipe that evaluations read."""
        return Recipe(
            sparsity=0.0,
            evaluation=self.evaluation.model_dump(),
            compute=self.compute,
            seed=self.seed,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )


def order_of(stages: tuple[Stage, ...]) -> str:
    """Return an order for people.

    Example:
        >>> order_of(Composition(stages="prune, edit").stages)
        'prune → edit'
    """
    return " → ".join(stage.word() for stage in stages)
