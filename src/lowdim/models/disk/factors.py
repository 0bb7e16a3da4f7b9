"""A weight stored as two thin matrices, ``layer.a`` and ``layer.b``: their product is the weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowdim.core.errors import CheckpointError
from lowdim.models.disk.packed import Form


@dataclass(frozen=True)
class Factors:
    """A weight [out, in] as A [out, r] times B [r, in].

    Raises:
        CheckpointError: they are no matrices of one dtype, or do not fit each other.

    Example:
        >>> import torch
        >>> made = Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]))
        >>> made.form.rank, made.weight().tolist(), made.nbytes
        (1, [[3.0, 4.0], [6.0, 8.0]], 16)
    """

    a: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        a, b = self.a, self.b
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or a.dtype != b.dtype:
            raise CheckpointError(
                f"factors must be [out, r] and [r, in] of one dtype, got {a.dtype} {list(a.shape)} and {b.dtype} "
                f"{list(b.shape)}"
            )

    @property
    def form(self) -> Form:
        """What a file's header says of it."""
        return Form((self.a.shape[0], self.b.shape[1]), self.a.dtype, rank=self.a.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store by the last parts of their names."""
        return {"a": self.a, "b": self.b}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.a.nbytes + self.b.nbytes

    def weight(self) -> Tensor:
        """Return the product, in fp32 and then rounded to the dtype."""
        made: Tensor = (self.a.float() @ self.b.float()).to(self.a.dtype)
        return made
