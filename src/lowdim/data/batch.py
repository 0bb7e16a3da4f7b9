"""Token batches: what every forward pass in lowdim consumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lowdim.core.lazy import torch
from lowdim.data.errors import DataError


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of equal length, padding marked by zeros in the mask.

    Attributes:
        input_ids: token ids, int64 ``[sequences, tokens]``.
        attention_mask: 1 for tokens and 0 for padding, int64 ``[sequences, tokens]``; None means no padding.

    Raises:
        DataError: the tensors are not two-dimensional int64 tensors of one shape.

    Example:
        >>> import torch
        >>> batch = Batch(torch.tensor([[5, 6, 7], [0, 8, 9]]), torch.tensor([[1, 1, 1], [0, 1, 1]]))
        >>> len(batch), num_tokens(batch)
        (2, 5)
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for field in ("input_ids", "attention_mask"):
            _check(field, getattr(self, field))
        mask = self.attention_mask
        if mask is not None and mask.shape != self.input_ids.shape:
            shapes = f"{list(mask.shape)} and {list(self.input_ids.shape)}"
            raise DataError(f"attention_mask and input_ids must have one shape; got {shapes}")

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self.input_ids.shape[0]

    def rows(self, start: int, stop: int) -> Batch:
        """Return the sequences ``start`` to ``stop - 1`` as views."""
        mask = self.attention_mask
        return Batch(self.input_ids[start:stop], None if mask is None else mask[start:stop])

    def share(self, index: int, of: int) -> Batch:
        """Return one of so many parts that are as equal as can be; some may be empty.

        Example:
            >>> import torch
            >>> [len(Batch(torch.zeros(5, 8, dtype=torch.int64)).share(index, of=3)) for index in range(3)]
            [1, 2, 2]
        """
        return self.rows(index * len(self) // of, (index + 1) * len(self) // of)


def num_tokens(batches: Batch | Iterable[Batch]) -> int:
    """Return the number of tokens that are not padding."""
    if isinstance(batches, Batch):
        mask = batches.attention_mask
        return batches.input_ids.numel() if mask is None else int(mask.sum())
    return sum(map(num_tokens, batches))


def split(batches: Iterable[Batch], tokens_per_batch: int) -> Iterator[Batch]:
    """Cut batches so that each holds at most ``tokens_per_batch`` positions, or a single longer sequence.

    The order of the sequences is kept, and sequences are never cut or padded.

    Example:
        >>> import torch
        >>> [len(part) for part in split([Batch(torch.zeros(5, 8, dtype=torch.int64))], tokens_per_batch=16)]
        [2, 2, 1]
    """
    if tokens_per_batch < 1:
        raise DataError(f"tokens_per_batch must be at least 1; got {tokens_per_batch}")
    for batch in batches:
        step = max(1, tokens_per_batch // max(1, batch.input_ids.shape[1]))
        for start in range(0, len(batch), step):
            yield batch.rows(start, start + step)


def _check(field: str, value: torch.Tensor | None) -> None:
    if value is None and field == "attention_mask":
        return
    if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or value.ndim != 2:
        tensor = isinstance(value, torch.Tensor)
        got = f"{value.dtype} {list(value.shape)}" if tensor else type(value).__name__  # type: ignore[union-attr]
        raise DataError(f"{field} must be an int64 tensor [sequences, tokens]; got {got}")
