"""What one run trains, on what, how long and against which twins; checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, field_validator, model_validator

from lowdim.core import allocation as allocations
from lowdim.core import pattern as patterns
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.recipe import Count, Document, Section, Seed, Share, Strings, families, method_field, which
from lowdim.data import classification
from lowdim.models.small import nets
from lowdim.train.compare import samples

TWINS = ("dense", "small", "static", "resampled")


class Data(Section):
    """What is trained on; see `lowdim.data.classification.load`.

    Args:
        name: of the data set, or the path of samples of your own: a folder with a folder of pictures for each class, or
            a CSV or JSON lines file of texts.
        validation: share of the training examples set aside for the curves.
        limit: training examples used; None takes all.
        seed: of the permutation that cuts validation; the same for runs that are compared.
        settings: of a set that takes some: how a bias is planted, the folder in which pictures lie, or the size of your
            own pictures and the columns of your own texts (`lowdim.data.labelled.settings`).
    """

    name: str = "fashion-mnist"
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    limit: Count | None = None
    seed: Seed = 0
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return classification.find(name).name

    @model_validator(mode="after")
    def _settings(self) -> Self:
        classification.check_settings(self.name, self.settings)
        return self


class Ranking(Section):
    """Ranks of the training samples, which make the groups that are trained with.

    Args:
        path: the directory that ``lowdim rank`` wrote; the same data, validation, limit and seed make it fit.
        share: of each class, the latest ranks that may count as conflicting with a bias; see
            `lowdim.data.select.ranks.Ranks.groups`.
    """

    path: str
    share: Annotated[float, Field(ge=0, le=1)] = 0.05


class Optimizer(Section):
    """How weights are learnt.

    Args:
        name: "sgd" or "adamw"; "auto" takes adamw for text, whose rare words plain gradients hardly move, else sgd.
        lr: learning rate at the start; None takes 0.05 for sgd and 0.001 for adamw.
        momentum: of sgd.
        weight_decay: pulls weights to zero; coupled in sgd, decoupled in adamw.
        schedule: "cosine" lets the rate fall to 0 along half a cosine, "step" divides it by 10 at half and at three
            quarters of the run, "constant" leaves it.
    """

    name: Literal["auto", "sgd", "adamw"] = "auto"
    lr: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip() not in ("", "none"))
    return tuple(value) if isinstance(value, list) else value


def _ranking(value: object) -> object:
    return {"path": str(value)} if isinstance(value, str | Path) else value


def _net(value: object) -> object:
    """Read a network; one without a name waits until the data is known."""
    waits = value == "auto" or (isinstance(value, Mapping) and "name" not in value)
    return value if waits else nets.parse(value)


def _start(value: object) -> object:
    start = None if value is None else families.build("initialisation", value)
    if start is not None and not hasattr(start, "masks"):
        raise RecipeError(
            f"initialisation {families.name_of('initialisation', start)!r} finds masks by training, which a recipe "
            "does not do before its own. Use lowdim.train in Python, or choose one that needs no training."
        )
    return start


class TrainingRecipe(Document):
    """Everything that decides what a run of sparse training writes.

    Args:
        data: a name, or see `Data`.
        net: a name, or a mapping with its settings; "auto" is an MLP for images and tables, "text" for text.
        training: how masks move, one of ``lowdim methods --kind training``; ``method`` is another word for it. Where
            ``every`` is not given and the usual one would leave fewer than ten updates, it becomes a tenth of the steps
            in which masks move.
        sparsity: share of zeros over the sparse layers at the end, in [0, 1).
        allocation: how it is spread: one of ``lowdim methods --kind allocation``, or a sparsity by weight name.
            One that looks at inputs, as "owl" does, is measured on the first batch, at linear layers.
        initialisation: where masks start: None draws them at random, as the allocation says; one of ``lowdim methods
            --kind initialisation`` chooses them, and with them how the sparsity is spread.
        executor: "masked" simulates, on any layer and device; "csr" stores, multiplies and trains kept weights alone,
            in the linear layers of an MLP on a CPU, and moves the same masks.
        pattern: "unstructured", "fan-in", N:M, or ROWSxCOLS blocks.
        include: globs, or re:EXPRESSION, of the weights that become sparse; none given takes all but the head.
        exclude: the same of weights that stay dense.
        epochs: passes over the training examples.
        batch: examples per step at most; an epoch is cut into steps of equal size.
        optimizer: a name, or see `Optimizer`.
        twins: networks trained beside it, in the same order of data: "dense", from the same weights; "small", dense
            with at most as many parameters as the sparse network keeps; "static", random masks spread by ERK that
            stand still, from the same weights; and, if it is asked for, "resampled", random masks with as many weights
            in each layer as the sparse network ends with, which tells what their positions are worth.
        objective: what is minimised, by the twins as well: one of ``lowdim methods --kind objective``.
        sampler: which samples an epoch draws, for the twins as well: one of ``lowdim methods --kind sampler``; if not
            given, the objective's usual one.
        ranks: a directory of ranks, or see `Ranking`. Groups are trained with by these ranks where they are given, else
            by the data's own labels; accuracy by groups is always that of the labels.
        groups: which labels make groups: one cue of a set that has several, or a column of your table of texts, or of
            the ``metadata.csv`` or ``metadata.jsonl`` in your folder of pictures, which names each in ``file_name``.
            None takes all cues of a set together.
        seed: of the weights, the masks and the order of the data.
        device: "auto" takes a GPU if there is one.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or range, or a combination that cannot work.

    Example:
        >>> recipe = TrainingRecipe(data="digits", training={"name": "rigl", "every": 20}, epochs=3)
        >>> recipe.net, recipe.optimizer.lr, recipe.training.every
        (MLP(name='mlp', hidden=(300, 100), norm='batch'), 0.05, 20)
        >>> TrainingRecipe.from_yaml(recipe.to_yaml()) == recipe
        True
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        given = self.spell_out(values).get("training")
        # a method object, too, has its intervals; the fields alone decide whether two recipes are equal
        named = given if isinstance(given, Mapping) else {} if isinstance(given, str | None) else vars(given)
        self.__dict__["_given"] = frozenset(named)

    sections: ClassVar[Mapping[str, type[Section]]] = {"data": Data, "optimizer": Optimizer, "ranks": Ranking}
    kinds = ("training", "objective", "sampler")
    free = ("data.settings",)
    aliases: ClassVar = {"method": lambda value: {"training": value}}

    data: Annotated[Data, BeforeValidator(_named)] = Data()
    net: Annotated[
        Any,
        PlainValidator(_net),
        PlainSerializer(lambda net: net.model_dump(mode="json"), return_type=dict[str, Any]),
    ] = Field("auto", validate_default=True)
    training: Annotated[Any, *method_field("training")] = Field("rigl", validate_default=True)
    sparsity: Annotated[float, Share, Field(ge=0, lt=1)] = 0.9
    allocation: str | dict[str, float] = "erk"
    initialisation: Annotated[
        Any,
        PlainValidator(_start),
        PlainSerializer(lambda start: start and families.describe("initialisation", start)),
    ] = None
    executor: Literal["masked", "csr"] = "masked"
    pattern: str = "unstructured"
    include: Strings = ()
    exclude: Strings = ()
    epochs: Count = 5
    batch: Count = 128
    optimizer: Annotated[Optimizer, BeforeValidator(_named)] = Optimizer()
    twins: Annotated[tuple[str, ...], BeforeValidator(_names)] = TWINS[:3]
    objective: Annotated[Any, *method_field("objective")] = Field("erm", validate_default=True)
    sampler: Annotated[Any, *method_field("sampler")] = Field("shuffled", validate_default=True)
    ranks: Annotated[Ranking | None, BeforeValidator(_ranking)] = None
    groups: str | None = None
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @classmethod
    def keys(cls) -> list[str]:
        """Return the dotted keys of the recipe, of its sections and of the networks."""
        return [*super().keys(), *nets.keys()]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values; keys that came later are left out where they have their defaults."""
        found = super().to_dict()
        usual = {"objective": {"name": "erm"}, "sampler": {"name": "shuffled"}, "ranks": None, "groups": None}
        kept = {key: value for key, value in found.items() if key not in usual or value != usual[key]}
        if not self.data.settings:
            kept["data"] = {key: value for key, value in found["data"].items() if key != "settings"}
        return kept

    @field_validator("twins")
    @classmethod
    def _twins(cls, twins: tuple[str, ...]) -> tuple[str, ...]:
        for twin in twins:
            if twin not in TWINS:
                raise RecipeError(f"unknown twin {twin!r}. {suggest(twin, TWINS)}")
        return tuple(twin for twin in TWINS if twin in twins)

    @field_validator("allocation")
    @classmethod
    def _allocation(cls, allocation: str | Mapping[str, float]) -> str | Mapping[str, float]:
        allocations.parse(allocation)
        return allocation

    @model_validator(mode="after")
    def _decide(self) -> Self:
        if "sampler" not in self.model_fields_set:
            self.__dict__["sampler"] = families.build("sampler", self.objective.usual_sampler)
        for text in (*self.include, *self.exclude):
            which.expression(text)
        kind = classification.find(self.data.name).kind
        if not isinstance(self.net, nets.Net):
            given = {} if self.net == "auto" else self.net
            self.__dict__["net"] = nets.parse({"name": nets.USUAL[kind], **given})
        if kind not in self.net.kinds:
            fits = ", ".join(name for name, net in nets.NETS.items() if kind in net.kinds)
            raise RecipeError(
                f"net {self.net.name!r} does not take the {kind} data {self.data.name!r}. Choose one of: {fits}."
            )
        if self.batch == 1 and getattr(self.net, "norm", "batch") == "batch":
            raise RecipeError("batch 1 leaves batch norm nothing to average. Use a larger batch, or net.norm: none.")
        if self.net.name == "conv" and not self.include:
            self._check_inputs()
        if "resampled" in self.twins and patterns.parse(self.pattern) != patterns.Unstructured():
            raise RecipeError(
                f"twin 'resampled' draws single weights, which pattern {self.pattern!r} does not allow. Leave it out."
            )
        if self.executor == "csr":
            self._check_csr()
        samples.check(self, classification.find(self.data.name))
        allocation = allocations.parse(self.allocation)
        if self.initialisation is None:
            self.training.check_spread(allocation, self.sparsity)
        elif allocation != allocations.ERK() and (why := self.training.overrules()):
            raise RecipeError(
                f"initialisation and allocation {self.allocation!r} both say how the sparsity is spread over the "
                f"layers, and {type(self.training).__name__} {why}. Leave one of them out."
            )
        name = self.optimizer.name
        if name == "auto":
            name = "adamw" if kind == "text" else "sgd"
        if name == "adamw" and self.optimizer.momentum != Optimizer().momentum:
            raise RecipeError("optimizer.momentum is a setting of sgd, and the optimizer is adamw. Leave it out.")
        rate = self.optimizer.lr or {"sgd": 0.05, "adamw": 0.001}[name]
        self.__dict__["optimizer"] = self.optimizer.model_copy(update={"name": name, "lr": rate})
        return self

    def sized(self, steps: int) -> Self:
        """Return the recipe of a run of so many optimizer steps, which decides the intervals that were not given.

        Raises:
            RecipeError: the method can do nothing in such a run.
        """
        training = self.training.sized(steps, self.__dict__["_given"])
        training.check_length(steps)
        if why := training.stands_still(steps):
            raise RecipeError(f"{why}, or train for more epochs.")
        return self.model_copy(update={"training": training})

    def _check_inputs(self) -> None:
        """Refuse an allocation that looks at the inputs of linear layers where convolutions become sparse."""
        if allocations.parse(self.allocation).scale_from == "wanda":
            raise RecipeError(
                f"allocation {self.allocation!r} is measured at the inputs of linear layers, and net 'conv' has "
                "convolutions. Choose one without data, such as alpha or erk, or name linear layers with include."
            )

    def _check_csr(self) -> None:
        """Refuse what truly sparse layers cannot do."""
        wrong = {
            f"net {self.net.name!r}, which has convolutions": self.net.name == "conv",
            f"pattern {self.pattern!r}": patterns.parse(self.pattern) != patterns.Unstructured(),
            f"device {self.device!r}": self.device == "cuda",
            f"training {families.name_of('training', self.training)!r}, which changes how many weights are kept": (
                self.training.changes_density
            ),
        }
        for what, is_so in wrong.items():
            if is_so:
                raise RecipeError(f"executor 'csr' does not work with {what}. Use executor: masked.")
