"""scikit-learn's names for NNMF, so that its own tests of NMF run on ours.

Nothing is computed here: parameters are renamed, and results handed back under the names that
scikit-learn has for them. What NNMF lacks, the adapters lack.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import sklearn.decomposition
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin
from sklearn.utils import gen_batches

from nnmf_cuda import NNMF, ops
from nnmf_cuda.nnmf.inputs import as_matrix
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.starts import Origin, initial_factors

SOLVERS = {"mu": "mu", "cd": "hals"}


def own_tests_of_nmf(path: Path) -> ModuleType:
    """Execute scikit-learn's test_nmf.py with its estimators and functions replaced by ours."""
    spec = importlib.util.spec_from_file_location("sklearn_test_nmf_on_nnmf", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    private = SimpleNamespace(_initialize_nmf=initialize_nmf, _beta_divergence=beta_divergence)
    ours = {
        "NMF": NMF,
        "MiniBatchNMF": MiniBatchNMF,
        "non_negative_factorization": non_negative_factorization,
        "_nmf": private,
    }
    with patch.multiple(sklearn.decomposition, **ours):
        spec.loader.exec_module(module)
    return module


class Adapter(ClassNamePrefixFeaturesOutMixin, BaseEstimator):
    """What both estimators share: a model of ours beside scikit-learn's parameters."""

    def our_model(self, X: Any, **parameters: Any) -> NNMF:
        """Return an unfitted NNMF that means what the parameters mean for this X."""
        init, k = self.init, self.n_components
        if k == "auto" and init != "custom":
            k = X.shape[1]
        if init is None:  # scikit-learn's choice
            init = "nndsvda" if k <= min(X.shape) else "random"
        shared = ("beta_loss", "tol", "max_iter", "random_state", "alpha_W", "alpha_H", "l1_ratio")
        values = {name: getattr(self, name) for name in shared}
        return NNMF(k, init=init, verbose=self.verbose, **values, **parameters)

    def fit(self, X: Any, y: Any = None, **start: Any) -> Adapter:
        self.fit_transform(X, **start)
        return self

    def transform(self, X: Any) -> Any:
        return self.model_.transform(X)

    def inverse_transform(self, X: Any) -> Any:
        return self.model_.inverse_transform(X)

    def keep(self, model: NNMF) -> None:
        self.model_ = model
        self.components_ = model.components_
        self._n_components = self._n_features_out = model.n_components_


class NMF(Adapter):
    """scikit-learn's NMF: the W that `fit_transform` returns is the fit's own."""

    def __init__(
        self,
        n_components: Any = "auto",
        *,
        init: Any = None,
        solver: str = "cd",
        beta_loss: Any = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        alpha_W: float = 0.0,
        alpha_H: Any = "same",
        l1_ratio: float = 0.0,
        verbose: int = 0,
        shuffle: bool = False,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.verbose = verbose
        self.shuffle = shuffle

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Any:
        model = self.our_model(X).fit(X, W=W, H=H)
        self.keep(model)
        self.reconstruction_err_ = model.reconstruction_err_
        return model.W_

    def our_model(self, X: Any, **parameters: Any) -> NNMF:
        return super().our_model(X, solver=SOLVERS[self.solver], transform_solver="same")


class MiniBatchNMF(Adapter):
    """scikit-learn's MiniBatchNMF: mini-batches in turn, `max_iter` times, through `partial_fit`.

    Rows are always solved afresh, as with ``fresh_restarts=True``.
    """

    def __init__(
        self,
        n_components: Any = "auto",
        *,
        init: Any = None,
        batch_size: int = 1024,
        beta_loss: Any = "frobenius",
        tol: float = 1e-4,
        max_no_improvement: Any = 10,
        max_iter: int = 200,
        alpha_W: float = 0.0,
        alpha_H: Any = "same",
        l1_ratio: float = 0.0,
        forget_factor: float = 0.7,
        fresh_restarts: bool = False,
        fresh_restarts_max_iter: int = 30,
        transform_max_iter: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.batch_size = batch_size
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.max_iter = max_iter
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.forget_factor = forget_factor
        self.fresh_restarts = fresh_restarts
        self.fresh_restarts_max_iter = fresh_restarts_max_iter
        self.transform_max_iter = transform_max_iter
        self.random_state = random_state
        self.verbose = verbose

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Any:
        self.__dict__.pop("model_", None)
        for _ in range(self.max_iter):
            for rows in gen_batches(X.shape[0], self.batch_size):
                self.partial_fit(X[rows], W=W, H=H)
        W = self.transform(X)
        beta = ops.beta_loss_to_float(self.beta_loss)
        self.reconstruction_err_ = beta_divergence(X, W, self.components_, beta, square_root=True)
        return W

    def partial_fit(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> MiniBatchNMF:
        if not hasattr(self, "model_"):
            self.model_ = self.our_model(
                X,
                forget_factor=self.forget_factor,
                fresh_restarts_max_iter=self.fresh_restarts_max_iter,
                transform_solver="mu",
                transform_max_iter=self.transform_max_iter or self.max_iter,
            )
        self.keep(self.model_.partial_fit(X, H=H))
        self.n_steps_ = self.model_.n_steps_
        return self


def non_negative_factorization(
    X: Any,
    W: Any = None,
    H: Any = None,
    n_components: Any = "auto",
    *,
    update_H: bool = True,
    **parameters: Any,
) -> tuple[Any, Any, int]:
    """Return W, H and the iterations run; the W of a given H is the one that X transforms to."""
    estimator = NMF(n_components, **parameters)
    if update_H:
        W = estimator.fit_transform(X, W=W, H=H)
        return W, estimator.components_, estimator.model_.n_iter_
    estimator.n_components = len(H)
    model = estimator.our_model(X)
    return model.fit_transform(X, H=H, update_H=False), model.components_, model.n_iter_


def initialize_nmf(
    X: Any, n_components: int, init: Any = None, random_state: Any = None
) -> tuple[Any, Any]:
    origin = Origin(init, random_state=random_state, mean=float(X.mean()))
    W, H = initial_factors(matrix_of(X), n_components, origin)
    return W[0].numpy(), H[0].numpy()


def beta_divergence(X: Any, W: Any, H: Any, beta: float, square_root: bool = False) -> float:
    W, H = (torch.from_numpy(np.asarray(factor)) for factor in (W, H))
    matrix = matrix_of(X).converted(W.dtype)
    divergence = float(matrix.divergence(W, H, beta_loss=beta, floor=ops.EPSILON))
    return float(np.sqrt(2 * max(divergence, 0.0))) if square_root else divergence


def matrix_of(X: Any) -> Matrix:
    matrix, *_ = as_matrix(X, torch.device("cpu"), "NMF")
    return matrix
