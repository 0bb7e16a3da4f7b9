"""What calibration can be drawn from, told apart and brought to documents or to tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, overload

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.data import questions, text, wiki
from lowdim.data.batch import Batch
from lowdim.data.errors import DataError
from lowdim.data.text import Document
from lowdim.data.tokens import NEGATIVE

Documents = Sequence[Document]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Sequences that came as token ids: pairs of ids and mask, each one-dimensional."""

    rows: Iterable[tuple[torch.Tensor, torch.Tensor]]

    def padded(self, samples: int, context: int, side: str) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """Return the first ``samples`` sequences, padded to the longest, and how many without a token were passed over.

        Returns:
            ids and mask ``[samples, longest]``, and the number.

        Raises:
            DataError: there is none, or one is longer than ``context``.
        """
        rows, passed = self._first(samples)
        width = max(len(ids) for ids, _ in rows)
        if width > context:
            raise DataError(f"a sequence has {width} tokens, more than context={context}; use context={width}")
        if len(rows) < samples:
            warnings.warn(f"the source holds {len(rows)} sequences, not the {samples} asked for", stacklevel=3)
        both = torch.zeros(2, len(rows), width, dtype=torch.int64)
        for i, (ids, mask) in enumerate(rows):
            place = slice(width - len(ids), None) if side == "left" else slice(0, len(ids))
            both[0, i, place], both[1, i, place] = ids, mask
        return both[0].clone(), None if bool(both[1].all()) else both[1].clone(), passed

    def _first(self, samples: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], int]:
        rows, passed = list[tuple[torch.Tensor, torch.Tensor]](), 0
        for ids, mask in self.rows:
            if bool(mask.any()):
                rows.append((ids, mask))
            else:
                passed += 1
            if len(rows) == samples:
                break
        if not rows:
            each = f": each of its {passed} items is a sequence without a token" if passed else ""
            raise DataError(f"the source holds no sequence of tokens{each}")
        return rows, passed


def read(source: str | Path | Iterable[Any], use: str = "calibrate on") -> tuple[str, Documents | Tokens]:
    """Return a name for the source and what it holds; rows of text that are null or blank are blank documents.

    Args:
        source: see `lowdim.data.calibration.calibration`.
        use: what it is for, for messages.

    Raises:
        DataError: the source is of no known kind, or cannot be read.
    """
    if isinstance(source, (str, Path)):
        return str(source), _named(str(source))
    if isinstance(source, Mapping):
        return "tokens", _mapping(source)
    if hasattr(source, "columns") and not hasattr(source, "features"):
        raise DataError(
            f"cannot {use} a table ({type(source).__name__}); give its rows: to_dict('records') of pandas, to_dicts() "
            "of polars, to_pylist() of Arrow"
        )
    if hasattr(source, "column_names"):
        return "data set", _dataset(source)
    if isinstance(source, Iterable):
        return _items(source)
    raise DataError(f"cannot {use} a {type(source).__name__}; give a path, texts, a data set or token tensors")


def _mapping(source: Mapping[str, Any]) -> Tokens:
    """Read the one mapping that is a source, that of token tensors."""
    if "input_ids" in source:
        return Tokens(_sequences([source]))
    keys = list(source)
    if keys and all(hasattr(source[key], "column_names") for key in keys):
        named = ", ".join(map(str, keys))
        raise DataError(f"the data set is split into {named}: give one part, such as data[{keys[0]!r}]")
    raise DataError(f"a mapping of {', '.join(map(repr, keys)) or 'nothing'} is no list of rows; give a list of them")


def _items(source: Iterable[Any]) -> tuple[str, Documents | Tokens]:
    """Tell texts, records and documents from tokens by the first item that is not None."""
    items, head = iter(source), list[Any]()
    for item in items:
        head.append(item)
        if item is not None:
            break
    first = head[-1] if head else 0
    record = isinstance(first, Mapping) and "input_ids" not in first
    if first is None or record or isinstance(first, (str, Document)):
        found = [_document(item, number) for number, item in enumerate(chain(head, items))]
        return f"{len(found)} {'texts' if isinstance(first, str) else 'documents'}", found
    return "tokens", Tokens(_sequences(chain(head, items)))


def _document(item: Any, number: int) -> Document:
    if item is None or isinstance(item, str):
        return Document(text=item or "")
    if isinstance(item, Mapping):
        return text.from_record(item, f"item {number}")
    if isinstance(item, Document):
        return item
    raise DataError(f"item {number} is a {type(item).__name__}, where the items before it are text")


def _named(source: str) -> Documents | Tokens:
    if source == "builtin":
        return [Document(text=article.text) for article in wiki.calibration_articles()]
    kind, _, name = source.partition(":")
    if kind == "builtin":
        if name not in questions.CALIBRATION_SETS:
            raise DataError(f"unknown built-in set {name!r}. {suggest(name, questions.CALIBRATION_SETS)}")
        return questions.documents(name)
    if Path(source).suffix.lower() == ".safetensors":
        return Tokens(_sequences([_stored(Path(source).expanduser())]))
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


def _dataset(source: Any) -> Documents | Tokens:
    columns = source.column_names
    if "input_ids" in (next(iter(source), ()) if columns is None else columns):
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
        if bool((ids[mask == 1] < 0).any()):
            raise DataError(f"item {number} holds token id {int(ids.min())}: ids count from 0. {NEGATIVE}")
        ids = ids.masked_fill((mask == 0) & (ids < 0), 0)
        yield from zip(*(t[None] if t.ndim == 1 else t for t in (ids, mask)), strict=True)


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
        tensor = torch.as_tensor([] if value is None else value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{what} must be token ids; got {type(value).__name__}") from None
    numbers = tensor.is_floating_point() or tensor.is_complex()
    if (numbers and tensor.numel()) or tensor.ndim not in (1, 2):
        raise DataError(f"{what} must be integers of one or two dimensions; got {tensor.dtype} {list(tensor.shape)}")
    return tensor.to("cpu", torch.int64)
