"""Ramanujan gap, IMDB, NaRC and full-spectrum: the card's graphs, the definition by eigenvalues, thin layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lowdim.core.errors import NumericalError, RecipeError
from lowdim.evaluate.errors import EvaluationError
from lowdim.evaluate.probe.full_spectrum import FullSpectrum
from lowdim.evaluate.probe.graph import Bipartite
from lowdim.evaluate.probe.ramanujan import Ramanujan
from lowdim.evaluate.probe.spectrum import gap, narc

K33 = torch.ones(3, 3)
TWO_K33 = torch.block_diag(K33, K33)
K44_LESS_A_MATCHING = torch.ones(4, 4) - torch.eye(4)
GRAPHS = [(K33, 2.828, 3.0), (TWO_K33, -0.172, 0.0), (K44_LESS_A_MATCHING, 1.828, 2.0)]


def sparse(shape: tuple[int, ...], density: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize(("edges", "ramanujan", "weighted"), GRAPHS)
def test_worked_examples(edges: torch.Tensor, ramanujan: float, weighted: float) -> None:
    found = Ramanujan().measure({"a": edges.bool()}, {"a": edges})
    assert found.delta_r == pytest.approx(ramanujan, abs=5e-4)
    assert found.delta_s == pytest.approx(ramanujan, abs=5e-4)  # regular graphs: mu_0 is the degree
    assert found.imdb == pytest.approx(ramanujan, abs=5e-4)  # one part, the graph itself
    layer = found.layers["a"]
    assert layer.gap.weighted == pytest.approx(weighted, abs=1e-9)
    assert layer.weighted_imdb == pytest.approx(weighted, abs=1e-9)
    assert (len(layer.parts), layer.left_out, layer.expansion) == (1, 0, (1.0, 1.0))
    assert layer.components == (2 if edges is TWO_K33 else 1)


@pytest.mark.parametrize("factor", [0.25, -3.0])
def test_weights_times_c_times_the_gap_by_c(factor: float) -> None:
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(8, 6, dtype=torch.bool)
    plain, scaled = (Ramanujan().measure({"a": mask}, {"a": w}).layers["a"] for w in (weight, factor * weight))
    assert scaled.gap.weighted == pytest.approx(abs(factor) * plain.gap.weighted)
    assert scaled.weighted_imdb == pytest.approx(abs(factor) * plain.weighted_imdb)
    assert scaled.gap.weighted_relative == pytest.approx(plain.gap.weighted_relative)


@pytest.mark.parametrize(
    ("shape", "density"), [((20, 30), 0.3), ((6, 4, 3, 3), 0.5), ((300, 400), 0.02), ((20, 5000), 0.1)]
)
def test_eigenvalues_are_those_of_the_adjacency_matrix(shape: tuple[int, ...], density: float) -> None:
    mask = sparse(shape, density)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    graph = Bipartite.of("a", mask, weight)
    for weighted, values in ((False, mask.double()), (True, (mask * weight).double().abs())):
        singular = torch.linalg.svdvals(values.flatten(1))[:2]
        assert graph.largest(weighted) == pytest.approx(singular.tolist(), rel=1e-8)
    if mask.numel() < 1000:
        flat = mask.flatten(1).double()
        rows, columns = flat.shape
        adjacency = torch.cat(
            [
                torch.cat([torch.zeros(rows, rows), flat], 1),
                torch.cat([flat.T, torch.zeros(columns, columns)], 1),
            ]
        )
        sizes = torch.linalg.eigvalsh(adjacency.double()).abs().sort(descending=True).values
        assert graph.largest() == pytest.approx([float(sizes[0]), float(sizes[2])])


def test_equal_components_above_the_dense_size_are_not_missed() -> None:
    part = sparse((300, 310), 0.05)
    mu, mu_hat = Bipartite.of("a", torch.block_diag(part, part).bool()).largest()
    assert mu == mu_hat == pytest.approx(float(torch.linalg.svdvals(part.double())[0]))


def test_a_zero_weight_keeps_its_edge_but_joins_nothing() -> None:
    weight = TWO_K33.clone()
    mask = TWO_K33.bool()
    mask[0, 5] = True  # a newly grown weight, still 0
    graph = Bipartite.of("a", mask, weight)
    assert len(graph.left) == 19
    assert graph.components() == 1
    assert graph.largest(weighted=True) == pytest.approx((3.0, 3.0))
    assert gap(Bipartite.of("a", mask, torch.zeros(6, 6))).weighted == 0.0


def test_nodes_without_edges_are_left_out() -> None:
    padded = torch.zeros(7, 9, dtype=torch.bool)
    padded[2:5, 4:7] = True
    assert gap(Bipartite.of("a", padded)) == gap(Bipartite.of("a", K33.bool()))


def test_the_smallest_graphs() -> None:
    nothing = Bipartite.of("a", torch.zeros(2, 3, dtype=torch.bool))
    assert (nothing.shape, nothing.components(), nothing.largest()) == ((0, 0), 0, (0.0, 0.0))
    edge = gap(Bipartite.of("a", torch.ones(1, 1, dtype=torch.bool)))
    assert (edge.mu, edge.delta_r, edge.delta_s) == ((1.0, 0.0), 0.0, 0.0)
    assert math.isnan(edge.relative)
    star = gap(Bipartite.of("a", torch.ones(1, 5, dtype=torch.bool)))
    assert star.degree == (1.0, 5.0)
    assert star.mu == pytest.approx((math.sqrt(5), 0.0))
    assert star.delta_r == pytest.approx(2.0)


def test_imdb_is_the_mean_over_regular_parts() -> None:
    # inputs 0-2 reach all four outputs, inputs 3-6 the first three, inputs 7 and 8 are too few of their degree
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, :3] = True
    mask[:3, 3:7] = True
    mask[0, 7:] = True
    found = Ramanujan().measure({"a": mask}).layers["a"]
    parts = [gap(Bipartite.of("a", part)) for part in (mask[:3, 3:7], mask[:, :3])]
    assert found.parts == tuple(parts)
    assert found.imdb == pytest.approx(np.mean([part.delta_r for part in parts]))
    assert found.imdb_relative == pytest.approx(1.0)
    assert found.expansion == pytest.approx((25 / 24, 4 / 3))


def test_thin_layers_are_measured_listed_and_not_averaged() -> None:
    masks = {"thin": sparse((50, 50), 0.03), "full": K33.bool(), "none": torch.zeros(3, 3).bool()}
    found = Ramanujan().measure(masks)
    assert found.left_out["none"] == "empty"
    assert found.left_out["thin"].startswith("mean degree 1.")
    assert "none" not in found.layers
    assert found.layers["thin"].thin
    assert math.isfinite(found.layers["thin"].gap.delta_r)
    assert found.delta_r == pytest.approx(2.8284, abs=1e-4)
    everything = Ramanujan(minimum_degree=0).measure(masks)
    assert set(everything.left_out) == {"none"}
    assert everything.delta_r != found.delta_r
    only = Ramanujan().measure({"thin": masks["thin"]})
    assert math.isnan(only.delta_r)


def test_narc_counts_edges_once_or_twice() -> None:
    graph = Bipartite.of("a", K44_LESS_A_MATCHING.bool())
    found = gap(graph)
    assert narc(graph, found) == pytest.approx((1 / 4 + 1) * 4 / 16)
    assert narc(graph, found, "twice") == pytest.approx(((1 / 4 + 1) * 4 - 12) / 16)
    # an output without edges: E (1 - n_R / out) remains
    padded = Bipartite.of("a", torch.cat([K44_LESS_A_MATCHING, torch.zeros(4, 4)]).bool())
    assert narc(padded, gap(padded)) == pytest.approx((5 - 6) / 32)


def test_narc_counted_twice_separates_random_from_clustered() -> None:
    probe = Ramanujan(edges="twice")
    random = sparse((120, 120), 0.1)
    blocks = torch.block_diag(*[torch.ones(12, 12)] * 10).bool()
    assert probe.measure({"a": random}).narc < 0 < probe.measure({"a": blocks}).narc
    assert Ramanujan().measure({"a": random}).narc > 0


def test_full_spectrum_of_dense_ones() -> None:
    weight = {"a": torch.ones(6, 5), "b": torch.ones(4, 6)}
    masks = {name: w.bool() for name, w in weight.items()}
    point = FullSpectrum().coordinate(masks, weight)
    assert (point.delta_r, point.imdb, point.weighted, point.weighted_imdb) == pytest.approx((1, 1, 1, 1))
    assert FullSpectrum().distance(point, point) == 0.0


def test_full_spectrum_distance_by_hand() -> None:
    four = torch.ones(4, 4)
    bare = FullSpectrum(normalise=False)
    dense, pruned = (bare.coordinate({"a": net.bool()}, {"a": net}) for net in (four, K44_LESS_A_MATCHING))
    gaps, lambdas = 2 * math.sqrt(3) - (2 * math.sqrt(2) - 1), 4 - 2
    assert bare.distance(dense, pruned) == pytest.approx(math.sqrt(2 * gaps**2 + 2 * lambdas**2))
    # normalised: 1 - 1.828 / 2.828 and 1 - 2 / 3
    probe = FullSpectrum()
    dense, pruned = (probe.coordinate({"a": net.bool()}, {"a": net}) for net in (four, K44_LESS_A_MATCHING))
    assert probe.distance(dense, pruned) == pytest.approx(math.sqrt(2 * (1 / 8 + 1 / 9)))


def test_a_normalised_distance_does_not_see_the_scale_of_weights() -> None:
    weight = {"a": torch.randn(20, 200, generator=torch.Generator().manual_seed(0))}
    masks = {"a": sparse((20, 200), 0.5)}
    probe = FullSpectrum()
    plain = probe.coordinate(masks, weight)
    scaled = probe.coordinate(masks, {"a": 8 * weight["a"]})
    assert probe.distance(plain, scaled) == pytest.approx(0.0, abs=1e-9)


def test_a_distance_over_nothing_says_so() -> None:
    thin, full = torch.eye(5), torch.ones(5, 5)
    probe = FullSpectrum()
    points = [probe.coordinate({"a": net.bool()}, {"a": net}) for net in (full, thin)]
    with pytest.raises(EvaluationError, match=r"mean degree 1\.00, 1\.00 below 3"):
        probe.distance(*points)


@pytest.mark.parametrize(
    ("masks", "weights", "error", "message"),
    [
        ({}, None, EvaluationError, "got none"),
        ({"a": torch.ones(3).bool()}, None, EvaluationError, r"\[3\]"),
        ({"a": K33.bool()}, {"b": K33}, EvaluationError, "no weight"),
        ({"a": K33.bool()}, {"a": TWO_K33}, EvaluationError, r"\[6, 6\]"),
        ({"a": K33.bool()}, {"a": K33 * math.nan}, NumericalError, "NaN"),
    ],
)
def test_what_has_no_spectrum(masks, weights, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Ramanujan().measure(masks, weights)


def test_bad_settings() -> None:
    with pytest.raises(RecipeError, match="minimum_degree"):
        FullSpectrum(minimum_degree=-1)
    with pytest.raises(RecipeError, match="Did you mean 'twice'"):
        Ramanujan(edges="twce")  # type: ignore[arg-type]
