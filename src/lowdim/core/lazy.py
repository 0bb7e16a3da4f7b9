"""Names that are imported when they are first used, so that a wrong recipe is refused before torch is loaded."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules.get(self.__name__) or importlib.import_module(self.__name__), name)


def lazy(name: str) -> ModuleType:
    """Return a stand-in for a module, which is imported when something of it is first used.

    Type checkers read the import beside it::

        if TYPE_CHECKING:
            import torch
        else:
            torch = lazy("torch")
    """
    return _Lazy(name)


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose ``__init__.pyi`` lists its names.

    The stub is the only list: each of its lines reads ``from MODULE import NAME as NAME``. A name is loaded when it is
    first used.

    Args:
        package: the package's ``__name__``.
    """
    stub = Path(str(sys.modules[package].__file__)).with_suffix(".pyi")
    homes: dict[str, str] = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            homes |= {alias.name: str(node.module) for alias in node.names}
    names = sorted(homes)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return (
            importlib.import_module(f"{home}.{name}")
            if home == package
            else getattr(importlib.import_module(home), name)
        )

    return load, lambda: sorted({*vars(sys.modules[package]), *names}), names
