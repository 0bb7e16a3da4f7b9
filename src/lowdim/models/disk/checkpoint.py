"""A checkpoint directory, read lazily: files checked when it is opened, tensors read when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lowdim.core.errors import CheckpointError, suggest
from lowdim.core.files import file_sha256, read_json
from lowdim.models.disk import adapters, manifest, packed_header
from lowdim.models.disk.factors import Factors
from lowdim.models.disk.files import companions, inside
from lowdim.models.disk.packed import Form, Packed
from lowdim.models.disk.packed_header import stored_name
from lowdim.models.disk.shard import Header, Stored, read_header, read_tensor

STEMS = ("model", packed_header.STEM)
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype, shape, and the name of the file it is in."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory."""
        return self.numel * self.dtype.itemsize


class Checkpoint:
    """A Hugging Face directory of safetensors files, dense or packed by lowdim (read as if it were dense).

    Pickled weights (``.bin``, ``.pt``) are never opened: reading one can run code.

    Attributes:
        path: the directory.
        files: names of the weight files, the index first if there is one.
        storage: ``"dense"`` or ``"packed"``.

    Raises:
        CheckpointError: a file is missing, damaged, outside the directory or not safe to read; it is named.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._check_directory()
        stem = self._stem()
        single, index = self.path / f"{stem}.safetensors", self.path / f"{stem}.safetensors.index.json"
        listed = None if single.exists() else self._read_index(index)
        shards = [single.name] if listed is None else sorted(set(listed.values()))
        self.files = shards if listed is None else [index.name, *shards]
        headers = {name: read_header(inside(self.path, name)) for name in shards}
        self._stored = self._merge(headers, listed)
        self._metadata: dict[str, dict[str, str]] = {}
        self._packed: dict[str, Form] = {}
        for name, header in headers.items():
            self._packed |= packed_header.read_forms(name, header)
            self._metadata[name] = {k: v for k, v in header.metadata.items() if not k.startswith(packed_header.PREFIX)}
        self.storage = "packed" if stem == packed_header.STEM or self._packed else "dense"
        self._hidden = {stored_name(name, part) for name, form in self._packed.items() for part in form.parts}
        twice = sorted(self._packed.keys() & self._stored.keys())
        if twice:
            raise CheckpointError(f"tensor {twice[0]!r} is stored both dense and packed in {self.path}")
        self._names = sorted(self._stored.keys() - self._hidden | self._packed.keys())

    def _check_directory(self) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        if not self.path.is_dir():
            hint = f" {partial} exists: that run did not finish; resume it." if partial.is_dir() else ""
            raise CheckpointError(f"no checkpoint directory at {self.path}.{hint}")
        adapters.check_directory(self.path)
        manifest.refuse_newer(self.path)

    def _stem(self) -> str:
        found = [
            stem
            for stem in STEMS
            if any((self.path / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json"))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"{self.path} holds both a dense and a packed model. Remove the one you do not want.")
        raise CheckpointError(_nothing_to_read(self.path))

    def _read_index(self, index: Path) -> dict[str, str]:
        """Return the index's ``weight_map`` after checking every name in it."""
        data = read_json(inside(self.path, index.name))
        listed = data.get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
            raise CheckpointError(f"{index.name} has no 'weight_map' of tensor names to file names. Fetch it again.")
        for file in sorted(set(listed.values())):
            if not (inside(self.path, file)).is_file():
                raise CheckpointError(
                    f"{index.name} lists {file!r}, which is missing from {self.path}. Fetch it again."
                )
        return listed

    def _merge(self, headers: dict[str, Header], listed: dict[str, str] | None) -> dict[str, Stored]:
        merged: dict[str, Stored] = {}
        for file, header in headers.items():
            for name, stored in header.tensors.items():
                if name in merged:
                    raise CheckpointError(f"tensor {name!r} is in two files: {merged[name].file.name} and {file}")
                if listed is not None and listed.get(name) != file:
                    raise CheckpointError(f"tensor {name!r} is in {file}, but the index says {listed.get(name)!r}")
                merged[name] = stored
        absent = sorted((listed or {}).keys() - merged.keys())
        if absent:
            assert listed is not None
            raise CheckpointError(f"the index says that {absent[0]!r} is in {listed[absent[0]]}, but it is not there")
        return merged

    @property
    def metadata(self) -> dict[str, str]:
        """The ``__metadata__`` of all weight files together, lowdim's own entries left out."""
        return {key: value for entries in self._metadata.values() for key, value in entries.items()}

    def metadata_of(self, file: str) -> dict[str, str]:
        """Return the ``__metadata__`` of one weight file, lowdim's own entries left out."""
        return dict(self._metadata[file])

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return list(self._names)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's dtype, shape and file without reading it."""
        self._check(name)
        if name in self._packed:
            form = self._packed[name]
            file = self._stored[stored_name(name, form.parts[-1])].file
            return TensorInfo(form.dtype, form.shape, file.name)
        stored = self._stored[name]
        return TensorInfo(stored.dtype, stored.shape, stored.file.name)

    def read(self, name: str) -> Tensor:
        """Return a fresh copy of a tensor in ordinary, aligned memory; a packed one is decoded."""
        self._check(name)
        if name not in self._packed:
            return read_tensor(self._stored[name])
        try:
            found = self.as_stored(name)
            assert not isinstance(found, Stored)
            return found.weight()
        except CheckpointError as error:
            raise CheckpointError(f"{self.info(name).file}: {name!r} is damaged: {error}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._packed or (name in self._stored and name not in self._hidden)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Read every tensor, one after another."""
        return ((name, self.read(name)) for name in self._names)

    def is_packed(self, name: str) -> bool:
        """Tell whether a weight is stored packed."""
        return name in self._packed

    def read_packed(self, name: str) -> Packed:
        """Return a packed weight's tensors as they are stored, not yet checked, and without decoding them.

        Raises:
            CheckpointError: the weight is not stored packed, or does not exist.
        """
        found = self.as_stored(name)
        if not isinstance(found, Packed):
            how = "dense" if isinstance(found, Stored) else "as two factors"
            raise CheckpointError(f"{name!r} is stored {how} in {self.info(name).file}; use read()")
        return found

    def as_stored(self, name: str) -> Packed | Factors | Stored:
        """Return a tensor as it is stored, to be written again: packed, as factors, or where its bytes lie."""
        self._check(name)
        form = self._packed.get(name)
        if form is None:
            return self._stored[name]
        parts = {part: read_tensor(self._stored[stored_name(name, part)]) for part in form.parts}
        return Factors(**parts) if form.rank is not None else Packed(form, parts.pop("mask", None), **parts)

    @property
    def ranks(self) -> dict[str, int]:
        """The ranks of the weights that are stored as two factors, by name."""
        return packed_header.ranks_of(self._packed)

    def form(self, name: str) -> Form | None:
        """Return how a weight is packed, ``None`` for one that is stored dense."""
        self._check(name)
        return self._packed.get(name)

    def stored(self, name: str) -> Stored:
        """Return where a dense tensor's bytes lie, so that they can be copied without decoding."""
        self._check(name)
        return self._stored[name]

    def stored_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes on disk; of a packed one, all its parts."""
        form = self.form(name)
        parts = [stored_name(name, part) for part in form.parts] if form else [name]
        return sum(self._stored[part].nbytes for part in parts)

    def _check(self, name: str) -> None:
        if name not in self:
            near = suggest(name, self._names)
            hint = f" {near}" if near.startswith("Did") else ""
            raise CheckpointError(f"{self.path} has no tensor {name!r}.{hint}")

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights, whatever ``config.json`` says of it.

        Raises:
            CheckpointError: it is not a type that can be computed with.
        """
        sizes: dict[torch.dtype, int] = {}
        for name in self._names:
            info = self.info(name)
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.numel
            if len(info.shape) > 1 and _holds_codes(name, info.dtype):
                kind = str(info.dtype).removeprefix("torch.")
                raise CheckpointError(
                    f"{name!r} in {self.path} is {kind}: the weights are already quantised, codes that other tensors "
                    "scale. Use the bfloat16 or float16 original (see base_model on its model card)."
                )
        most = max(sizes, key=lambda dtype: sizes[dtype], default=None)
        if most not in FLOATS:
            held = str(most).removeprefix("torch.") if sizes else "no"
            raise CheckpointError(f"{self.path} holds {held} weights; lowdim works on bfloat16, float16 and float32.")
        return most

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight files on disk."""
        return sum((self.path / name).stat().st_size for name in self.files)

    def companions(self) -> list[str]:
        """Return the names of what travels with the weights: config, tokenizer, chat template, licence."""
        return companions(self.path)

    def fingerprint(self) -> dict[str, str]:
        """Return the SHA-256 of every weight file and companion, by name; every byte is read, once per object."""
        return dict(self._hashes)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        names = sorted({*self.files, *self.companions()})
        return {name: file_sha256(inside(self.path, name)) for name in names}


def _holds_codes(name: str, dtype: torch.dtype) -> bool:
    """Whether a tensor is no number to compute with: floats of one byte, or a weight of integers."""
    return dtype.itemsize == 1 if dtype.is_floating_point else name.endswith(".weight")


def _nothing_to_read(path: Path) -> str:
    pickles = sorted(found.name for pattern in _PICKLES for found in path.glob(pattern))
    if pickles:
        return (
            f"{path} holds only pickled weights ({pickles[0]}), and opening a pickle can run code. Use a "
            "safetensors version of the model, or, if you trust this one, convert it once where it can do no "
            "harm: AutoModelForCausalLM.from_pretrained(DIR, weights_only=True).save_pretrained(NEW_DIR)."
        )
    return f"{path} holds no model.safetensors and no model.safetensors.index.json"
