"""CIFAR-10-C: CIFAR-10 to train on, and its test pictures corrupted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowdim.core.errors import suggest
from lowdim.core.lazy import torch
from lowdim.core.random import generator
from lowdim.data.errors import DataError
from lowdim.data.grouped.percent import CLASSES
from lowdim.data.grouped.settings import Corrupted
from lowdim.data.raw import Raw, Split

if TYPE_CHECKING:
    from lowdim.data.classification import Known

_ROW = 1 + 3 * 32 * 32
_LEVELS = 5


def cifar10c(known: Known, how: Corrupted) -> Raw:
    """Read ROOT/cifar-10-batches-bin and one severity of ROOT/CIFAR-10-C/CORRUPTION.npy with labels.npy.

    Of the clean set the binary version is read, since the Python one is a pickle. Paper: "Benchmarking Neural Network
    Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv 1903.12261.
    """
    import numpy as np

    batches = sorted(how.home("cifar-10-batches-bin").glob("data_batch_*.bin"))
    if not batches:
        raise DataError(
            f"{how.home('cifar-10-batches-bin')} holds no data_batch_1.bin. Unpack the binary version there"
        )
    parts = [_batch(path) for path in batches]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    if how.samples is not None:
        rows = torch.randperm(len(y), generator=generator(0, "data", "samples", known.name))[: how.samples]
        x, y = x[rows], y[rows]
    home = how.home("CIFAR-10-C")
    there = sorted(path.stem for path in home.glob("*.npy") if path.stem != "labels")
    if how.corruption not in there:
        raise DataError(f"{home} has no corruption {how.corruption!r}. {suggest(how.corruption, there)}")
    pictures, labels = (np.load(home / f"{name}.npy", allow_pickle=False) for name in (how.corruption, "labels"))
    if pictures.ndim != 4 or len(pictures) != len(labels) or len(labels) % _LEVELS:
        raise DataError(
            f"{how.corruption}.npy has shape {list(pictures.shape)} and labels.npy {list(labels.shape)}; five "
            "severities of one set of pictures, [pictures, 32, 32, 3], and as many labels were expected"
        )
    each = len(labels) // _LEVELS
    rows_of = slice((how.severity - 1) * each, how.severity * each)
    test = torch.from_numpy(pictures[rows_of].copy()).permute(0, 3, 1, 2).contiguous()
    return Raw(x, y, CLASSES["corrupted-cifar-10"], Split(test, torch.from_numpy(labels[rows_of].astype("int64"))))


def _batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    if not len(content) or len(content) % _ROW:
        raise DataError(f"{path} has {len(content)} bytes, which are not rows of {_ROW}. Fetch it again")
    rows = content.reshape(-1, _ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()
