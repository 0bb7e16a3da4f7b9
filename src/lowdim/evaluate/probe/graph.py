"""A mask as a bipartite graph: its degrees, its nested regular parts, its two largest singular values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from lowdim.core.errors import NumericalError
from lowdim.evaluate.errors import EvaluationError

Index = NDArray[np.int64]
Values = NDArray[np.float64]

_DENSE = 2**16
"""Up to so many entries a dense decomposition is as quick as Lanczos."""
_SMALL = 32
"""Up to so many rows the Gram matrix is decomposed as a whole; Lanczos needs more."""


@dataclass(frozen=True)
class Bipartite:
    """The graph of one layer, nodes without edges left out.

    Attributes:
        left: input node of each edge, int64 [edges]; of a convolution (channel, place in the kernel).
        right: output node of each edge, int64 [edges].
        size: |W| of each edge, fp64 [edges]; ones where no weight was given.
        inputs: width of the layer, nodes without edges too.
        outputs: height of the layer, nodes without edges too.
    """

    left: Index
    right: Index
    size: Values
    inputs: int
    outputs: int

    @classmethod
    def of(cls, name: str, mask: Tensor, weight: Tensor | None = None) -> Bipartite:
        """Return the graph of a mask, bool [out, in, ...]: an edge for every kept weight, a kept zero too.

        Raises:
            EvaluationError: fewer than two axes, or a weight of another shape.
            NumericalError: a kept weight is NaN or Inf.

        Example:
            >>> import torch
            >>> graph = Bipartite.of("fc", torch.tensor([[True, False, True]]))
            >>> graph.left.tolist(), graph.right.tolist(), graph.inputs
            ([0, 1], [0, 0], 3)
        """
        if mask.dim() < 2:
            raise EvaluationError(f"the mask of {name!r} has shape {list(mask.shape)}; a graph needs two axes")
        if weight is not None and weight.shape != mask.shape:
            raise EvaluationError(f"the weight of {name!r} has shape {list(weight.shape)}, its mask {list(mask.shape)}")
        flat = mask.detach().flatten(1).bool().cpu()
        right, left = flat.nonzero(as_tuple=True)
        if weight is None:
            size = np.ones(len(left))
        else:
            size = weight.detach().flatten(1).cpu()[flat].double().abs().numpy()
            if not np.isfinite(size).all():
                raise NumericalError(f"the weight of {name!r} holds NaN or Inf: its spectrum is undefined")
        return cls._dense(left.numpy(), right.numpy(), size, flat.shape[1], flat.shape[0])

    @classmethod
    def _dense(cls, left: Index, right: Index, size: Values, inputs: int, outputs: int) -> Bipartite:
        """Number the nodes that have edges from 0."""
        return cls(
            np.unique(left, return_inverse=True)[1], np.unique(right, return_inverse=True)[1], size, inputs, outputs
        )

    @property
    def shape(self) -> tuple[int, int]:
        """The number of left and of right nodes that have edges."""
        return (int(self.left.max()) + 1, int(self.right.max()) + 1) if len(self.left) else (0, 0)

    def regular_parts(self, least: int = 3) -> Iterator[Bipartite]:
        """Yield, for each degree that at least ``least`` left nodes share, the graph of those nodes."""
        degrees = np.bincount(self.left)
        for degree, count in zip(*np.unique(degrees, return_counts=True), strict=True):
            if count >= least:
                edges = degrees[self.left] == degree
                yield self._dense(self.left[edges], self.right[edges], self.size[edges], self.inputs, self.outputs)

    def components(self) -> int:
        """Return the number of connected components."""
        return len(_components(self._matrix(np.ones(len(self.left))))) if len(self.left) else 0

    def largest(self, weighted: bool = False) -> tuple[float, float]:
        """Return mu_0 and mu_hat, the first and third largest |eigenvalues| of the adjacency matrix.

        The eigenvalues of a bipartite graph come in pairs of plus and minus the singular values of its
        [left, right] matrix, so these are the two largest of those; the second is 0 where there is no
        second. Components are taken one by
        one: in each the largest is simple, and equal ones of two components (mu_hat = mu_0) cannot be missed.
        """
        if not len(self.left):
            return 0.0, 0.0
        matrix = self._matrix(self.size if weighted else np.ones(len(self.left)))
        matrix.eliminate_zeros()
        if not matrix.nnz:
            return 0.0, 0.0
        found = [0.0, 0.0]
        for norm, part in _components(matrix):
            if norm <= found[1]:  # no singular value exceeds the Frobenius norm
                break
            found = sorted([*found, *_two_largest(part)], reverse=True)[:2]
        return found[0], found[1]

    def _matrix(self, values: Values) -> csr_array:
        return csr_array((values, (self.left, self.right)), shape=self.shape)


def _components(matrix: csr_array) -> list[tuple[float, csr_array]]:
    """Return the connected parts of a [left, right] matrix without zeros, each with its Frobenius norm.

    The heaviest comes first.
    """
    lefts, rights = matrix.shape
    edges = matrix.tocoo()
    both = csr_array((np.ones(edges.nnz), (edges.row, edges.col + lefts)), shape=(lefts + rights,) * 2)
    _, label = connected_components(both, directed=False)
    labels = label[edges.row]
    if (labels == labels[0]).all():
        return [(float(np.sqrt(edges.data @ edges.data)), matrix)]
    order = np.argsort(labels, kind="stable")
    parts = []
    for chosen in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        rows, row = np.unique(edges.row[chosen], return_inverse=True)
        columns, column = np.unique(edges.col[chosen], return_inverse=True)
        values = edges.data[chosen]
        part = csr_array((values, (row, column)), shape=(len(rows), len(columns)))
        parts.append((float(np.sqrt(values @ values)), part))
    return sorted(parts, key=lambda pair: -pair[0])


def _two_largest(matrix: csr_array) -> list[float]:
    """Return the largest singular values, at most two, of a connected [left, right] matrix."""
    narrow = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T.tocsr()
    rows, columns = narrow.shape
    if rows * columns <= _DENSE:
        values: Values = np.linalg.svd(narrow.toarray(), compute_uv=False)
        return [float(value) for value in values[:2]]
    if rows <= _SMALL:
        squares = np.linalg.eigvalsh((narrow @ narrow.T).toarray())[-2:]
    else:
        wide = narrow.T.tocsr()
        gram = LinearOperator((rows, rows), matvec=lambda v: narrow @ (wide @ v), dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(rows)  # fixed: the same graph, the same digits
        squares = eigsh(gram, k=2, which="LA", v0=start, tol=1e-12, return_eigenvectors=False)
    return [math.sqrt(max(float(value), 0.0)) for value in squares]
