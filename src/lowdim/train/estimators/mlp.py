"""Truly sparse multilayer perceptrons as scikit-learn estimators."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lowdim.core.errors import LowdimError, RecipeError
from lowdim.core.settings import check_all, count, within
from lowdim.train.estimators.data import Rows, batches, seed_of, slices
from lowdim.train.estimators.network import Run, bias_of
from lowdim.train.estimators.setmlp import SetMLP

try:
    from scipy.sparse import csr_array
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise LowdimError(
        "SparseMLPClassifier and SparseMLPRegressor need scikit-learn 1.6 or newer; run: pip install 'lowdim[train]'"
    ) from error

# `partial_fit` may get one batch a time: it moves connections after at least this many steps.
_STEPS = 100


@dataclass(eq=False, repr=False)
class _SparseMLP(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share. Arguments that `SetMLP` has mean what they mean there."""

    _loss: ClassVar[Any]

    hidden: tuple[int, ...] = (1000, 1000)
    _: KW_ONLY
    epsilon: float = 20.0
    sparsity: float | None = None
    drop: float = 0.3
    initial: str = "scaled"
    regrow: str = "normal"
    activation: str = "relu"
    slope: float = 0.6
    dropout: float = 0.0
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 2e-4
    decay: str = "step"
    clip: float = 5.0
    batch_size: int = 128
    epochs: int = 100
    prune_share: float = 0.0
    prune_every: int = 10
    prune_after: int = 200
    early_stopping: bool = False
    validation_fraction: float = within(0.1, above=0, below=1)
    patience: int = count(10)
    random_state: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ---------------------------------------------------------------- what was learnt

    @property
    def coefs_(self) -> list[Any]:
        """The weights, layer by layer: scipy sparse arrays fp32 [inputs, outputs], the last one a dense array."""
        network = self._fitted().network
        sparse = []
        for layer in network.sparse:
            column, row = layer.col.numpy(), layer.positions().numpy() // layer.in_features
            values = layer.values.detach().numpy()
            sparse.append(csr_array((values, (column, row)), shape=(layer.in_features, layer.out_features)))
        return [*sparse, network.head.weight.detach().numpy().T.copy()]

    @property
    def intercepts_(self) -> list[Any]:
        """The biases, layer by layer, fp32 [outputs]."""
        network = self._fitted().network
        layers: list[Any] = [*network.sparse, network.head]
        return [bias_of(layer).detach().numpy().copy() for layer in layers]

    def _fitted(self) -> Run:
        check_is_fitted(self, "loss_curve_")
        return self._run

    # ---------------------------------------------------------------- learning

    def _settings(self) -> SetMLP:
        given = {field.name: getattr(self, field.name) for field in fields(SetMLP)}
        chosen = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
        chosen["hidden"] = tuple(int(n) for n in np.atleast_1d(self.hidden))
        return SetMLP(**chosen)

    def _learn(self, x: Rows, y: Tensor, outputs: int, strata: Any) -> None:
        settings, seed = self._settings(), seed_of(self.random_state)
        learn, check = self._split(x, strata, seed)
        own, y_own = (x, y) if check is None else (x[learn], y[learn])
        self._run = Run(settings, x.shape[1], outputs, seed, -(-len(y_own) // settings.batch_size))
        self.loss_curve_: list[float] = []
        self.validation_losses_: list[float] = []
        best: Run | None = None
        while self._run.epochs < settings.epochs:
            self._pass(own, y_own)
            if check is None:
                continue
            self.validation_losses_.append(float(type(self)._loss(self._outputs(x[check]), y[check])))
            since = len(self.validation_losses_) - 1 - int(np.argmin(self.validation_losses_))
            if since == 0:
                best = copy.deepcopy(self._run)
            elif since >= self.patience:
                break
        self.n_iter_ = self._run.epochs
        self._run = best or self._run

    def _split(self, x: Rows, strata: Any, seed: int) -> tuple[Any, Any]:
        """Return which examples to learn from and which to validate on; None for no validation."""
        if not self.early_stopping:
            return None, None
        check_all(self)
        everything = np.arange(x.shape[0])
        found: tuple[Any, Any] = train_test_split(
            everything, test_size=self.validation_fraction, random_state=seed % 2**32, stratify=strata
        )
        return found

    def _more(self, x: Rows, y: Tensor, outputs: int) -> None:
        """Take up training for one pass over these examples."""
        if not hasattr(self, "loss_curve_"):
            settings = self._settings()
            every = max(_STEPS, -(-len(y) // settings.batch_size))
            self._run = Run(settings, x.shape[1], outputs, seed_of(self.random_state), every)
            self.loss_curve_ = []
        self._pass(x, y)
        self.n_iter_ = self._run.epochs

    def _pass(self, x: Rows, y: Tensor) -> None:
        run = self._run
        data = batches(x, y, run.settings.batch_size, run.seed, run.epochs)
        self.loss_curve_.append(run.epoch(data, type(self)._loss))

    def _outputs(self, x: Rows) -> Tensor:
        with torch.no_grad():
            return torch.cat([self._run.network(part) for part in slices(x)])[: x.shape[0]]

    def _predict(self, X: Any) -> Tensor:
        self._fitted()
        return self._outputs(validate_data(self, X, accept_sparse="csr", dtype=np.float32, reset=False))


class SparseMLPClassifier(ClassifierMixin, _SparseMLP):  # type: ignore[misc]
    """A classifier with truly sparse hidden layers, evolved by SET: memory and time go with its connections.

    It keeps the conventions of scikit-learn: dense or sparse input, pipelines, searches, ``partial_fit``, any labels.
    Equal seeds give equal networks, whatever the global generators do. Scale the features beforehand
    (``StandardScaler``).

    Paper: arXiv 1901.09181. `lowdim.train.estimators.setmlp.SetMLP` explains the arguments that are not below.

    Args:
        early_stopping: whether to set examples aside, to stop when their loss has not fallen for ``patience`` epochs,
            and to go back to the network that was best on them.
        validation_fraction: share of examples set aside.
        patience: epochs.
        random_state: seed, ``RandomState``, or None for other numbers each time.

    Attributes:
        classes_: labels, in order.
        coefs_: weights, layer by layer: scipy sparse arrays, the last one dense.
        intercepts_: biases, layer by layer.
        loss_curve_: mean loss of every epoch.
        validation_losses_: loss on the examples set aside, if any.
        n_iter_: epochs done.

    Raises:
        RecipeError: an argument is out of range.
        NumericalError: training diverged.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> net = SparseMLPClassifier((32,), epsilon=2, epochs=60, batch_size=16, random_state=0).fit(X, y)
        >>> net.score(X, y) > 0.9, net.coefs_[0].nnz
        (True, 72)
    """

    _loss = staticmethod(nn.functional.cross_entropy)

    def fit(self, X: Any, y: Any) -> SparseMLPClassifier:
        """Learn from examples, [examples, features] dense or sparse, and their labels."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._learn(X, torch.from_numpy(codes).long(), len(self.classes_), strata=codes)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> SparseMLPClassifier:
        """Take up learning for one pass over these examples; the first call needs all ``classes`` there will be."""
        first = not hasattr(self, "loss_curve_")
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32, reset=first)
        check_classification_targets(y)
        if first and classes is None:
            raise RecipeError("classes must be given in the first call of partial_fit: all labels there will be")
        known = np.unique(classes) if first else self.classes_
        if classes is not None and not np.array_equal(np.unique(classes), known):
            raise RecipeError(f"classes are {known.tolist()} since the first call; got {np.unique(classes).tolist()}")
        codes = np.searchsorted(known, y).clip(max=len(known) - 1)
        if (unknown := np.unique(y[known[codes] != y])).size:
            raise RecipeError(f"y has labels that are not among the classes: {unknown.tolist()}")
        self.classes_ = known
        self._more(X, torch.from_numpy(codes).long(), len(known))
        return self

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of every class, fp32 [examples, classes]."""
        return self._predict(X).softmax(1).numpy()

    def predict(self, X: Any) -> Any:
        """Return the likeliest label of every example, [examples]."""
        likeliest = self._predict(X).argmax(1).numpy()
        return self.classes_[likeliest]


class SparseMLPRegressor(RegressorMixin, _SparseMLP):  # type: ignore[misc]
    """A regressor with truly sparse hidden layers, evolved by SET; one target or several.

    Targets are standardised within. See `SparseMLPClassifier` for the arguments and what is kept.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 5))
        >>> y = X[:, 0] - X[:, 1]
        >>> net = SparseMLPRegressor((32,), epsilon=4, epochs=30, batch_size=16, random_state=0).fit(X, y)
        >>> net.score(X, y) > 0.9
        True
    """

    _loss = staticmethod(nn.functional.mse_loss)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> SparseMLPRegressor:
        """Learn from examples, [examples, features] dense or sparse, and targets, [examples] or [examples, targets]."""
        X, y = self._read(X, y, first=True)
        self._learn(X, self._scaled(y), self._width, strata=None)
        return self

    def partial_fit(self, X: Any, y: Any) -> SparseMLPRegressor:
        """Take up learning for one pass over these examples; the first call sets the scale of the targets."""
        X, y = self._read(X, y, first=not hasattr(self, "loss_curve_"))
        self._more(X, self._scaled(y), self._width)
        return self

    def _read(self, X: Any, y: Any, first: bool) -> tuple[Rows, Any]:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float32, multi_output=True, y_numeric=True, reset=first
        )
        if first:
            self._mean, self._scale = y.mean(0), y.std(0)
            self._scale = np.where(self._scale > 0, self._scale, 1.0)
            self._width = 1 if y.ndim == 1 else y.shape[1]
        elif np.shape(self._mean) != y.shape[1:]:
            raise RecipeError(f"y has the shape {y.shape}, other targets than in the first call")
        return X, y

    def _scaled(self, y: Any) -> Tensor:
        return torch.from_numpy((y - self._mean) / self._scale).float().reshape(len(y), -1)

    def predict(self, X: Any) -> Any:
        """Return the targets, fp64 (computed in fp32), of the shape that was learnt from."""
        found = self._predict(X).double().numpy().reshape(-1, *np.shape(self._mean))
        return found * self._scale + self._mean
