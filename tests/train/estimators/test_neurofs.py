from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from tests.turns import turns

from lowdim.core.errors import NumericalError, RecipeError

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowdim.train import NeuroFS

SMALL: dict[str, Any] = {"hidden": (60, 60), "epsilon": 3, "batch_size": 20}


@parametrize_with_checks([NeuroFS(1, hidden=(8,), epsilon=2, epochs=4, batch_size=32)])
def test_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def planted(seed: int = 0) -> tuple[Any, Any, list[int]]:
    """Return 400 examples of 50 features, labels that 5 of them decide, and which."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(400, 50))
    informative = rng.choice(50, 5, replace=False)
    return X, (X[:, informative] @ [2, -1.5, 1.5, -1, 1] > 0).astype(int), sorted(informative.tolist())


@pytest.mark.parametrize("seed", turns([0, 1], of=2))
def test_the_informative_features_are_found(seed: int) -> None:
    X, y, informative = planted(seed)
    chosen = NeuroFS(10, epochs=20, random_state=seed, **SMALL).fit(X, y)
    assert set(informative) <= set(chosen.get_support(indices=True).tolist())
    assert chosen.get_support().sum() == 10
    assert chosen.active_inputs_[-1] == 20  # (0.2 * 50 + 10)
    assert chosen.transform(X).shape == (400, 10)
    assert np.array_equal(chosen.transform(X), X[:, chosen.get_support()])


def test_numbers_may_be_the_target() -> None:
    X, _, _ = planted()
    chosen = NeuroFS(3, epochs=12, random_state=0, **SMALL).fit(X, 5 + 2 * X[:, 4] - 3 * X[:, 30])
    assert {4, 30} <= set(chosen.get_support(indices=True).tolist())


def test_names_of_features_come_out() -> None:
    X, y, _ = planted()
    chosen = NeuroFS(10, epochs=4, random_state=0, **SMALL).fit(X, y)
    names = np.array([f"gene {n}" for n in range(50)])
    assert chosen.get_feature_names_out(names).tolist() == names[chosen.get_support()].tolist()


def test_sparse_input_selects_the_same() -> None:
    X, y, _ = planted()
    X[np.abs(X) < 1] = 0
    dense, sparse = (
        NeuroFS(5, epochs=5, random_state=0, **SMALL).fit(kind(X), y) for kind in (np.asarray, scipy.sparse.csr_array)
    )
    assert np.array_equal(dense.strength_, sparse.strength_)


def test_seed_decides_everything_and_the_global_generators_nothing() -> None:
    X, y, _ = planted()
    found = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        random.seed(noise)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        found.append(NeuroFS(5, epochs=4, random_state=3, **SMALL).fit(X, y).strength_)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert np.array_equal(*found)
    other = NeuroFS(5, epochs=4, random_state=4, **SMALL).fit(X, y)
    assert not np.array_equal(other.strength_, found[0])


def test_it_can_be_pickled() -> None:
    X, y, _ = planted()
    chosen = NeuroFS(5, epochs=2, random_state=0, **SMALL).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(chosen)).get_support(), chosen.get_support())


def test_more_features_than_there_are_is_said() -> None:
    X, y, _ = planted()
    with pytest.warns(UserWarning, match="50 features: all are kept"):
        chosen = NeuroFS(51, epochs=2, **SMALL).fit(X, y)
    assert chosen.get_support().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"n_features_to_select": 0},
        {"hidden": ()},
        {"activation": "gelu"},
        {"learning_rate": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"zeta_in": 2.0},
        {"epsilon": 0},
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    X, y, _ = planted()
    with pytest.raises(RecipeError, match=next(iter(settings))):
        NeuroFS(**settings).fit(X, y)


def test_several_targets_are_refused() -> None:
    X, y, _ = planted()
    with pytest.raises(ValueError, match="1d array"):
        NeuroFS().fit(X, np.stack([y, 1 - y], 1))


def test_divergence_is_said() -> None:
    X, _, _ = planted()
    with pytest.raises(NumericalError, match="Scale the features"):
        NeuroFS(5, hidden=(10,), activation="relu", learning_rate=1e3, epochs=10).fit(X * 1e3, X[:, 0])


@pytest.mark.slow
def test_pixels_of_digits_are_worth_more_than_random_ones() -> None:
    X, y = load_digits(return_X_y=True)
    X = X / 16
    chosen = NeuroFS(10, hidden=(200, 200), epsilon=8, epochs=40, batch_size=50, random_state=0)
    ours = cross_val_score(make_pipeline(chosen, KNeighborsClassifier()), X, y, cv=3).mean()
    rng = np.random.default_rng(0)
    drawn = [
        cross_val_score(KNeighborsClassifier(), X[:, rng.choice(64, 10, replace=False)], y, cv=3).mean()
        for _ in range(20)
    ]
    assert ours > max(drawn)
