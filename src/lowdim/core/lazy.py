"""Names that are imported when they are first used, so that a wrong recipe is refused before torch is loaded."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Lazy(ModuleType):
    """A stand-in for a module, which is imported when something of it is first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules.get(self.__name__) or importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = Lazy("torch")


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose ``__init__.pyi`` lists its names.

    The stub is the only list: each of its lines reads ``from MODULE import NAME as NAME``. A name is loaded when it is
    first used; one that a package inside is called by stands for that package, as after an import of it.

    Args:
        package: the package's ``__name__``.
    """
    module = sys.modules[package]
    stub = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    homes = {name: home for home, name in re.findall(r"^from (\S+) import (\w+) as \2$", stub, re.MULTILINE)}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, room = homes[name], f"{package}.{name}"
        if home == package or home.startswith(f"{room}."):
            return importlib.import_module(room)
        return getattr(importlib.import_module(home), name)

    return load, lambda: sorted({*vars(module), *homes}), sorted(homes)
