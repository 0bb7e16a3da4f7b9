"""Masks as things: named, packed eight to a byte, hashed, saved, applied."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdim.core.errors import CheckpointError, LowdimError, suggest
from lowdim.core.lazy import Lazy, torch
from lowdim.core.packing.bits import pack_bits, unpack_bits, words_per_row

if TYPE_CHECKING:
    from torch import Tensor, nn


_outputs = Lazy("lowdim.models.disk.masks")  # a checkpoint is for the models' room to read
_networks = Lazy("lowdim.models.structure.zeros")  # and so is which weights of a model are pruned


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the rows and columns a shape is packed as: its first axis by the rest."""
    if len(shape) < 2:
        return 1, shape[0] if shape else 1
    cols = 1
    for size in shape[1:]:
        cols *= size
    return shape[0], cols


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write one safetensors file, whole or not at all, with ``about`` as JSON in its metadata."""
    from safetensors.torch import save_file

    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    # one metadata key: safetensors writes several in no fixed order, and the file's bytes must be
    save_file(dict(tensors), partial, metadata={"lowdim": json.dumps(about)})
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """Return what ``write_tensors`` wrote: the tensors and ``about``; its entry ``kind`` is the format.

    Raises:
        ValueError, KeyError: the file is no such file, is damaged, or was written by a newer lowdim.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["lowdim"])
            if about.get(kind, 1) != 1:
                raise ValueError(f"its format is {about[kind]}, this lowdim reads 1. Upgrade lowdim")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def as_mask(name: str, value: Any) -> Tensor:
    """Return a mask that is a tensor or an array, of bools or of zeros and ones, as a bool tensor.

    Raises:
        LowdimError: it is something else; names it.

    Example:
        >>> as_mask("fc", [[1, 0], [0, 1]])
        tensor([[ True, False],
                [False,  True]])
    """
    try:
        mask = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LowdimError(f"the mask of {name} must be a tensor or an array of bools; got {value!r:.60}") from error
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise LowdimError(
            f"the mask of {name} holds other numbers than 0 and 1, in {mask.dtype}; give bools, such as weight != 0"
        )
    return mask.bool()


def zero_(tensor: Tensor, off: Tensor) -> None:
    """Write +0.0, in place, wherever ``off``, bool of the same shape, is True.

    On a CPU that is a bitwise "and", three times as fast as ``masked_fill_``; NaN and -0.0 become +0.0 either way.

    Example:
        >>> import torch
        >>> weight = torch.tensor([1.0, float("nan"), -0.0])
        >>> zero_(weight, torch.tensor([False, True, True]))
        >>> weight
        tensor([1., 0., 0.])
    """
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    if tensor.device.type == "cpu" and tensor.is_floating_point() and whole is not None:
        tensor.detach().view(whole).bitwise_and_(off.to(whole).sub_(1))
    else:
        tensor.masked_fill_(off, 0.0)


class Masks(Mapping[str, "Tensor"]):
    """Which weights are kept, layer by layer: a read-only mapping from names to bool tensors (True = kept).

    Bits are stored packed and unpacked on access. Names are the layers' ("model.layers.0.mlp.up_proj") or the
    parameters' (with ".weight"); ``apply_`` takes either.

    Example:
        >>> import torch
        >>> masks = Masks.from_dict({"a": torch.tensor([[True, False], [True, True]])})
        >>> masks.density("a"), masks.sparsity()
        (0.75, 0.25)
        >>> state = {"a.weight": torch.tensor([[1.0, -2.0], [3.0, 4.0]])}
        >>> masks.apply_(state)
        >>> state["a.weight"]
        tensor([[1., 0.],
                [3., 4.]])
    """

    def __init__(self) -> None:
        self._words: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kept: dict[str, int] = {}

    @classmethod
    def from_dict(cls, masks: Mapping[str, Tensor]) -> Masks:
        """Pack bool tensors, in the order given."""
        made = cls()
        for name, mask in masks.items():
            made.add(name, mask)
        return made

    @classmethod
    def of(cls, model: nn.Module) -> Masks:
        """Take the zeros of a pruned model for its masks, by parameter name, of every layer that has some.

        Embeddings, norms and biases have none. Of a model sharded by ``fully_shard`` every rank must call this.

        Raises:
            LowdimError: less than 1% of these weights is zero, so that the model was not pruned; or it holds packed
                layers, which are for inference alone.

        Example:
            >>> import torch
            >>> layer = torch.nn.Linear(2, 2)
            >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
            >>> Masks.of(layer)["weight"]
            tensor([[ True, False],
                    [False,  True]])
        """
        found: Masks = _networks.masks_of(model)
        return found

    def add(self, name: str, mask: Tensor) -> None:
        """Add or replace one layer's mask, of the weight's shape; see `as_mask`."""
        mask = as_mask(name, mask)
        shape = tuple(mask.shape)
        self._put(name, shape, pack_bits(mask.reshape(_flat(shape))))

    def _put(self, name: str, shape: tuple[int, ...], words: Tensor) -> None:
        import numpy as np

        self._words[name], self._shapes[name] = words, shape
        self._kept[name] = int(np.bitwise_count(words.numpy().view(np.uint64)).sum())

    def __getitem__(self, name: str) -> Tensor:
        """Return one layer's mask as a new bool tensor on the CPU."""
        shape = self._shapes[name]
        return unpack_bits(self._words[name], _flat(shape)[1]).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self.hash() == other.hash()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {sum(self._kept.values())} of {self._numel()} weights kept)"

    def packed(self, name: str) -> Tensor:
        """Return one layer's words, int64 [rows, ceil(cols / 128) * 2]; shared, not copied."""
        return self._words[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one layer's mask without unpacking it."""
        return self._shapes[name]

    def kept(self, name: str | None = None) -> int:
        """Return how many weights are kept, in one layer or in all."""
        return sum(self._kept.values()) if name is None else self._kept[name]

    def _numel(self, name: str | None = None) -> int:
        shapes = self._shapes.values() if name is None else [self._shapes[name]]
        return sum(rows * cols for rows, cols in map(_flat, shapes))

    def density(self, name: str | None = None) -> float:
        """Return the share of weights kept, in one layer or in all; 1 where there is no weight."""
        return self.kept(name) / self._numel(name) if self._numel(name) else 1.0

    def sparsity(self, name: str | None = None) -> float:
        """Return the share of zeros, in one layer or in all."""
        return 1.0 - self.density(name)

    def hash(self, name: str | None = None) -> str:
        """Return sha256, in hex, over shape and bits of one layer, or over all names and their hashes.

        The same on every platform and for every order of the layers.
        """
        if name is None:
            pairs = [[key, self.hash(key)] for key in sorted(self)]
            return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
        digest = hashlib.sha256(json.dumps(list(self._shapes[name])).encode())
        digest.update(self._words[name].contiguous().numpy().astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def apply_(self, target: nn.Module | Mapping[str, Tensor]) -> None:
        """Write +0.0 over every weight that is not kept.

        Args:
            target: a module, or a mapping such as a state dict; tensors are changed in place.

        Raises:
            LowdimError: a layer is missing or has another shape; nothing has been changed then.
        """
        tensors = target if isinstance(target, Mapping) else dict(target.named_parameters(remove_duplicate=False))
        found = {name: self._find(name, tensors) for name in self}
        with torch.no_grad():
            for name, tensor in found.items():
                zero_(tensor, ~self[name].to(tensor.device))

    def check(self, target: nn.Module | Mapping[str, Tensor]) -> None:
        """Refuse weights that are not zero where they are not kept: these masks are then not of these weights.

        Args:
            target: as for ``apply_``; of sharded weights every rank must call this.

        Raises:
            LowdimError: names the first such layer, or one that is missing or has another shape.

        Example:
            >>> import torch
            >>> Masks.from_dict({"a": torch.tensor([[True, False]])}).check({"a": torch.tensor([[1.0, 2.0]])})
            Traceback (most recent call last):
            lowdim.core.errors.LowdimError: 1 of the 1 weights of a that the masks switch off are not zero, ...
        """
        tensors = target if isinstance(target, Mapping) else dict(target.named_parameters(remove_duplicate=False))
        for name in self:
            tensor, off = self._find(name, tensors).detach(), ~self[name]
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if wrong := int(((whole != 0) & off.to(whole.device)).sum()):
                raise LowdimError(
                    f"{wrong} of the {int(off.sum())} weights of {name} that the masks switch off are not zero, so the "
                    "masks are not of these weights. Load the weights that the masks were made with; or, if they are "
                    "to be zeroed, call masks.apply_(model) first"
                )

    def _find(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        for key in (name, f"{name}.weight"):
            if key in tensors:
                if tuple(tensors[key].shape) != self._shapes[name]:
                    raise LowdimError(
                        f"the mask of {name} has shape {self._shapes[name]}, the weight has "
                        f"{tuple(tensors[key].shape)}; was it made for another model?"
                    )
                return tensors[key]
        raise LowdimError(f"no weight is named {name!r} or {name + '.weight'!r}. {suggest(name + '.weight', tensors)}")

    def state_dict(self) -> dict[str, Any]:
        """Return the packed words and the shapes, for ``torch.save`` with ``weights_only`` loading."""
        return {"shapes": {k: list(v) for k, v in self._shapes.items()}, "words": dict(self._words)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all masks by those of a ``state_dict``.

        Raises:
            CheckpointError: a shape and its words do not agree.
        """
        made = Masks()
        if set(state["shapes"]) != set(state["words"]):
            raise CheckpointError("masks are damaged: shapes and words name different layers")
        for name, sizes in state["shapes"].items():
            rows, cols = _flat(tuple(sizes))
            words = state["words"][name].cpu()
            if tuple(words.shape) != (rows, words_per_row(cols)) or str(words.dtype) != "torch.int64":
                raise CheckpointError(f"masks are damaged: the words of {name} do not fit its shape {list(sizes)}")
            made._put(name, tuple(sizes), words)
        self._words, self._shapes, self._kept = made._words, made._shapes, made._kept

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        write_tensors(path, self._words, {"masks": 1, "shapes": {name: list(self._shapes[name]) for name in self}})

    @classmethod
    def load(cls, path: str | Path) -> Masks:
        """Read a file written by ``save``, or the masks of the weights in a directory written by ``lowdim prune``.

        Raises:
            CheckpointError: it is neither, or is damaged.
        """
        if Path(path).is_dir():
            found: Masks = _outputs.masks_in(Path(path))
            return found
        if not Path(path).exists():
            raise CheckpointError(f"there is neither a file nor a directory at {path}")
        try:
            words, about = read_tensors(path, "masks")
            shapes = about["shapes"]
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not hold masks saved by lowdim: {error}") from error
        made = cls()
        made.load_state_dict({"shapes": shapes, "words": words})
        return made
