import numpy as np
import pytest
import torch
from tests.train.initial.nets import Transformer, bare, conv_net
from torch import nn

from lowdim.core.errors import RecipeError
from lowdim.evaluate.probe.paths import EffectivePaths
from lowdim.train import NPB, RandomMasks, ratios_of, select
from lowdim.train.initial.paths import ones_flow
from lowdim.train.initial.solvers import Problem, greedy, milp, solve


def problem(paths, outs, limit, count, alpha=0.01, beta=1.0):
    return Problem(np.asarray(paths, dtype=float), outs, limit, count, alpha, beta)


def counted(model, masks, example):
    flow = ones_flow(model, select(model, list(masks)), example)
    flow.set({name: mask.double() for name, mask in masks.items()})
    return flow.gradients()


def test_worked_example_of_paths_and_nodes():
    net = bare([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]])
    masks = {"0.weight": torch.ones(2, 2).bool(), "2.weight": torch.tensor([[True, False]])}
    total, gradients = counted(net, masks, (1, 2))
    assert total == 2
    assert gradients["0.weight"].tolist() == [[1, 1], [0, 0]]  # two weights and one node lie on no path
    found = EffectivePaths().measure(net, masks, torch.ones(1, 2))
    assert found.ineffective == 2


def test_every_node_gets_a_weight_where_only_nodes_count():
    drawn = np.random.default_rng(0)
    for outs, ins in [(7, 12), (12, 7), (5, 5)]:
        paths = drawn.integers(1, 1000, ins)
        for count in (max(outs, ins), max(outs, ins) + 3):
            for found in (
                greedy(problem(paths, outs, 9, count, alpha=1.0), drawn),
                milp(problem(paths, outs, 9, count, alpha=1.0)),
            ):
                assert found.sum() == count
                assert (found.sum(0) > 0).all()
                assert (found.sum(1) > 0).all()


@pytest.mark.parametrize("seed", range(60))
def test_the_greedy_solver_is_as_good_as_the_integer_programme(seed):
    drawn = np.random.default_rng(seed)
    outs, ins, limit = (int(drawn.integers(1, 7)), int(drawn.integers(1, 7)), int(drawn.choice([1, 3, 9])))
    count = int(drawn.integers(1, outs * ins * limit + 1))
    paths = drawn.integers(0, 6, ins) if seed % 3 else np.ones(ins)
    alpha, beta = float(drawn.choice([0, 0.01, 0.3, 0.9, 1])), float(drawn.choice([0, 0.001, 1, 2]))
    layer = problem(paths, outs, limit, count, alpha, beta)
    quick, exact = greedy(layer, drawn), milp(layer)
    for found in (quick, exact):
        assert found.sum() == count
        assert 0 <= found.min() <= found.max() <= limit
    assert layer.value(quick) == pytest.approx(layer.value(exact), abs=1e-6)


def test_only_paths_fill_the_inputs_of_most_paths():
    found = greedy(problem([1, 5, 3], 2, 2, 6, alpha=0.0, beta=0.0), np.random.default_rng(0))
    assert found.tolist() == [[0, 2, 1], [0, 2, 1]]


def test_equal_inputs_are_spread_evenly_over_outputs():
    found = greedy(problem(np.ones(50), 20, 1, 330), np.random.default_rng(0))
    assert sorted(set(found.sum(1).tolist())) == [16, 17]
    assert (found.sum(0) > 0).all()


def test_inputs_without_paths_still_get_exact_counts():
    assert greedy(problem(np.zeros(4), 3, 1, 7), np.random.default_rng(0)).sum() == 7
    assert solve(problem([], 3, 1, 0), "greedy", 32, np.random.default_rng(0)).shape == (3, 0)


def test_large_layers_are_solved_in_chunks():
    found = solve(problem([1, 2, 3], 10, 2, 25), "milp", 4, np.random.default_rng(0))
    assert found.shape == (10, 3)
    assert found.sum() == 25
    assert [int(found[a:b].sum()) for a, b in ((0, 4), (4, 8), (8, 10))] == [10, 10, 5]


@pytest.mark.parametrize("solver", ["greedy", "milp"])
@pytest.mark.parametrize("sparsity", [0.9, 0.97])
def test_no_weight_is_idle_and_more_paths_than_at_random(solver, sparsity):
    model, shape = conv_net(), (1, 3, 8, 8)
    masks = NPB(solver=solver).masks(model, shape, sparsity=sparsity, include=["*"])
    total, gradients = counted(model, masks, shape)
    assert all(bool((gradients[name] > 0)[mask].all()) for name, mask in masks.items())
    other, _ = counted(model, RandomMasks().masks(model, sparsity=sparsity, include=["*"]), shape)
    assert total > other


def test_the_counts_are_those_of_the_allocation():
    model = conv_net()
    given = RandomMasks("uniform").masks(model, sparsity=0.8)
    found = NPB(allocation=ratios_of(given)).masks(model, (1, 3, 8, 8), sparsity=0.8)
    assert {n: int(m.sum()) for n, m in found.items()} == {n: int(m.sum()) for n, m in given.items()}


def test_kernels_are_limited_but_the_first_layer_is_not():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    masks = NPB(max_kernel=5, allocation="uniform", beta=0.0).masks(net, (1, 3, 9, 9), sparsity=0.5)
    assert int(masks["0.weight"].sum((2, 3)).max()) > 5
    assert int(masks["2.weight"].sum((2, 3)).max()) == 5
    most = NPB(max_kernel=5, allocation="uniform").masks(net, (1, 3, 9, 9), sparsity=0.25)
    assert int(most["2.weight"].sum()) == 432  # more than five in each kernel: the limit gives way


@pytest.mark.parametrize("most", [1, 2, 4])
def test_the_repair_keeps_the_limit_of_a_kernel(most):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2))
    for sparsity in (0.97, 0.98):
        masks = NPB(max_kernel=most, beta=0.0).masks(net, (1, 3, 9, 9), sparsity=sparsity, include=["*"])
        for name in ("2.weight", "4.weight"):
            assert int(masks[name].sum((2, 3)).max()) <= most
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == round((1 - sparsity) * total)


@pytest.mark.parametrize("solver", ["greedy", "milp"])
def test_chunks_split_a_layer_for_either_solver(solver):
    layer = problem([1, 5, 3], 6, 1, 9)
    halves = solve(layer, solver, 3, np.random.default_rng(0))
    assert [int(half.sum()) for half in np.split(halves, 2)] == [5, 4]
    default = solve(layer, solver, None, np.random.default_rng(0))
    assert default.tolist() == solve(layer, solver, 6, np.random.default_rng(0)).tolist()


def test_layers_that_are_not_linear_and_ones_that_are_called_twice():
    masks = NPB().masks(Transformer(), torch.tensor([[1, 2, 3]]), sparsity=0.8)
    assert {"recurrent.weight_hh_l0", "layer.self_attn.in_proj_weight", "one.weight"} <= set(masks)


class Conv1D(nn.Module):
    """A linear layer that holds its weight as [in, out]."""

    def __init__(self, linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous())

    def forward(self, x):
        return x @ self.weight


def test_a_transposed_weight_has_the_transposed_mask():
    plain = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
    turned = nn.Sequential(Conv1D(plain[0]), nn.ReLU(), Conv1D(plain[2]))
    a = NPB().masks(plain, (1, 8), sparsity=0.3, include=["*"])  # dense enough that nothing is left to repair
    b = NPB().masks(turned, (1, 8), sparsity=0.3, include=["*"])
    assert b["0.weight"].shape == (8, 6)
    assert all(torch.equal(a[name].T, b[name]) for name in a)


def test_a_layer_that_is_never_called():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    net[0].spare = nn.Linear(4, 4)
    masks = NPB().masks(net, (1, 6), sparsity=0.5, include=["*"])
    assert sum(int(m.sum()) for m in masks.values()) == 35


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 1.5}, "alpha must be between 0 and 1; got 1.5"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"max_kernel": 0}, "max_kernel must be a whole number of at least 1; got 0"),
        ({"chunk": 2.5}, "chunk must be a whole number of at least 1; got 2.5"),
        ({"solver": "gredy"}, "unknown solver 'gredy'. Did you mean 'greedy'"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(RecipeError, match=words):
        NPB(**settings)
