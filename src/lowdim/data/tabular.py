"""Small tables to classify, as they come with scikit-learn."""

from __future__ import annotations

import importlib

from lowdim.core.lazy import torch
from lowdim.data.errors import DataError
from lowdim.data.raw import Raw


def breast_cancer() -> Raw:
    """Read 569 tumours: 30 measures each, malignant or benign."""
    return Raw(*bundled("breast_cancer"))


def wine() -> Raw:
    """Read 178 wines: 13 chemical measures each, three growers."""
    return Raw(*bundled("wine"))


def bundled(name: str) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Read a data set out of scikit-learn.

    Args:
        name: as in ``sklearn.datasets.load_NAME``.

    Returns:
        Numbers float32 [examples, columns], classes int64 [examples], and the classes' names.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DataError(
            f"data {name.replace('_', '-')!r} comes with scikit-learn, which is not installed. "
            "Run: pip install 'lowdim[train]'"
        ) from error
    found = getattr(datasets, f"load_{name}")()
    classes = tuple(str(each) for each in found.target_names)
    return torch.from_numpy(found.data).float(), torch.from_numpy(found.target).long(), classes
