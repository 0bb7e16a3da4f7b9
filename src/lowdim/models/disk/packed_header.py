"""What a file of packed weights says of them: the names of their tensors, and the ``__metadata__`` to undo it.

A weight ``layer.weight`` is stored as ``layer.mask``, ``layer.values`` and, if it was rounded, ``layer.scales`` and
``layer.table``; or, as the product of two matrices, ``layer.a`` and ``layer.b``. Format 1 has no rounded weights,
format 2 has, format 3 has some without a mask, format 4 has products.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.core.quantize import Grid
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.packed import Form, Packed
from lowdim.models.disk.shard import DTYPES, NAMES, Header, Stored

STEM = "packed"
BESIDE = (".slorb.s", ".slorb.p")
"""How tensors end that stand beside a layer (`lowdim.nn.slorb`) and change what it computes."""
PREFIX = "lowdim."
_FORMAT, _SHAPES, _GRIDS, _RANKS = "lowdim.format", "lowdim.packed", "lowdim.quantized", "lowdim.factors"
_PLAIN, _ROUNDED, _DENSE, _PRODUCTS = _FORMATS = "1", "2", "3", "4"


def stored_name(name: str, part: str) -> str:
    """Return the name under which a part of a packed weight is stored.

    Example:
        >>> stored_name("model.layers.0.mlp.up_proj.weight", "mask")
        'model.layers.0.mlp.up_proj.mask'
    """
    return f"{name.removesuffix('.weight')}.{part}"


def is_beside(name: str) -> bool:
    """Tell whether a tensor stands beside a layer; such tensors are in packed files alone.

    Example:
        >>> is_beside("model.layers.0.mlp.up_proj.slorb.s"), is_beside("model.layers.0.mlp.up_proj.weight")
        (True, False)
    """
    return name.endswith(BESIDE)


def lay_out(
    tensors: Mapping[str, Tensor | Stored | Packed | Factors],
) -> tuple[dict[str, Tensor | Stored], dict[str, str]]:
    """Take packed weights apart for a file.

    Returns:
        The tensors to store and the ``__metadata__`` that tells a reader how to undo it.

    Raises:
        CheckpointError: a name that a packed weight needs is taken by another tensor.
    """
    whole = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Packed | Factors)}
    stored: dict[str, Tensor | Stored] = {
        name: tensor for name, tensor in tensors.items() if not isinstance(tensor, Packed | Factors)
    }
    for name in sorted(whole):
        for part, tensor in whole[name].tensors().items():
            key = stored_name(name, part)
            if key in tensors or key in stored:
                raise CheckpointError(f"cannot pack {name!r}: there is a tensor named {key!r} already")
            stored[key] = tensor
    return stored, metadata_of({name: packed.form for name, packed in whole.items()})


def metadata_of(forms: Mapping[str, Form]) -> dict[str, str]:
    """Return the ``__metadata__`` entries of a file that holds these packed weights; none for none."""
    if not forms:
        return {}
    shapes, grids = described(forms)
    return _metadata(shapes, grids, ranks_of(forms))


def ranks_of(forms: Mapping[str, Form]) -> dict[str, int]:
    """Return the ranks of the weights that are products, sorted by name."""
    return {name: rank for name in sorted(forms) if (rank := forms[name].rank) is not None}


def described(forms: Mapping[str, Form]) -> tuple[dict[str, list[int]], dict[str, dict[str, Any]]]:
    """Return the shapes of packed weights, and what is said of those that were rounded, sorted by name."""
    shapes = {name: list(forms[name].shape) for name in sorted(forms)}
    return shapes, {name: _describe(forms[name]) for name in shapes if forms[name].grid is not None}


def _describe(form: Form) -> dict[str, Any]:
    assert form.grid is not None
    said = {"bits": form.grid.bits, "group": form.grid.group, "dtype": NAMES[form.dtype]}
    return said | ({"transposed": True} if form.transposed else {}) | ({} if form.masked else {"dense": True})


def _metadata(shapes: Mapping[str, Any], grids: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, str]:
    made = {_FORMAT: format_of(grids, ranks), _SHAPES: _json(shapes)}
    return made | ({_GRIDS: _json(grids)} if grids else {}) | ({_RANKS: _json(ranks)} if ranks else {})


def format_of(grids: Mapping[str, Any], ranks: Mapping[str, int]) -> str:
    """Return the version of the format, given what is said of rounded weights, and the ranks of products."""
    if ranks:
        return _PRODUCTS
    if any(said.get("dense") for said in grids.values()):
        return _DENSE
    return _ROUNDED if grids else _PLAIN


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps({name: value[name] for name in sorted(value)}, separators=(",", ":"))


def united(headers: Iterable[Header]) -> dict[str, str]:
    """Return the metadata of several files as those of one; their lists of packed weights are joined."""
    metadata: dict[str, str] = {}
    shapes: dict[str, Any] = {}
    grids: dict[str, Any] = {}
    ranks: dict[str, Any] = {}
    for header in headers:
        metadata |= header.metadata
        shapes |= json.loads(header.metadata.get(_SHAPES, "{}"))
        grids |= json.loads(header.metadata.get(_GRIDS, "{}"))
        ranks |= json.loads(header.metadata.get(_RANKS, "{}"))
    return metadata | (_metadata(shapes, grids, ranks) if _SHAPES in metadata else {})


def read_forms(file: str, header: Header) -> dict[str, Form]:
    """Return the forms of a file's packed weights after checking that their parts are there and fit.

    Raises:
        CheckpointError: the header is damaged, or a newer lowdim wrote it.
    """
    version = header.metadata.get(_FORMAT)
    if version is None and _SHAPES not in header.metadata:
        return {}
    if version not in _FORMATS:
        raise CheckpointError(
            f"{file} is packed in format {version!r}; this lowdim reads {_PLAIN} to {_PRODUCTS}. Upgrade lowdim."
        )
    try:
        shapes = json.loads(header.metadata[_SHAPES])
        grids = json.loads(header.metadata.get(_GRIDS, "{}"))
        ranks = json.loads(header.metadata.get(_RANKS, "{}"))
        if not grids.keys() | ranks.keys() <= shapes.keys() or grids.keys() & ranks.keys():
            raise ValueError("a rounded weight, or a product, is not packed")
        sizes = {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}
        forms = {n: _form(n, shape, grids.get(n), ranks.get(n), header) for n, shape in sizes.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{file}: the list of packed weights in its header is damaged") from error
    for name, form in forms.items():
        _check_parts(file, name, form, header)
    return forms


def _form(name: str, shape: tuple[int, ...], said: Mapping[str, Any] | None, rank: int | None, header: Header) -> Form:
    if rank is not None:
        a = header.tensors.get(stored_name(name, "a"))
        return Form(shape, torch.float32 if a is None else a.dtype, rank=int(rank))
    if said is None:
        values = header.tensors.get(stored_name(name, "values"))
        return Form(shape, torch.float32 if values is None else values.dtype)
    dtype, turned = DTYPES[said["dtype"]], said.get("transposed", False)
    if not dtype.is_floating_point or len(shape) < 2 or (turned and len(shape) != 2):
        raise ValueError("a rounded weight is a floating-point matrix")
    grid = Grid(int(said["bits"]), int(said["group"]))
    return Form(shape, dtype, grid, bool(turned), not said.get("dense", False))


def _check_parts(file: str, name: str, form: Form, header: Header) -> None:
    parts = {part: header.tensors.get(stored_name(name, part)) for part in form.parts}
    missing = [part for part, found in parts.items() if found is None]
    if missing:
        raise CheckpointError(f"{file}: packed weight {name!r} lacks its {' and its '.join(missing)}")
    if form.rank is not None:
        a, b = parts["a"], parts["b"]
        assert a is not None and b is not None
        sizes = (a.shape, b.shape) == ((form.shape[0], form.rank), (form.rank, *form.shape[1:]))
        if len(form.shape) != 2 or not sizes or a.dtype != b.dtype or not a.dtype.is_floating_point:
            raise CheckpointError(f"{file}: the factors of {name!r} do not fit a weight of shape {list(form.shape)}")
        return
    values, mask = parts["values"], parts.get("mask")
    assert values is not None
    # Rows without columns take no bytes, however many they are.
    fits = bool(form.shape) and min(form.shape) >= 0 and (form.cols > 0 or form.rows == 0)
    if mask is None:
        if not fits or values.shape != form.codes_shape:
            raise CheckpointError(f"{file}: the codes of {name!r} do not fit a weight of shape {list(form.shape)}")
        return
    fits = fits and mask.shape == (form.rows, form.words)
    if mask.dtype != torch.int64 or not fits or len(values.shape) != 1:
        raise CheckpointError(f"{file}: the mask of {name!r} does not fit a weight of shape {list(form.shape)}")
