"""NNSTD: how far apart the wiring of two networks is, whatever the order of their neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.core.lazy import torch
from lowdim.core.settings import Settings, count
from lowdim.evaluate.errors import EvaluationError

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Order = NDArray[np.int64]


@dataclass(frozen=True)
class Distance:
    """How far apart two networks are.

    Attributes:
        mean: mean over the layers, in [0, 1].
        layers: distance of each layer, in [0, 1].
        matched: for each layer the neuron of the second network that each neuron of the first is matched
            with, int64 [out].
        carried: layers whose inputs were renamed by the match of the layer before.
        blocks: layers wider than the limit and the number of blocks that they were matched in.
    """

    mean: float
    layers: dict[str, float]
    matched: dict[str, Order]
    carried: tuple[str, ...]
    blocks: dict[str, int]


@dataclass(frozen=True)
class NNSTD(Settings):
    """Neural network sparse topology distance: the edit distance of neurons, matched as well as can be.

    Neuron j of a layer is the set A_j of its inputs; of a convolution, the set of (channel, place in the
    kernel) of an output channel. Two neurons differ by |A xor B| / |A or B|, which is 0 for equal sets
    (two empty ones too) and 1 for disjoint ones. The distance of two layers is the mean difference under
    the best one-to-one match of their neurons, found by the Hungarian algorithm; the match renames the
    inputs of the next layer of the second network. Time O(n^2 in + n^3), memory 8 n^2 bytes for n neurons.

    Layers are matched one after another, each without a look at the next. A network whose hidden neurons are only
    permuted is at distance 0 if no two neurons of a layer have the same inputs. Two that do are interchangeable
    in their layer and not in the next one: which is matched with which is then arbitrary, and the next layer's
    distance may be above 0.

    Args:
        limit: a layer with more neurons is sorted (by its sets of inputs, so that equal neurons of both
            networks come to lie side by side) and matched in blocks of at most this many. The match is still
            one-to-one, and what is said of permutations holds. For the same names of the layer's inputs the
            distance is at least that of the whole match; it bounds nothing where an earlier layer, matched in
            another way, renames them.

    Paper: "Topological Insights into Sparse Neural Networks", arXiv 2006.14085.

    Example:
        >>> import torch
        >>> first = {"layer": torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]) > 0}
        >>> NNSTD().distance(first, {"layer": first["layer"].flip(0)}).mean
        0.0
        >>> other = {"layer": torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]) > 0}
        >>> round(NNSTD().distance(first, other).mean, 4)
        0.6667
    """

    limit: int = count(4096, why="neurons matched at once")

    def distance(
        self,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        *,
        follows: Mapping[str, str] | None = None,
    ) -> Distance:
        """Return the distance of two networks of equal shape.

        Args:
            first: masks by name, bool [out, in, ...], in the order of the forward pass.
            second: masks of the same names and shapes.
            follows: for each layer the one whose outputs it reads; a layer that is not named reads the
                network's input, or something whose order is fixed. Without it every layer follows the one
                before, which is right for a plain chain. Where the inputs are k times the outputs of the
                layer before, each output stands for k neighbouring inputs (a linear layer behind flattened
                channels); where they are no such multiple nothing is carried over.

        Raises:
            EvaluationError: no masks, other names or shapes, a mask of fewer than two axes, ``follows``
                naming a layer that does not come earlier.
        """
        _check(first, second)
        names = list(first)
        before = dict(zip(names[1:], names, strict=False)) if follows is None else dict(follows)
        layers: dict[str, float] = {}
        matched: dict[str, Order] = {}
        carried, blocks = [], {}
        for name in names:
            a, b = first[name], second[name]
            if name in before:
                if before[name] not in matched:
                    raise EvaluationError(
                        f"follows: {name!r} reads {before[name]!r}, which is no earlier layer of the masks; "
                        "list the masks in the order of the forward pass"
                    )
                order = _inputs(matched[before[name]], b.shape[1])
                if order is not None:
                    b = b[:, order]
                    carried.append(name)
            layers[name], matched[name] = _match(_rows(a), _rows(b), self.limit)
            if a.shape[0] > self.limit:
                blocks[name] = math.ceil(a.shape[0] / self.limit)
        return Distance(sum(layers.values()) / len(layers), layers, matched, tuple(carried), blocks)


def _check(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    if not first:
        raise EvaluationError("a distance needs masks; got none")
    if list(first) != list(second):
        odd = sorted(set(first) ^ set(second)) or list(first)
        raise EvaluationError(f"both networks must have the same layers in the same order; they differ in {odd[0]!r}")
    for name, mask in first.items():
        if mask.shape != second[name].shape:
            raise EvaluationError(
                f"the masks of {name!r} have different shapes: {list(mask.shape)} and {list(second[name].shape)}"
            )
        if mask.dim() < 2 or not mask.numel():
            raise EvaluationError(
                f"the mask of {name!r} has shape {list(mask.shape)}; neurons over inputs need two axes, not empty"
            )


def _rows(mask: Tensor) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = mask.detach().flatten(1).bool().cpu().numpy()
    return rows


def _inputs(matched: Order, width: int) -> Any:
    """Return the inputs of the second network in the first one's order, or None where the widths do not fit."""
    each, rest = divmod(width, len(matched))
    if rest or not each:
        return None
    order = torch.from_numpy(matched)
    return (order[:, None] * each + torch.arange(each)).flatten()


def _match(a: NDArray[np.bool_], b: NDArray[np.bool_], limit: int) -> tuple[float, Order]:
    """Return the mean difference of matched rows and, for each row of ``a``, the row of ``b``."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    count = len(a)
    whole = np.arange(count)
    places = (whole, whole) if count <= limit else (_sorted(a), _sorted(b))
    matched = np.empty(count, dtype=np.int64)
    total = 0.0
    for start in range(0, count, limit):
        mine, theirs = (order[start : start + limit] for order in places)
        costs = differences(a[mine], b[theirs])
        rows, columns = linear_sum_assignment(costs)
        matched[mine[rows]] = theirs[columns]
        total += float(costs[rows, columns].sum())
    return total / count, matched


def _sorted(rows: NDArray[np.bool_]) -> Order:
    import numpy as np

    order: Order = np.lexsort(np.packbits(rows, axis=1).T[::-1])
    return order


def differences(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return |A xor B| / |A or B| of each row of ``a`` [n, in] with each row of ``b`` [m, in], as [n, m].

    Two empty rows differ by 0.

    Example:
        >>> import numpy as np
        >>> sets = np.array([[1, 1, 0], [0, 0, 0]], dtype=bool)
        >>> differences(sets, sets).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    import numpy as np

    both = (a.astype(np.float32) @ b.astype(np.float32).T).astype(np.float64)  # exact below 2^24 inputs
    either = a.sum(1, dtype=np.float64)[:, None] + b.sum(1, dtype=np.float64) - both
    differ: NDArray[np.float64] = np.divide(either - both, either, out=np.zeros_like(either), where=either > 0)
    return differ
