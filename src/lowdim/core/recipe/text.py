"""YAML as recipes need it: ``2:4`` is text, ``1e-6`` a number, a key written twice an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from lowdim.core.errors import RecipeError

_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_SCALARS = {
    "tag:yaml.org,2002:null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?\d+"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (_FLOAT, list("-+.0123456789")),
}


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2, in which ``2:4`` is not the number 124."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases, with which a short text could stand for a gigantic value."""
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise RecipeError(f"alias *{event.anchor} (line {event.start_mark.line + 1}): write the value out instead.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, refusing a key that is written twice."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise RecipeError(
                    f"key {key!r} is written twice (line {key_node.start_mark.line + 1}). Keep one of them."
                )
            seen.add(key if isinstance(key, Hashable) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes text that either this loader or one of YAML 1.1 would read as a number."""

    def ignore_aliases(self, data: object) -> bool:
        """Write equal values out in full."""
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """Escape the line breaks of Unicode, which readers take for blanks."""
    style = '"' if set(value) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _integer(loader: _Loader, node: yaml.Node) -> int:
    assert isinstance(node, yaml.ScalarNode)
    return int(loader.construct_scalar(node))


def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(f"(?:{pattern.pattern})\\Z")


_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _whole(_pattern), _first)
    _Dumper.add_implicit_resolver(_tag, _whole(_pattern), _first)
_Dumper.add_representer(str, _text)
# Numbers are built by Python, so that 010 is ten and no underscore or base slips in.
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load(text: str) -> Any:
    """Read YAML.

    Raises:
        RecipeError: the text is not YAML, asks for Python objects, or writes a key twice; the line is named.

    Example:
        >>> load("{pattern: 2:4, tolerance: 1e-6, refine: none, context: null}")
        {'pattern': '2:4', 'tolerance': 1e-06, 'refine': 'none', 'context': None}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        tip = " (text that begins with * needs quotes)" if error.context == "while scanning an alias" else ""
        raise RecipeError(f"the recipe is not valid YAML, {at}{error.problem}{tip}. Mend that line.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"the recipe is not valid YAML: {error}") from error


def dump(value: Any) -> str:
    """Write YAML, keys in their order.

    Example:
        >>> print(dump({"pattern": "2:4", "samples": 128, "context": None}), end="")
        pattern: '2:4'
        samples: 128
        context: null
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
