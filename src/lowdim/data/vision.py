"""Small pictures to classify: Fashion-MNIST, 5,000 digits of MNIST, the 8x8 digits of scikit-learn."""

from __future__ import annotations

import csv
import gzip
import struct
from pathlib import Path

from lowdim.core.lazy import torch
from lowdim.data import assets
from lowdim.data.errors import DataError
from lowdim.data.raw import Raw, Split
from lowdim.data.tabular import bundled

CLOTHES = (*("T-shirt", "trouser", "pullover", "dress", "coat"), *("sandal", "shirt", "sneaker", "bag", "ankle boot"))
_TEN = tuple(str(digit) for digit in range(10))
_UINT8 = 0x08


def fashion_mnist() -> Raw:
    """Read Fashion-MNIST: 60,000 pictures to train on and 10,000 to test, uint8 [1, 28, 28].

    Paper: "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv 1708.07747.
    """
    home = assets.path("fashion-mnist")
    train, test = (
        Split(
            idx(home / f"{part}-images-idx3-ubyte.gz").unsqueeze(1), idx(home / f"{part}-labels-idx1-ubyte.gz").long()
        )
        for part in ("train", "t10k")
    )
    return Raw(train.x, train.y, CLOTHES, test)


def mnist_5k() -> Raw:
    """Read 5,000 digits of MNIST, 500 of each, uint8 [1, 28, 28]; nobody set a test part aside."""
    with gzip.open(assets.path("mnist-5k"), "rt") as stream:
        rows = torch.tensor([[int(value) for value in row] for row in csv.reader(stream)])
    return Raw(rows[:, :-1].to(torch.uint8).reshape(-1, 1, 28, 28), rows[:, -1].long(), _TEN)


def digits() -> Raw:
    """Read the 1,797 digits that come with scikit-learn, values 0 to 16, [1, 8, 8]; no test part is set aside."""
    x, y, _ = bundled("digits")
    return Raw(x.reshape(-1, 1, 8, 8), y, _TEN)


def idx(path: Path) -> torch.Tensor:
    """Read a gzipped IDX file of bytes: a magic number, the sizes (big-endian), the values.

    Returns:
        uint8, of the shape that the file states.

    Raises:
        DataError: the file is of another kind, or shorter than it says.
    """
    content = gzip.decompress(path.read_bytes())
    zero, kind, dims = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != _UINT8 or not dims:
        raise DataError(f"{path} is not an IDX file of bytes: it starts with {content[:4].hex()}")
    shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
    values = torch.frombuffer(bytearray(content[4 + 4 * dims :]), dtype=torch.uint8)
    if values.numel() != torch.Size(shape).numel():
        raise DataError(f"{path} states the shape {list(shape)} and holds {values.numel()} values")
    return values.reshape(shape)
