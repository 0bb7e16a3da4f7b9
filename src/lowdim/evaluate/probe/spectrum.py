"""Spectral gaps of one layer's graph, and of the regular graphs nested in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lowdim.evaluate.probe.graph import Bipartite

Edges = Literal["once", "twice"]


@dataclass(frozen=True)
class Gap:
    r"""The Ramanujan gap of a bipartite graph.

    .. math:: \delta_s = 2 \sqrt{\mu_0 - 1} - \hat\mu \qquad \delta_r = \sqrt{d_L - 1} + \sqrt{d_R - 1} -
    \hat\mu

    Attributes:
        nodes: left and right nodes that have edges.
        degree: mean degrees d_L and d_R, at least 1.
        mu: mu_0 and mu_hat, the first and third largest |eigenvalues|.
        bound_s: 2 sqrt(mu_0 - 1).
        bound_r: sqrt(d_L - 1) + sqrt(d_R - 1).
        delta_s: bound_s - mu_hat.
        delta_r: bound_r - mu_hat; the graph is Ramanujan where it is not negative.
        weighted: mu_0 - mu_hat of the graph whose edges weigh |W|.
        weighted_relative: that over mu_0; NaN where every kept weight is 0.
    """

    nodes: tuple[int, int]
    degree: tuple[float, float]
    mu: tuple[float, float]
    bound_s: float
    bound_r: float
    delta_s: float
    delta_r: float
    weighted: float
    weighted_relative: float

    @property
    def relative(self) -> float:
        """delta_r over its bound, at most 1; NaN where the bound is 0 (every node has one edge)."""
        return self.delta_r / self.bound_r if self.bound_r else math.nan

    @property
    def expansion(self) -> float:
        """Right nodes per left node."""
        return self.nodes[1] / self.nodes[0]


def gap(graph: Bipartite) -> Gap:
    """Return the spectral gaps of a graph that has edges.

    Example:
        >>> import torch
        >>> found = gap(Bipartite.of("fc", torch.ones(3, 3, dtype=torch.bool)))
        >>> round(found.delta_r, 3), round(found.weighted, 3)
        (2.828, 3.0)
    """
    lefts, rights = graph.shape
    degree = len(graph.left) / lefts, len(graph.left) / rights
    mu = graph.largest()
    heavy = graph.largest(weighted=True)
    bound_s = 2.0 * math.sqrt(max(mu[0] - 1.0, 0.0))
    bound_r = sum(math.sqrt(d - 1.0) for d in degree)
    return Gap(
        nodes=(lefts, rights),
        degree=degree,
        mu=mu,
        bound_s=bound_s,
        bound_r=bound_r,
        delta_s=bound_s - mu[1],
        delta_r=bound_r - mu[1],
        weighted=heavy[0] - heavy[1],
        weighted_relative=1.0 - heavy[1] / heavy[0] if heavy[0] else math.nan,
    )


def narc(graph: Bipartite, found: Gap, edges: Edges = "once") -> float:
    r"""Return the normalised random coefficient of a graph.

    .. math:: \frac{(\hat\mu^2 / 4 + 1) \sqrt{n_L n_R} - |E - d_L n_L n_R / out|}{in \cdot out}

    With n_L and n_R nodes that have edges, in and out those of the whole layer, and d_L the mean degree of
    the left nodes. Since d_L n_L = E, the second term is E (1 - n_R / out): with E edges it vanishes as
    soon as every output has an edge, and the coefficient is positive. With every edge counted twice, as in
    the official code, it is then at most 0 just where mu_hat <= 2 sqrt(sqrt(d_L d_R) - 1), which is what
    random graphs reach.

    Args:
        graph: the graph.
        found: its gap.
        edges: "once", E edges; "twice", 2 E.

    Example:
        >>> import torch
        >>> graph = Bipartite.of("fc", torch.ones(3, 3, dtype=torch.bool))
        >>> round(narc(graph, gap(graph)), 4), round(narc(graph, gap(graph), "twice"), 4)
        (0.3333, -0.6667)
    """
    lefts, rights = found.nodes
    counted = len(graph.left) * (2 if edges == "twice" else 1)
    random = abs(counted - found.degree[0] * lefts * rights / graph.outputs)
    spread = (found.mu[1] ** 2 / 4.0 + 1.0) * math.sqrt(lefts * rights)
    return (spread - random) / (graph.inputs * graph.outputs)
