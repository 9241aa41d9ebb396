"""Non-negative matrix factorisation as a scikit-learn estimator over `nnmf_cuda.ops`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor
from tqdm import tqdm

from nnmf_cuda import ops
from nnmf_cuda._estimator_input import (
    check_choice,
    check_integer,
    check_real,
    like_input,
    read_matrix,
    resolve_device,
)
from nnmf_cuda._init_factors import INITS, custom_factors, factor_dtype, initial_factors
from nnmf_cuda._restarts import Run, best_run
from nnmf_cuda._solvers import SOLVERS, Penalty, Problem, check_solver

_AUTO_COMPONENTS = 15  # the paper's number
_TRANSFORM_SOLVERS = ("nnls", "mu")


class NNMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Non-negative matrix factorisation X ~= W @ H by multiplicative updates.

    One row of X is one sample (an image, flattened); one row of H = `components_` is one
    component. Parameters, attributes and update rules are those of
    :class:`sklearn.decomposition.NMF` with ``solver="mu"``, plus restarts, devices and pixels.

    Parameters
    ----------
    n_components : int or "auto", default="auto"
        Number of components. "auto" is 15, or min(n_samples, n_features) where that is smaller;
        with ``init="custom"`` the number of rows of H.
    beta_loss : float or {"frobenius", "kullback-leibler", "itakura-saito"}, \
            default="kullback-leibler"
        Divergence that is minimised: 2, 1, 0 or any other number. X must not contain zeros where
        it is 0 or less.
    solver : {"mu"}, default="mu"
        Multiplicative updates, W before H.
    init : {"random", "nndsvd", "nndsvda", "nndsvdar", "custom"}, default="random"
        Start. "random": uniform on [0, 1) plus 0.1. "nndsvd...": from a singular value
        decomposition [3]_, its zeros kept, replaced by the mean of X (a) or by small random
        numbers (ar). "custom": the W and H given to `fit`.
    max_iter : int, default=200
        Most iterations of a fit.
    tol : float, default=1e-4
        Tested every 10 iterations: the fit has converged when sqrt(2 * divergence) fell by no
        more than `tol` times its value at the start. 0 runs all `max_iter` iterations.
    random_state : int, RandomState or None, default=None
        Seed of the start. The start is drawn on the CPU, so a seed means the same start on every
        device.
    alpha_W, alpha_H : float, default=0.0; float or "same", default="same"
        Strength of the regularisation of W (scaled by n_features) and H (by n_samples). "same"
        takes `alpha_W`.
    l1_ratio : float, default=0.0
        Share of the L1 penalty in [0, 1]; the rest is L2.
    n_init : int, default=1
        Number of starts, run as one batch; the one with the lowest objective is kept. The first
        is the start that ``n_init=1`` has with the same `random_state`. Above 1 only with the
        random starts ("random", "nndsvdar").
    transform_solver : {"nnls", "mu"}, default="nnls"
        How `transform` finds the W of new rows: "nnls" is exact non-negative least squares,
        whatever `beta_loss`, without regularisation; "mu" minimises the regularised `beta_loss`
        by multiplicative updates with H fixed. Each row's result is its own in both cases: it
        does not depend on the rows beside it.
    transform_max_iter : int, default=200
        Number of updates of ``transform_solver="mu"``, all executed.
    device : None, "auto", str or torch.device, default=None
        Where to compute: None where X lives (the CPU for arrays), "auto" on CUDA if there is one.
    verbose : int, default=0
        Above 0, `fit` shows a progress bar, where stderr is a terminal.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        H.
    W_ : ndarray of shape (n_samples, n_components)
        The fit's own W, minimising the objective together with `components_`. `transform` solves
        for W anew, so ``fit_transform(X)`` equals ``fit(X).transform(X)`` and not `W_`.
    n_components_ : int
        Number of components.
    n_iter_ : int
        Iterations run (of the start that was kept, as every attribute below).
    converged_ : bool
        Whether the rule of `tol` was met; False where ``tol=0``.
    reconstruction_err_ : float
        sqrt(2 * divergence) between X and ``W_ @ components_``: the Frobenius norm of the
        difference for ``beta_loss="frobenius"``.
    objective_history_ : ndarray of shape (n_records,)
        Divergence plus regularisation at the start, every 10 iterations and at the end.
    objective_iterations_ : ndarray of shape (n_records,)
        The iteration of each record, from 0 to `n_iter_`.
    n_features_in_ : int
        Number of features seen by `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X had names that are all strings.

    Notes
    -----
    The objective is that of scikit-learn,
    ``D(X | W H) + n_features * alpha_W * (l1_ratio * sum(W) + (1 - l1_ratio) / 2 * sum(W ** 2))``
    plus the same of H with ``n_samples * alpha_H``.

    X may be anything scikit-learn takes densely, or a tensor on any device. uint8 means pixels
    and is read as x / 255 without a floating-point copy; other integers are counts and become
    float64; float32 stays float32. Fitted attributes are always NumPy arrays. `transform`,
    `fit_transform` and `inverse_transform` return a tensor on the device of their input for a
    tensor, an array otherwise. No gradient flows through the estimator: a tensor that requires
    grad is detached. For gradients to X use `nnmf_cuda.ops.project`.

    References
    ----------
    .. [1] Lee & Seung (2001), Algorithms for non-negative matrix factorization, NIPS 13.
    .. [2] Fevotte & Idier (2011), Algorithms for nonnegative matrix factorization with the
       beta-divergence, Neural Computation 23(9).
    .. [3] Boutsidis & Gallopoulos (2008), SVD based initialization: a head start for
       nonnegative matrix factorization, Pattern Recognition 41(4).

    Examples
    --------
    >>> import numpy as np
    >>> from nnmf_cuda import NNMF
    >>> X = np.random.default_rng(0).random((20, 12))
    >>> features = NNMF(n_components=3, max_iter=500, random_state=0).fit_transform(X)
    >>> features.shape
    (20, 3)
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] = "auto",
        *,
        beta_loss: float | str = "kullback-leibler",
        solver: str = "mu",
        init: str = "random",
        max_iter: int = 200,
        tol: float = 1e-4,
        random_state: Any = None,
        alpha_W: float = 0.0,
        alpha_H: float | Literal["same"] = "same",
        l1_ratio: float = 0.0,
        n_init: int = 1,
        transform_solver: str = "nnls",
        transform_max_iter: int = 200,
        device: str | torch.device | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.beta_loss = beta_loss
        self.solver = solver
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.n_init = n_init
        self.transform_solver = transform_solver
        self.transform_max_iter = transform_max_iter
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> NNMF:
        """Learn the components of X.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Non-negative data; see the class notes for types.
        y : Ignored
            Present for scikit-learn's convention.
        W, H : array-like or Tensor of shape (n_samples, n_components), (n_components, n_features)
            The start of ``init="custom"``; not modified, cast to the type of X.

        Returns
        -------
        self : NNMF

        Raises
        ------
        TypeError
            For sparse X, or a parameter of the wrong type.
        ValueError
            For negative, infinite, NaN or empty X, zeros in X with ``beta_loss <= 0``,
            `n_components` above min(n_samples, n_features), a parameter out of range, or a
            factorisation that overflows.

        Warns
        -----
        ConvergenceWarning
            If ``tol > 0`` and the rule was not met within `max_iter` iterations.
        """
        self._check_parameters()
        matrix = read_matrix(self, X, device=resolve_device(self.device, X), reset=True)
        self._check_zeros(matrix)
        start_W, start_H = self._start(matrix, W, H)
        with self._progress() as progress:
            run = best_run(
                Problem(
                    matrix, ops.beta_loss_to_float(self.beta_loss), self._penalty(*matrix.shape)
                ),
                start_W,
                start_H,
                solver=self.solver,
                max_iter=self.max_iter,
                tol=self.tol,
                progress=progress.update,
            )
        self._keep(run)
        return self

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Any:
        """Fit to X and return ``transform(X)``; parameters and errors are those of `fit`.

        The result is what `transform` finds for X, not `W_`: features of training rows and of
        new rows are then of the same kind.
        """
        return self.fit(X, y, W=W, H=H).transform(X)

    def transform(self, X: Any) -> Any:
        """Project the rows of X onto the fitted components, as `transform_solver` says.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Non-negative data.

        Returns
        -------
        W : ndarray or Tensor of shape (n_samples, n_components)
            Non-negative coefficients, a tensor on X's device if X is a tensor, of X's type if
            that is floating.
        """
        check_is_fitted(self)
        self._check_parameters()
        matrix = read_matrix(self, X, device=resolve_device(self.device, X), reset=False)
        dtype = factor_dtype(matrix)
        if matrix.dtype == torch.uint8:
            dtype = torch.from_numpy(self.components_).dtype
        components = torch.tensor(self.components_, dtype=dtype, device=matrix.device)
        if self.transform_solver == "nnls":
            return like_input(ops.project(matrix, components), X)
        self._check_zeros(matrix)
        return like_input(self._transform_mu(matrix, components), X)

    def inverse_transform(self, X: Any) -> Any:
        """Return ``X @ components_``, the data that the coefficients X stand for.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_components)
            Coefficients, as `transform` returns them.

        Returns
        -------
        X_original : ndarray or Tensor of shape (n_samples, n_features)
            Reconstructed data, in the units of the data (pixels: 0 to 1). No gradient.
        """
        check_is_fitted(self)
        if not isinstance(X, Tensor):
            X = check_array(X, dtype=[np.float64, np.float32])
        if X.ndim != 2 or X.shape[1] != self.n_components_:
            raise ValueError(
                f"X has shape {tuple(X.shape)}, but inverse_transform needs coefficients of shape "
                f"(n_samples, {self.n_components_})"
            )
        if not isinstance(X, Tensor):
            return X @ self.components_.astype(X.dtype, copy=False)
        X = X.detach() if X.is_floating_point() else X.double()
        return X @ torch.tensor(self.components_, dtype=X.dtype, device=X.device)

    def _check_parameters(self) -> None:
        if self.n_components != "auto":
            check_integer("n_components", self.n_components, low=1)
        if not isinstance(self.beta_loss, (str, Real)):
            raise TypeError(f"beta_loss must be a number or a name, got {self.beta_loss!r}")
        check_choice("solver", self.solver, SOLVERS)
        check_solver(self.solver, ops.beta_loss_to_float(self.beta_loss))
        check_choice("init", self.init, INITS)
        check_choice("transform_solver", self.transform_solver, _TRANSFORM_SOLVERS)
        for name in ("max_iter", "n_init", "transform_max_iter"):
            check_integer(name, getattr(self, name), low=1)
        check_real("tol", self.tol, low=0)
        check_real("alpha_W", self.alpha_W, low=0)
        if self.alpha_H != "same":
            check_real("alpha_H", self.alpha_H, low=0)
        check_real("l1_ratio", self.l1_ratio, low=0, high=1)

    def _check_zeros(self, X: Tensor) -> None:
        if ops.beta_loss_to_float(self.beta_loss) <= 0 and bool((X == 0).any()):
            raise ValueError(
                f"X contains zeros, for which beta_loss={self.beta_loss!r} is infinite; add a "
                "small value to X or use a beta_loss above 0"
            )

    def _start(self, X: Tensor, W: Any, H: Any) -> tuple[Tensor, Tensor]:
        """Return the starts (n_init, n, k) and (n_init, k, f) that the parameters ask for."""
        limit = min(X.shape)
        n_components = None if self.n_components == "auto" else int(self.n_components)
        if n_components is not None and n_components > limit:
            raise ValueError(
                f"n_components={n_components} is above min(n_samples, n_features) = {limit} for X "
                f"of shape {tuple(X.shape)}; use n_components <= {limit} or more samples"
            )
        if self.init == "custom":
            if self.n_init > 1:
                raise ValueError(
                    f"n_init={self.n_init} with init='custom': give one start, n_init=1"
                )
            return custom_factors(X, n_components, W, H)
        if W is not None or H is not None:
            raise ValueError(f"W and H are starts of init='custom', but init={self.init!r}")
        if n_components is None:
            n_components = min(_AUTO_COMPONENTS, limit)
        return initial_factors(
            X, n_components, init=self.init, n_init=self.n_init, random_state=self.random_state
        )

    def _penalty(self, n_samples: int, n_features: int) -> Penalty:
        alpha_H = self.alpha_W if self.alpha_H == "same" else self.alpha_H
        return Penalty(
            l1_reg_W=n_features * self.alpha_W * self.l1_ratio,
            l1_reg_H=n_samples * alpha_H * self.l1_ratio,
            l2_reg_W=n_features * self.alpha_W * (1 - self.l1_ratio),
            l2_reg_H=n_samples * alpha_H * (1 - self.l1_ratio),
        )

    @contextmanager
    def _progress(self) -> Iterator[Any]:
        # None shows the bar on a terminal only.
        hidden = None if self.verbose else True
        with tqdm(total=self.max_iter, desc="NNMF", unit="it", disable=hidden) as bar:
            yield bar

    def _keep(self, run: Run) -> None:
        """Store the best run as fitted attributes, or raise if even that one overflowed."""
        if not math.isfinite(run.objective[-1]):
            raise ValueError(
                f"the factorisation overflowed (objective {run.objective[-1]}); scale X to values "
                "around 1, use float64 or another beta_loss"
            )
        assert run.W is not None
        assert run.H is not None
        self.components_ = run.H.cpu().numpy()
        self.W_ = run.W.cpu().numpy()
        self.n_components_ = len(self.components_)
        self.n_iter_ = run.iterations[-1]
        self.converged_ = run.converged
        self.reconstruction_err_ = math.sqrt(2 * max(run.divergence, 0.0))
        self.objective_history_ = np.array(run.objective)
        self.objective_iterations_ = np.array(run.iterations)
        if self.tol > 0 and not run.converged:
            warnings.warn(
                f"NNMF stopped at max_iter={self.max_iter} before it converged to tol={self.tol}; "
                "raise max_iter, or set tol=0 if a fixed number of iterations is what you want",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _transform_mu(self, X: Tensor, H: Tensor) -> Tensor:
        """Run `transform_max_iter` updates of W, each row from the constant sqrt(mean / k)."""
        mean = X.mean(1, keepdim=True, dtype=H.dtype)
        if X.dtype == torch.uint8:
            mean = mean / 255
        start = (mean / len(H)).sqrt().expand(-1, len(H)).contiguous()
        penalty = asdict(self._penalty(self.W_.shape[0], X.shape[1]))
        W, _, _ = ops.nnmf_mu(
            X,
            start,
            H,
            beta_loss=self.beta_loss,
            n_iter=self.transform_max_iter,
            update_H=False,
            **penalty,
        )
        return W

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
