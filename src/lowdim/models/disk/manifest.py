"""``lowdim.json``: what was done to a model, with what, and what came out.

It holds no times and no hosts: equal inputs give equal bytes, so that two runs can be compared by hash.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lowdim.core.errors import CheckpointError
from lowdim.core.files import read_json
from lowdim.core.machine import installed

if TYPE_CHECKING:
    from torch import Tensor

    from lowdim.models.disk.packed import Form

FILE = "lowdim.json"
SCHEMA = 1
_LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "tokenizers", "gguf")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True)


class ModelPart(_Part):
    """Which model it was; ``files`` maps the names of the source's files to their SHA-256."""

    source: str
    revision: str | None = None
    architecture: str
    dtype: str
    files: dict[str, str] = {}


class LayerPart(_Part):
    """One layer: how many weights, how many not zero, its target, and the relative errors of output and rounding."""

    numel: int
    nonzeros: int
    sparsity: float
    block: int | None = None
    target: float | None = None
    error: float | None = None
    rounding: float | None = None


class SkippedPart(_Part):
    """A layer that was left alone, and why."""

    name: str
    reason: str


class SparsityPart(_Part):
    """Shares of zeros: asked for, reached over the pruned layers, reached over the whole model."""

    target: float
    prunable: float
    model: float


class AllocationPart(_Part):
    """How the budget was divided, and what was measured to do it."""

    name: str
    values: dict[str, float] = {}


class FallbackPart(_Part):
    """Something that was asked for and done another way."""

    layer: str
    what: str
    detail: str = ""


class HashesPart(_Part):
    """SHA-256 of each layer's mask and of each file beside ``lowdim.json``."""

    masks: dict[str, str] = {}
    files: dict[str, str] = {}


class PackedPart(_Part):
    """Which weights are stored packed, in which version of the format, their shapes, and how some were rounded."""

    format: str
    weights: dict[str, list[int]] = {}
    quantized: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, forms: Mapping[str, Form]) -> PackedPart:
        """Describe packed weights."""
        from lowdim.models.disk.packed_header import described, format_of, ranks_of

        weights, quantized = described(forms)
        return cls(format=format_of(quantized, ranks_of(forms)), weights=weights, quantized=quantized)


class SLoRBPart(_Part):
    """How many layers have a `lowdim.nn.slorb.SLoRB`, and what all of these cost: bytes, and products per token."""

    layers: int
    nbytes: int
    multiply_adds: int
    trains_p: bool

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SLoRBPart:
        """Describe tensors by the names that they have on disk."""
        sizes = [tensor.numel() for tensor in tensors.values()]
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        layers = {name.rpartition(".")[0] for name in tensors}
        return cls(layers=len(layers), nbytes=nbytes, multiply_adds=sum(sizes), trains_p=len(sizes) > len(layers))


class Manifest(_Part):
    """The whole of ``lowdim.json``."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    lowdim: str
    recipe: dict[str, Any] = {}
    seed: int = 0
    storage: Literal["dense", "packed"]
    model: ModelPart
    data: dict[str, Any] = {}
    versions: dict[str, str] = {}
    layers: dict[str, LayerPart] = {}
    skipped: list[SkippedPart] = []
    sparsity: SparsityPart | None = None
    allocation: AllocationPart | None = None
    fallbacks: list[FallbackPart] = []
    hashes: HashesPart = HashesPart()
    evaluation: dict[str, Any] = {}
    probes: dict[str, Any] = {}
    packed: PackedPart | None = None
    factors: dict[str, int] | None = None
    recovery: dict[str, Any] | None = None
    finetuning: dict[str, Any] | None = None
    slorb: SLoRBPart | None = None
    interventions: list[dict[str, Any]] | None = None

    def holds(self, forms: Mapping[str, Form]) -> None:
        """Say how the weights are stored, given those that are not stored dense: ``factors`` has ranks by name."""
        from lowdim.models.disk.packed_header import ranks_of

        self.storage, self.packed = ("packed", PackedPart.of(forms)) if forms else ("dense", None)
        self.factors = ranks_of(forms) or None

    def to_dict(self) -> dict[str, Any]:
        """Return what is written: plain types, in the schema's order, without the parts that do not apply."""
        data = self.model_dump(by_alias=True)
        return {key: _finite(value) for key, value in data.items() if value is not None}


def _finite(value: Any) -> Any:
    """Spell out numbers that JSON lacks: a perplexity may overflow and must not cost the result."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def parse(data: dict[str, Any]) -> Manifest:
    """Validate the contents of a ``lowdim.json``.

    Raises:
        CheckpointError: a key is unknown or missing or has the wrong type, or a newer lowdim wrote it.
    """
    _refuse_newer(data)
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{FILE} is not valid at {where}: {first['msg']}") from error


def _refuse_newer(data: Mapping[str, Any]) -> None:
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(f"{FILE} has schema {schema}; this lowdim reads up to {SCHEMA}. Upgrade lowdim.")


def refuse_newer(directory: str | Path) -> None:
    """Refuse a directory that a newer lowdim wrote, whose weights may mean something else.

    Raises:
        CheckpointError: its ``lowdim.json`` has a schema that this version does not know.
    """
    try:
        data = read_json(Path(directory) / FILE)
    except CheckpointError:  # there is none, or it says nothing
        return
    _refuse_newer(data)


def read(directory: str | Path) -> Manifest:
    """Read a directory's ``lowdim.json``.

    Raises:
        CheckpointError: it is missing, damaged or not valid.
    """
    return parse(read_json(Path(directory) / FILE))


def exists(directory: str | Path) -> bool:
    """Tell whether a directory has a ``lowdim.json``."""
    return (Path(directory) / FILE).is_file()


def grid_of(record: Manifest) -> str:
    """Return what a model's weights were rounded to when they were written last; "none" if they were not."""
    last: Mapping[str, Any] = record.recipe if record.recovery is None else record.recovery["recipe"]
    grids = {f"int{grid['bits']}" for grid in (record.packed.quantized if record.packed else {}).values()}
    return min(grids, default=str(last.get("quantize", "none")))


def to_text(manifest: Manifest) -> str:
    """Return the contents of ``lowdim.json``; a number that is not finite becomes "inf", "-inf" or "nan"."""
    return json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on.

    Example:
        >>> sorted(versions())[:3]
        ['gguf', 'numpy', 'python']
    """
    return {"python": platform.python_version(), **{name: installed(name) for name in _LIBRARIES}}
