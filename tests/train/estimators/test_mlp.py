"""Truly sparse perceptrons: the conventions of scikit-learn, and what the cards promise."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError, NumericalError, RecipeError
from lowdim.train.estimators.network import Run, SparseMLP, bias_of, strength
from lowdim.train.estimators.setmlp import SetMLP

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowdim.train import SparseMLPClassifier, SparseMLPRegressor

QUICK: dict[str, Any] = {"epsilon": 8, "batch_size": 16}


@pytest.mark.slow
@parametrize_with_checks([SparseMLPClassifier((16,), epochs=8, **QUICK)])
def test_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([SparseMLPRegressor((16,), epochs=12, **QUICK)])
def test_conventions_of_scikit_learn_for_numbers(estimator: Any, check: Any) -> None:
    check(estimator)


def digits() -> tuple[Any, Any, Any, Any]:
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)
    return X_train, X_test, y_train, y_test


def tables() -> tuple[Any, Any]:
    X, y = load_wine(return_X_y=True)
    return StandardScaler().fit_transform(X), y


# ---------------------------------------------------------------- what is learnt


@pytest.mark.slow
def test_digits_are_learnt_by_a_tenth_of_the_connections() -> None:
    X, X_test, y, y_test = digits()
    net = SparseMLPClassifier(
        (200, 200), sparsity=0.9, epochs=15, learning_rate=0.03, batch_size=32, random_state=0
    ).fit(X, y)
    assert sum(w.nnz for w in net.coefs_[:-1]) == round(0.1 * (64 * 200 + 200 * 200))
    assert net.score(X_test, y_test) > 0.94
    assert net.loss_curve_[-1] < 0.1 * net.loss_curve_[0]


def test_coefficients_are_the_network() -> None:
    X, y = tables()
    net = SparseMLPClassifier((20, 10), activation="relu", epochs=3, **QUICK, random_state=0).fit(X, y)
    a = X
    for weight, bias in zip(net.coefs_[:-1], net.intercepts_[:-1], strict=True):
        a = np.maximum(a @ weight.toarray() + bias, 0)
    logits = a @ net.coefs_[-1] + net.intercepts_[-1]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert net.predict_proba(X) == pytest.approx(expected, abs=1e-5)


def test_sparse_input_gives_what_dense_input_gives() -> None:
    X, X_test, y, _ = digits()
    nets = [
        SparseMLPClassifier((50,), epochs=2, **QUICK, random_state=0).fit(kind(X[:200]), y[:200])
        for kind in (np.asarray, scipy.sparse.csr_array, scipy.sparse.csc_matrix)
    ]
    expected = nets[0].predict_proba(X_test)
    for net in nets[1:]:
        assert np.array_equal(net.predict_proba(scipy.sparse.csr_array(X_test)), expected)


def test_several_targets() -> None:
    X = np.random.default_rng(0).normal(size=(120, 6))
    y = np.stack([X[:, 0] * 100 + 7, X[:, 1] - X[:, 2]], 1)
    net = SparseMLPRegressor((64,), epochs=30, **QUICK, random_state=0).fit(X, y)
    assert net.predict(X).shape == (120, 2)
    assert net.score(X, y) > 0.95


def test_no_dense_hidden_weight_is_ever_held() -> None:
    run = Run(SetMLP(hidden=(30_000, 30_000), epsilon=2, batch_size=2), 20_000, 2, seed=0, every=1)
    assert [layer.kept for layer in run.network.sparse] == [100_000, 120_000]
    x, y = torch.randn(4, 20_000), torch.tensor([0, 1, 0, 1])
    for _ in range(2):  # the second epoch begins with an evolution; dense, the layers would have 1.5e9 weights
        run.epoch([(x, y)], nn.functional.cross_entropy)
    assert [layer.kept for layer in run.network.sparse] == [100_000, 120_000]
    held = sum(p.numel() for p in run.network.parameters()) + sum(
        state["momentum_buffer"].numel() for state in run.optimizer.state.values()
    )
    assert held == 2 * (220_000 + 60_000 + 60_000 + 2)


# ---------------------------------------------------------------- evolution


def positions(run: Run) -> list[Tensor]:
    return [layer.positions() for layer in run.network.sparse]


def constant(run: Run, epochs: int) -> list[list[Tensor]]:
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 3
    found = []
    for _ in range(epochs):
        run.epoch([(x, y)], nn.functional.cross_entropy)
        found.append(positions(run))
    return found


def test_connections_move_between_epochs_and_keep_their_number() -> None:
    settings = SetMLP(hidden=(30, 20), epsilon=2, drop=0.3)
    first, second = constant(Run(settings, 20, 3, seed=0, every=1), 2)
    for before, after in zip(first, second, strict=True):
        assert len(before) == len(after)
        moved = len(before) - len(set(before.tolist()) & set(after.tolist()))
        assert 0.1 * len(before) < moved <= 0.3 * len(before)


def test_without_drop_the_topology_stands_still() -> None:
    first, last = constant(Run(SetMLP(hidden=(30, 20), epsilon=2, drop=0.0), 20, 3, seed=0, every=1), 5)[::4]
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_nothing_moves_after_the_last_epoch() -> None:
    X, y = tables()
    one, two = (SparseMLPClassifier((40,), epochs=n, **QUICK, random_state=0).fit(X, y) for n in (1, 2))
    fresh = SparseMLP(SetMLP(hidden=(40,), epsilon=8), 13, 3, one._run.seed)
    assert torch.equal(positions(one._run)[0], fresh.sparse[0].positions())
    assert not torch.equal(positions(two._run)[0], fresh.sparse[0].positions())


def test_partial_fit_does_not_evolve_at_every_call() -> None:
    X, y = tables()
    net = SparseMLPClassifier((40,), epsilon=2, random_state=0)
    found = []
    for _ in range(102):
        net.partial_fit(X[:10], y[:10], classes=[0, 1, 2])
        found.append(positions(net._run)[0])
    assert all(torch.equal(found[0], each) for each in found[:100])
    assert not torch.equal(found[100], found[0])
    assert torch.equal(found[100], found[101])


# ---------------------------------------------------------------- pieces


def test_all_relu_alternates_its_slope() -> None:
    net = SparseMLP(SetMLP(hidden=(4, 4, 4), activation="all-relu", slope=0.6), 4, 2, seed=0)
    z = torch.tensor([-1.0, 0.0, 2.0])
    assert net.activate(0, z).tolist() == pytest.approx([0.6, 0.0, 2.0])
    assert net.activate(1, z).tolist() == pytest.approx([-0.6, 0.0, 2.0])
    assert net.activate(2, z).tolist() == pytest.approx([0.6, 0.0, 2.0])


@pytest.mark.parametrize("activation", ["relu", "all-relu", "tanh"])
def test_pruned_network_computes_what_it_would_with_those_inputs_at_zero(activation: Any) -> None:
    run = Run(SetMLP(hidden=(30, 20), epsilon=3, activation=activation), 20, 3, seed=0, every=10**9)
    constant(run, 3)  # biases and momenta are no longer zero
    silenced = copy.deepcopy(run.network)
    for layer in silenced.sparse:
        order = strength(layer).argsort(stable=True, descending=True)
        weakest = order[-int(0.2 * layer.out_features) :]
        with torch.no_grad():
            layer.values[torch.isin(layer.positions() // layer.in_features, weakest)] = 0
    run.prune(0.2)
    x = torch.randn(7, 20)
    assert [layer.out_features for layer in run.network.sparse] == [24, 16]
    assert torch.allclose(run.network(x), silenced(x), atol=1e-5)


def test_momentum_follows_the_neurons_that_stay() -> None:
    run = Run(SetMLP(hidden=(10, 8), epsilon=100), 5, 2, seed=0, every=10**9)  # dense: easy to slice
    run.epoch([(torch.randn(6, 5), torch.tensor([0, 1] * 3))], nn.functional.cross_entropy)
    layers, state = run.network.sparse, run.optimizer.state
    keep = strength(layers[0]).argsort(descending=True)[:8].sort().values
    expected = state[layers[0].values]["momentum_buffer"].reshape(10, 5)[keep].flatten()
    offsets = state[bias_of(layers[0])]["momentum_buffer"][keep]
    run.prune(0.2)
    layer = run.network.sparse[0]
    assert torch.equal(run.optimizer.state[layer.values]["momentum_buffer"], expected)
    assert torch.equal(run.optimizer.state[bias_of(layer)]["momentum_buffer"], offsets)


def test_importance_pruning_comes_when_it_is_due() -> None:
    X, y = tables()
    settings = {"prune_share": 0.25, "prune_every": 2, "prune_after": 3, "epochs": 7}
    net = SparseMLPClassifier((40, 20), **QUICK, **settings, random_state=0).fit(X, y)
    # before the epochs that follow 4 and 6: 40, 30, 23 and 20, 15, 12
    assert [w.shape for w in net.coefs_] == [(13, 23), (23, 12), (12, 3)]
    assert net.predict(X).shape == y.shape


def test_early_stopping_goes_back_to_the_best() -> None:
    X, y = tables()
    noisy = np.where(np.random.default_rng(0).random(len(y)) < 0.4, (y + 1) % 3, y)
    settings = {
        "learning_rate": 0.05,
        "epochs": 200,
        "early_stopping": True,
        "patience": 5,
        "validation_fraction": 0.3,
    }
    net = SparseMLPClassifier((100,), **settings, **QUICK, random_state=0).fit(X, noisy)
    assert net.n_iter_ == len(net.validation_losses_) < 200
    assert net.n_iter_ == int(np.argmin(net.validation_losses_)) + 1 + 5
    assert net._run.epochs == net.n_iter_ - 5


# ---------------------------------------------------------------- conventions


def test_seed_decides_everything_and_the_global_generators_nothing() -> None:
    X, y = tables()
    made = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        random.seed(noise)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        made.append(SparseMLPClassifier((30,), dropout=0.3, epochs=4, **QUICK, random_state=5).fit(X, y))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    a, b = made
    assert all((v != w).nnz == 0 for v, w in zip(a.coefs_[:-1], b.coefs_[:-1], strict=True))
    assert np.array_equal(a.coefs_[-1], b.coefs_[-1])
    other = SparseMLPClassifier((30,), dropout=0.3, epochs=4, **QUICK, random_state=6).fit(X, y)
    assert not np.array_equal(a.coefs_[-1], other.coefs_[-1])


def test_without_a_seed_two_fits_differ() -> None:
    X, y = tables()
    a, b = (SparseMLPClassifier((30,), epochs=1).fit(X, y) for _ in range(2))
    assert not np.array_equal(a.coefs_[-1], b.coefs_[-1])


def test_a_pickled_estimator_goes_on_as_the_original() -> None:
    X, y = tables()
    net = SparseMLPClassifier((30,), dropout=0.2, epochs=3, **QUICK, random_state=0).fit(X, y)
    twin = pickle.loads(pickle.dumps(net))
    for each in (net, twin):
        for _ in range(3):
            each.partial_fit(X, y)
    assert np.array_equal(net.predict_proba(X), twin.predict_proba(X))
    assert torch.equal(positions(net._run)[0], positions(twin._run)[0])


def test_labels_may_be_anything_and_partial_fit_knows_them_beforehand() -> None:
    X, y = tables()
    names = np.array(["red", "rosé", "white"])
    net = SparseMLPClassifier((30,), learning_rate=0.05, **QUICK, random_state=0)
    for _ in range(15):
        net.partial_fit(X, names[y], classes=names)
    assert net.score(X, names[y]) > 0.95
    with pytest.raises(RecipeError, match="blue"):
        net.partial_fit(X[:2], ["blue", "red"])
    with pytest.raises(RecipeError, match="classes are"):
        net.partial_fit(X[:2], ["white", "red"], classes=["white", "red"])
    with pytest.raises(RecipeError, match="first call"):
        SparseMLPClassifier().partial_fit(X, y)


def test_it_works_in_a_pipeline_under_a_search() -> None:
    X, y = load_wine(return_X_y=True)
    pipe = make_pipeline(
        StandardScaler(), SparseMLPClassifier((30,), epochs=8, learning_rate=0.03, **QUICK, random_state=0)
    )
    search = GridSearchCV(pipe, {"sparsemlpclassifier__sparsity": [0.5, None]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.9


def test_divergence_is_said() -> None:
    X, y = tables()
    with pytest.raises(NumericalError, match="Scale the features"):
        SparseMLPRegressor((30,), learning_rate=1e6, clip=float("inf"), epochs=20).fit(X * 1e3, y)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": ()},
        {"hidden": (0,)},
        {"epsilon": 0},
        {"sparsity": 1.0},
        {"drop": 1.5},
        {"regrow": "ones"},
        {"activation": "gelu"},
        {"dropout": 1.0},
        {"learning_rate": 0},
        {"momentum": 1.0},
        {"weight_decay": -1},
        {"weight_decay": 1.0},
        {"decay": "adam"},
        {"initial": "zero"},
        {"clip": 0},
        {"batch_size": 0},
        {"epochs": 0},
        {"prune_share": 1.0},
        {"prune_every": 0},
        {"prune_after": -1},
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(LowdimError, match=next(iter(settings))):
        SparseMLPClassifier(**settings).fit(*tables())


@pytest.mark.parametrize("settings", [{"validation_fraction": 1.0}, {"patience": 0}])
def test_bad_early_stopping_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        SparseMLPClassifier(early_stopping=True, **settings).fit(*tables())


def test_a_regressor_keeps_its_targets() -> None:
    X, y = tables()
    net = SparseMLPRegressor((10,), **QUICK).partial_fit(X, y)
    with pytest.raises(RecipeError, match="targets"):
        net.partial_fit(X, np.stack([y, y], 1))


def test_without_scikit_learn_the_rest_works_and_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["sklearn"] = None
import lowdim.train
from lowdim.train import SET, SNTASGD, SelfishRNN
for name in ("SparseMLPClassifier", "SparseMLPRegressor", "NeuroFS"):
    try:
        getattr(lowdim.train, name)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'lowdim[train]'") == 3


# ---------------------------------------------------------------- what the authors' code does


@pytest.mark.slow
@pytest.mark.parametrize(("decay", "left"), [("step", 0.9998**1000), ("l2", 0.980)])
def test_weights_decay_as_fast_as_in_the_paper_s_code(decay: Any, left: float) -> None:
    run = Run(SetMLP(hidden=(4,), epsilon=9, decay=decay), 3, 2, seed=0, every=1)
    run = pickle.loads(pickle.dumps(copy.deepcopy(run)))
    weights = list(run.network.parameters())
    with torch.no_grad():
        for weight in weights:
            weight.fill_(1.0)
    for _ in range(1000):
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        run.optimizer.step()
    for weight in weights:
        assert weight.detach().numpy() == pytest.approx(left, abs=1e-3)


def test_weights_may_start_with_the_deviation_of_the_paper_s_code() -> None:
    normal = SparseMLP(SetMLP(hidden=(300, 300), epsilon=20, initial="normal"), 300, 2, seed=0)
    for layer in normal.sparse:
        values = layer.values.detach()
        assert float(values.std()) == pytest.approx(0.1, rel=0.03)
        assert float(values.abs().max()) > 0.3
    assert not torch.equal(normal.sparse[0].values, normal.sparse[1].values)
    scaled = SparseMLP(SetMLP(hidden=(300, 300), epsilon=20), 300, 2, seed=0).sparse[0].values.detach()
    assert float(scaled.abs().max()) <= (6 / 40) ** 0.5  # 12,000 weights are 40 for each of 300
