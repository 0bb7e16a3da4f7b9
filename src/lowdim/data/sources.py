"""What calibration can be drawn from, told apart and brought to documents or to tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.data import questions, text, wiki
from lowdim.data.batch import Batch
from lowdim.data.errors import DataError
from lowdim.data.text import Document

Documents = Sequence[Document]

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".npy", ".npz")


@dataclass(frozen=True, eq=False)
class Tokens:
    """Sequences that came as token ids: pairs of ids and mask, each one-dimensional."""

    rows: Iterable[tuple[torch.Tensor, torch.Tensor]]

    def padded(self, samples: int, context: int, side: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the first ``samples`` sequences, padded to the longest: ids and mask ``[samples, longest]``.

        Raises:
            DataError: there is none, or one is longer than ``context``.
        """
        rows = list(islice(self.rows, samples))
        if not rows:
            raise DataError("the source holds no sequence of tokens")
        width = max(len(ids) for ids, _ in rows)
        if width > context:
            raise DataError(f"a sequence has {width} tokens, more than context={context}; use context={width}")
        if len(rows) < samples:
            warnings.warn(f"the source holds {len(rows)} sequences, not the {samples} asked for", stacklevel=3)
        both = torch.zeros(2, len(rows), width, dtype=torch.int64)
        for i, (ids, mask) in enumerate(rows):
            place = slice(width - len(ids), None) if side == "left" else slice(0, len(ids))
            both[0, i, place], both[1, i, place] = ids, mask
        return both[0].clone(), None if bool(both[1].all()) else both[1].clone()


def read(source: str | Path | Iterable[Any]) -> tuple[str, Documents | Tokens]:
    """Return a name for the source and what it holds.

    Raises:
        DataError: the source is of no known kind, or cannot be read.
    """
    if isinstance(source, (str, Path)):
        return str(source), _named(str(source))
    columns = getattr(source, "column_names", None)
    if columns is not None:
        return "data set", _dataset(source, list(columns))
    if isinstance(source, Sequence) and source:
        if all(isinstance(item, str) for item in source):
            return f"{len(source)} texts", [Document(text=item) for item in source]
        if all(isinstance(item, Document) for item in source):
            return f"{len(source)} documents", list(source)
        if all(isinstance(item, Mapping) and "input_ids" not in item for item in source):
            return f"{len(source)} documents", [text.from_record(r, f"item {i}") for i, r in enumerate(source)]
    if isinstance(source, Iterable):
        return "tokens", Tokens(_sequences(source))
    raise DataError(f"cannot calibrate on a {type(source).__name__}; give a path, texts, a data set or token tensors")


def _named(source: str) -> Documents | Tokens:
    if source == "builtin":
        return [Document(text=article.text) for article in wiki.calibration_articles()]
    kind, _, name = source.partition(":")
    if kind == "builtin":
        if name not in questions.CALIBRATION_SETS:
            raise DataError(f"unknown built-in set {name!r}. {suggest(name, questions.CALIBRATION_SETS)}")
        return questions.documents(name)
    suffix = Path(source).suffix.lower()
    if suffix == ".safetensors":
        return Tokens(_sequences([_stored(Path(source).expanduser())]))
    if suffix in _PICKLES:
        raise DataError(f"{source}: lowdim reads no pickles and no arrays; save the ids as .safetensors ('input_ids')")
    return text.read(source)


def _stored(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {path} as safetensors: {error}") from error
    if "input_ids" not in stored:
        raise DataError(f"{path} has no tensor 'input_ids'; it has {', '.join(stored) or 'none'}")
    return stored


def _dataset(source: Any, columns: list[str]) -> Documents | Tokens:
    if "input_ids" in columns:
        return Tokens(_sequences(source))
    if not hasattr(source, "__len__"):
        raise DataError("a streaming data set has no length to draw from; take a part first: list(data.take(1000))")
    if len(source) == 0:
        raise DataError("the data set is empty")
    return _Rows(source)


class _Rows(Sequence[Document]):
    """The rows of a data set as documents, read when asked for."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return text.from_record(self.rows[index], f"row {index} of the data set")


def _sequences(items: Iterable[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for number, item in enumerate(items):
        ids, mask = _ids_and_mask(item, number)
        if mask.shape != ids.shape:
            raise DataError(f"item {number}: input_ids {list(ids.shape)} and attention_mask {list(mask.shape)} differ")
        if ids.numel() == 0 or not bool(mask.any(-1).all()):
            raise DataError(f"item {number} holds a sequence without a token")
        yield from zip(*(t.reshape(-1, t.shape[-1]) for t in (ids, mask)), strict=True)


def _ids_and_mask(item: Any, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(item, Batch):
        item = {"input_ids": item.input_ids, "attention_mask": item.attention_mask}
    fields = item if isinstance(item, Mapping) else {"input_ids": item}
    if "input_ids" not in fields:
        raise DataError(f"item {number} has no 'input_ids'; it has {', '.join(map(repr, fields))}")
    ids = _tensor(fields["input_ids"], f"item {number}: input_ids")
    mask = fields.get("attention_mask")
    if mask is None:
        return ids, torch.ones_like(ids)
    return ids, (_tensor(mask, f"item {number}: attention_mask") != 0).to(torch.int64)


def _tensor(value: Any, what: str) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{what} must be token ids; got {type(value).__name__}") from None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.ndim not in (1, 2):
        raise DataError(f"{what} must be integers of one or two dimensions; got {tensor.dtype} {list(tensor.shape)}")
    return tensor.to("cpu", torch.int64)
