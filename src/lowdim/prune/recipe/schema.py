"""A recipe: everything that decides what pruning writes, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from lowdim.core.allocation import Allocation
from lowdim.core.errors import RecipeError, suggest
from lowdim.core.pattern import Pattern
from lowdim.core.score import Score
from lowdim.data.formats import Layout
from lowdim.evaluate import tasks
from lowdim.prune.recipe import families, messages, rules, text


def _method(kind: str) -> tuple[PlainValidator, PlainSerializer]:
    return (
        PlainValidator(lambda value: families.build(kind, value)),
        PlainSerializer(lambda method: families.describe(kind, method), return_type=dict[str, Any]),
    )


def _split(value: object) -> object:
    """Read ``a,b`` as two names, and YAML's lists as the tuples that a frozen recipe holds."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def _tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Expressions = Annotated[tuple[str, ...], BeforeValidator(_tuple)]


_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Short = BeforeValidator(lambda value: _SHORT.get(value, value) if isinstance(value, str) else value)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Calibration(_Section):
    """The text that statistics are taken on; see `lowdim.data.calibration.calibration`.

    Args:
        source: "builtin" (the even-numbered articles of a Wikipedia slice), "builtin:NAME" (questions), or
            the path of a text, JSON-lines or safetensors file.
        samples: sequences drawn.
        context: tokens per sequence; None takes the smaller of 2048 and the model's own limit.
        seed: of the draw; None takes the recipe's seed.
        format: "text", or one of the arrangements of questions: "zero", "single", "concat".
        padding: side on which short samples are padded; padding never enters a statistic.
        rationale: put the worked reasoning before the answer ("single" and "concat").
        in_context: with "concat", that many whole questions per sequence.
        bos: where the start-of-text token goes.
    """

    source: Annotated[str, Field(min_length=1)] = "builtin"
    samples: Count = 128
    context: Annotated[int, Field(ge=2)] | None = None
    seed: Seed | None = None
    format: str = "text"
    padding: Literal["left", "right"] = "left"
    rationale: bool = False
    in_context: Count | None = None
    bos: Literal["tokenizer", "none", "window"] = "tokenizer"

    @model_validator(mode="after")
    def _arrangement(self) -> Self:
        Layout(format=self.format, rationale=self.rationale, in_context=self.in_context)
        return self


class Evaluation(_Section):
    """What is measured on the dense and then on the sparse model.

    Args:
        text: "builtin" (odd-numbered wiki articles), the path of a text file, None for no perplexity; "auto"
            is the built-in text where it has been fetched already.
        context: tokens per window.
        windows: windows measured; None takes all of the text.
        tasks: zero-shot tasks by name.
        limit: questions per task; None takes all.
    """

    text: Annotated[str, Field(min_length=1)] | None = "auto"
    context: Annotated[int, Field(ge=2)] = 512
    windows: Count | None = None
    tasks: Names = ()
    limit: Count | None = None

    @field_validator("tasks")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            tasks.find(name)
        return names


class Targets(_Section):
    r"""The layers to prune: regular expressions searched for in the layers' names.

    Args:
        include: a layer must match one of these; none given means every layer.
        exclude: a layer must match none of these.

    Example:
        >>> targets = Targets(include=("attn",), exclude=(r"\.0\.",))
        >>> targets.select(["h.0.attn.q", "h.1.attn.q", "h.1.mlp.up"])
        ['h.1.attn.q']
    """

    include: Expressions = ()
    exclude: Expressions = ()

    @field_validator("include", "exclude")
    @classmethod
    def _compile(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise RecipeError(
                    f"{expression!r} is not a regular expression: {error}. Escape what is meant literally."
                ) from error
        return expressions

    def select(self, names: Iterable[str]) -> list[str]:
        """Return the names to prune, in their order.

        Raises:
            RecipeError: an expression matches no name, or nothing is left.
        """
        known = list(names)
        for field in ("include", "exclude"):
            for expression in getattr(self, field):
                if not any(re.search(expression, name) for name in known):
                    raise RecipeError(_matches_nothing(f"targets.{field}", expression, known))
        chosen = [name for name in known if self._wants(name)]
        if known and not chosen:
            raise RecipeError(
                f"targets.exclude {list(self.exclude)} leaves none of the {len(known)} layers to prune. "
                "Exclude less."
            )
        return chosen

    def _wants(self, name: str) -> bool:
        included = not self.include or any(re.search(expression, name) for expression in self.include)
        return included and not any(re.search(expression, name) for expression in self.exclude)


def _matches_nothing(key: str, expression: str, known: list[str]) -> str:
    words = sorted({part for name in known for part in name.split(".") if not part.isdigit()})
    near = suggest(expression, words)
    return f"{key} {expression!r} matches none of the {len(known)} layers. {near}"


def _percent(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
        share = float(value[:-1]) / 100
        raise RecipeError(
            f"sparsity must be a share of zeros in [0, 1), got {value!r}. Did you mean {share:g}?"
        )
    return value


class Recipe(_Section):
    """Everything that decides what pruning writes.

    The five methods (score, repair, allocation, pattern, refine) are settings objects of the registry;
    they are given as a name, as a mapping ``{name: owl, m: 5}`` or as the object. ``method`` sets score and
    repair at once.

    Args:
        sparsity: share of zeros in the pruned layers, in [0, 1). N:M patterns imply it.
        score: how much each weight matters.
        repair: what happens to the kept weights.
        allocation: how much of the budget each layer gets.
        pattern: which masks are legal.
        refine: how a finished mask is moved.
        sequential: "block": one statistics pass per block; "true": one per group of layers inside it.
        calibration: see `Calibration`.
        evaluation: see `Evaluation`.
        targets: see `Targets`.
        exact_errors: collect X^T X even for methods that need it not, so that every layer's error is exact.
        storage: "dense" (loads anywhere) or "packed" (small).
        dtype: of the stored weights; "auto" keeps the model's.
        compute: of the forward passes; scores and solves are float32 in any case.
        seed: of every draw.
        device: where the blocks are computed.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or range, or a combination that cannot work.

    Example:
        >>> recipe = Recipe(sparsity=0.6, method="wanda", allocation={"name": "owl", "m": 7})
        >>> recipe.score, recipe.allocation.m, recipe.target
        (Wanda(variant=False), 7.0, 0.6)
        >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
        True
    """

    sparsity: Annotated[float | None, BeforeValidator(_percent)] = None
    score: Annotated[Score, *_method("score")] = Field("wanda", validate_default=True)
    repair: Annotated[Any, *_method("repair")] = Field("none", validate_default=True)
    allocation: Annotated[Allocation, *_method("allocation")] = Field("uniform", validate_default=True)
    pattern: Annotated[Pattern, *_method("pattern")] = Field("unstructured", validate_default=True)
    refine: Annotated[Any, *_method("refine")] = Field("none", validate_default=True)
    sequential: Literal["block", "true"] = "block"
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    targets: Targets = Targets()
    exact_errors: bool = False
    storage: Literal["dense", "packed"] = "dense"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Short] = "auto"
    compute: Annotated[Literal["auto", "float32", "bfloat16"], Short] = "auto"
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(messages.explain(error, "", [*type(self).model_fields, *_NESTED])) from error

    @model_validator(mode="before")
    @classmethod
    def _expand_method(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "method" not in values:
            return values
        rest = {key: value for key, value in values.items() if key != "method"}
        return {**families.expand(values["method"]), **rest}

    @field_validator("sequential", mode="before")
    @classmethod
    def _sequential(cls, value: object) -> object:
        """Take YAML's unquoted true for "true"."""
        return {True: "true", False: "block"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _combine(self) -> Self:
        self.__dict__["sparsity"] = rules.check(self)
        return self

    @property
    def target(self) -> float:
        """Share of zeros in the pruned layers; for N:M the one that the pattern implies."""
        assert self.sparsity is not None  # set by the check of combinations
        return self.sparsity

    @property
    def legal(self) -> Pattern:
        """The pattern with its group decided, where it says "auto"."""
        return rules.resolve(self)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Self:
        """Read a recipe from YAML text, or from a file if ``source`` is a `pathlib.Path`.

        Raises:
            RecipeError: the text is not a valid recipe, or the file cannot be read.
        """
        return cls(**read(source))

    def to_yaml(self) -> str:
        """Return the recipe as YAML, every default spelled out."""
        return text.dump(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, every default spelled out."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """Return the SHA-256 of the recipe with every default spelled out."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return the dotted keys at which another recipe's `to_dict` differs, for a refusal to resume.

        Example:
            >>> recipe = Recipe(sparsity=0.5)
            >>> recipe.differences(Recipe(sparsity=0.6, seed=1).to_dict())
            ['sparsity', 'seed']
        """
        return _differences("", self.to_dict(), other)


def read(source: str | Path) -> dict[str, Any]:
    """Read YAML into a recipe's mapping, its keys not yet checked.

    Raises:
        RecipeError: the file cannot be read, or does not hold a mapping.
    """
    if isinstance(source, Path):
        try:
            source = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {str(source)!r}: {error}") from error
    values = text.load(source)
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(f"a recipe must be a mapping such as 'sparsity: 0.6', got {reprlib.repr(values)}.")
    return values


def _differences(prefix: str, one: Any, other: Any) -> list[str]:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return [] if one == other else [prefix]
    keys = dict.fromkeys([*one, *other])
    found = [
        _differences(f"{prefix}.{key}" if prefix else str(key), one.get(key), other.get(key)) for key in keys
    ]
    return [key for group in found for key in group]


SECTIONS: dict[str, type[_Section]] = {
    "calibration": Calibration,
    "evaluation": Evaluation,
    "targets": Targets,
}
_NESTED = [f"{section}.{field}" for section, model in SECTIONS.items() for field in model.model_fields]
