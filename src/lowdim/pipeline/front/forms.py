"""The contestants: the forms of a model that are made and measured, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowdim.core.errors import RecipeError, suggest
from lowdim.infer.bench.settings import BITS

Sort = Literal["dense", "sparse", "file", "llama.cpp"]
KINDS = ("bf16", "int8", "int4", "int3")
PATTERNS = ("50", "60", "8:16", "2:4")
"""Shares of zeros in percent, anywhere in a matrix; or N:M."""
FOREIGN = {"Q8_0": 8.6, "Q4_0": 5.5, "Q4_K_M": 6.3, "Q3_K_M": 5.6, "Q2_K": 5.3}
"""llama.cpp's kinds and the bits of a weight: those of widths that are no multiple of 256, which take the most."""


@dataclass(frozen=True)
class Form:
    """A form of a model.

    Attributes:
        name: what the user writes.
        sort: "dense" and "sparse" ones are made here; the others are files of other engines.
        kind: of the stored weights.
        pattern: of a sparse one, see `PATTERNS`.
        trained: whether it is recovered, trained through its grid, or tuned on the text, rather than made at one go.
    """

    name: str
    sort: Sort
    kind: str = "bf16"
    pattern: str = ""
    trained: bool = False

    @property
    def made(self) -> bool:
        """Whether this package makes and measures it."""
        return self.sort in ("dense", "sparse")

    @property
    def plain(self) -> bool:
        """Whether it is a dense model whose weights are not rounded."""
        return self.sort == "dense" and self.kind == "bf16"

    @property
    def zeros(self) -> float:
        """Share of zeros that the pattern asks for.

        Example:
            >>> Form("sparse-2:4-bf16", "sparse", pattern="2:4").zeros
            0.5
        """
        if ":" in self.pattern:
            kept, group = map(int, self.pattern.split(":"))
            return 1 - kept / group
        return int(self.pattern or 0) / 100

    def bytes_of(self, weights: int) -> int:
        """Return about how many bytes are written for some weights.

        Example:
            >>> Form("sparse-50-bf16", "sparse", pattern="50").bytes_of(8)
            9
        """
        if self.sort == "file" or (self.plain and not self.trained):
            return 0  # it is there already
        bits = FOREIGN.get(self.kind) or BITS[self.kind] * (1 - self.zeros) + (self.sort == "sparse")
        return round(weights * bits / 8)


def _catalogue() -> dict[str, Form]:
    dense = [Form(f"dense-{kind}", "dense", kind) for kind in KINDS]
    dense += [Form(f"dense-{kind}-trained", "dense", kind, trained=True) for kind in KINDS]
    sparse = [
        Form(f"sparse-{pattern}-{kind}{'-recovered' * trained}", "sparse", kind, pattern, trained)
        for trained in (False, True)
        for pattern in PATTERNS
        for kind in ("bf16", "int8", "int4")
    ]
    foreign = [Form(f"llama.cpp-{kind}", "llama.cpp", kind) for kind in FOREIGN]
    return {form.name: form for form in (*dense, *sparse, Form("source", "file"), *foreign)}


FORMS = _catalogue()


def choose(names: Sequence[str], recover: bool) -> list[Form]:
    """Return the forms of some names, in the order of the catalogue; of no name all that can be had.

    Raises:
        RecipeError: an unknown name, or a trained form without ``recover``.

    Example:
        >>> [form.name for form in choose(["sparse-2:4-int8", "dense-bf16"], recover=False)]
        ['dense-bf16', 'sparse-2:4-int8']
    """
    for name in names:
        if name not in FORMS:
            raise RecipeError(f"--forms: there is no form {name!r}. {suggest(name, FORMS)}")
        if FORMS[name].trained and not recover:
            raise RecipeError(f"--forms: {name} is trained, which --recover asks for. Add --recover, or leave it out.")
    return [form for form in FORMS.values() if (form.name in names if names else recover or not form.trained)]
