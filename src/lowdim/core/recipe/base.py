"""What all recipes share: strict sections, YAML in and out, a fingerprint, errors that name the key."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lowdim.core.errors import RecipeError
from lowdim.core.recipe import messages, override, text
from lowdim.core.settings import Moot, check_moot

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _share(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
        share = float(value[:-1]) / 100
        raise RecipeError(f"sparsity must be a share of zeros in [0, 1), got {value!r}. Did you mean {share:g}?")
    return value


def _tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Share = BeforeValidator(_share)
Strings = Annotated[tuple[str, ...], BeforeValidator(_tuple)]


class Section(BaseModel):
    """A mapping inside a recipe: no unknown key, no silent conversion, frozen; ``moot`` is as in `Settings`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    moot: ClassVar[Moot] = {}

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        check_moot(self, self.moot, {name: each.default for name, each in type(self).model_fields.items()})
        return self


class Document(Section):
    """A whole recipe; subclasses name their sections and the kinds of methods that they choose.

    ``free`` are dotted keys of sections that hold a mapping of any keys, each of which can be set by itself.
    ``aliases`` are words that stand for other keys: each takes its value and returns what it means.

    Raises:
        RecipeError: an unknown key, a value of the wrong type or range, or a combination that cannot work.
    """

    sections: ClassVar[Mapping[str, type[Section]]] = {}
    kinds: ClassVar[tuple[str, ...]] = ()
    free: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[Mapping[str, Callable[[Any], Mapping[str, Any]]]] = {}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**self.spell_out(values))
        except ValidationError as error:
            raise RecipeError(messages.explain(error, "", type(self).keys())) from error

    @classmethod
    def keys(cls) -> list[str]:
        """Return the dotted keys of the recipe and of its sections, those of the methods' settings left out."""
        nested = [f"{name}.{key}" for name, section in cls.sections.items() for key in section.model_fields]
        own = [field.alias or name for name, field in cls.model_fields.items()]
        return [*cls.aliases, *own, *nested]

    @classmethod
    def spell_out(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a recipe's mapping with what its aliases stand for; what is given itself comes first.

        Raises:
            RecipeError: an alias means nothing, or stands for a single key that is given as well.
        """
        rest = {key: value for key, value in values.items() if key not in cls.aliases}
        for alias in cls.aliases.keys() & values.keys():
            meant = cls.aliases[alias](values[alias])
            if len(meant) == 1 and meant.keys() <= rest.keys():
                raise RecipeError(f"{alias} and {min(meant)} are two words for one key. Keep one of them.")
            rest = {**meant, **rest}
        return rest

    @classmethod
    def assemble(cls, file: Path | None, flags: Mapping[str, Any], assignments: Iterable[str] = ()) -> Self:
        """Return the recipe of a file, the flags that are not None laid over it and ``KEY=VALUE`` over both."""
        return cls.laid_over(read(file) if file else {}, flags, assignments)

    @classmethod
    def laid_over(cls, values: Mapping[str, Any], flags: Mapping[str, Any], assignments: Iterable[str] = ()) -> Self:
        """Return the recipe of a mapping, with flags and assignments laid over it as `assemble` does."""
        given = [(key, value) for key, value in flags.items() if value is not None]
        return cls(**override.override(cls, values, [*given, *override.assignments(assignments)]))

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
        return self.model_dump(mode="json", by_alias=True)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the recipe with every default spelled out."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


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
