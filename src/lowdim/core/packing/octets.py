"""Three-bit codes by eight rows: three bytes hold the eight codes of a column.

Rows go in blocks of eight, columns in words of 64, the last of either filled up with codes of zero. A word of a block
takes three runs of 64 bytes, *A*, *B*, *C*, byte *c* of each for column *c*. Rows 0 and 1 of the block lie in the bits
0-2 and 3-5 of *A*, rows 2 and 3 in those of *B*, rows 4 and 5 in those of *C*. What is left holds the last two: the
bits 6-7 of *A* are the low bits of row 6 and bit 6 of *C* is its high one; of row 7 they are those of *B* and bit 7 of
*C*. So six of eight rows are taken out as they are in four-bit codes, by one shift at most, and a block of rows is one
stretch of memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdim.core.errors import CheckpointError
from lowdim.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 8
_WORD = 64
_RUNS = 3
_CHUNK = 1 << 22


def octet_shape(rows: int, cols: int) -> tuple[int, int]:
    """Return the shape of the bytes that the codes of a matrix take.

    Example:
        >>> octet_shape(9, 65), octet_shape(16, 128)
        ((2, 384), (2, 384))
    """
    return -(-rows // ROWS), -(-cols // _WORD) * _RUNS * _WORD


def pack_octets(codes: Tensor) -> Tensor:
    """Pack codes.

    Args:
        codes: uint8 ``[rows, cols]``, each below 8.

    Returns:
        uint8 ``[ceil(rows / 8), 192 * ceil(cols / 64)]``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1], [2], [3], [4], [5], [6], [7], [5]], dtype=torch.uint8)
        >>> packed = pack_octets(codes)
        >>> [f"{byte:08b}" for byte in packed[0, [0, 64, 128]].tolist()]
        ['11010001', '01100011', '11110101']
    """
    rows, cols = codes.shape
    blocks, width = octet_shape(rows, cols)
    packed = torch.empty(blocks, width, dtype=torch.uint8)
    held, step = codes.cpu(), _blocks_at_once(width)
    for at in range(0, blocks, step):
        some = held[at * ROWS : (at + step) * ROWS]
        count = -(-len(some) // ROWS)
        whole = torch.zeros(count * ROWS, width // _RUNS, dtype=torch.uint8)
        whole[: len(some), :cols] = some
        row = whole.view(count, ROWS, -1, _WORD).unbind(1)
        a = row[0] | row[1] << 3 | row[6] << 6
        b = row[2] | row[3] << 3 | row[7] << 6
        c = row[4] | row[5] << 3 | (row[6] & 4) << 4 | (row[7] & 4) << 5
        packed[at : at + step] = torch.stack([a, b, c], 2).view(count, width)
    return packed


def unpack_octets(packed: Tensor, rows: int, cols: int) -> Tensor:
    """Undo `pack_octets`.

    Args:
        packed: uint8, as `pack_octets` made it.
        rows: of the matrix.
        cols: of the matrix.

    Returns:
        uint8 ``[rows, cols]``.

    Raises:
        CheckpointError: size or type does not fit, or a code beyond the last row or column is not zero.

    Example:
        >>> import torch
        >>> codes = torch.arange(24, dtype=torch.uint8).view(12, 2) % 8
        >>> torch.equal(unpack_octets(pack_octets(codes), 12, 2), codes)
        True
    """
    blocks, width = octet_shape(rows, cols)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (blocks, width):
        found = f"{str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        raise CheckpointError(f"the codes must be uint8 {[blocks, width]}, got {found}")
    codes, step = torch.empty(rows, cols, dtype=torch.uint8), _blocks_at_once(width)
    for at in range(0, blocks, step):
        some = codes[at * ROWS : (at + step) * ROWS]
        whole = _codes(packed[at : at + step])
        if bool(whole[len(some) :].any()) or bool(whole[:, cols:].any()):
            raise CheckpointError("a code stands beyond the last row or column")
        some.copy_(whole[: len(some), :cols])
    return codes


def _codes(packed: Tensor) -> Tensor:
    """Return the codes of whole blocks, uint8 ``[8 * blocks, 64 * words]``."""
    a, b, c = packed.view(len(packed), -1, _RUNS, _WORD).unbind(2)
    pairs = [run >> shift & 7 for run in (a, b, c) for shift in (0, 3)]
    last = [a >> 6 | c >> 4 & 4, b >> 6 | c >> 5 & 4]
    return torch.stack([*pairs, *last], 1).view(len(packed) * ROWS, -1)


def _blocks_at_once(width: int) -> int:
    return max(1, _CHUNK // max(width * ROWS, 1))
