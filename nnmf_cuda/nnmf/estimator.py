"""Non-negative matrix factorisation as a scikit-learn estimator over `nnmf_cuda.ops`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor
from tqdm import tqdm

from nnmf_cuda import ops
from nnmf_cuda.nnmf.inputs import (
    factor_dtype,
    like_input,
    read_matrix,
    resolve_device,
)
from nnmf_cuda.nnmf.minibatch import Statistics, minibatch_step, solve_W, statistics_of_fit
from nnmf_cuda.nnmf.parameters import check_parameters, check_zeros, objective_of
from nnmf_cuda.nnmf.rank_selection import RankSelectionMixin
from nnmf_cuda.nnmf.restarts import Run, best_run
from nnmf_cuda.nnmf.solvers import Problem
from nnmf_cuda.nnmf.starts import start_of_stream, starts_of_fit

_MEMORY = ("_components_numerator", "_components_denominator")
_OF_FIT_ALONE = (
    "W_",
    "n_iter_",
    "converged_",
    "reconstruction_err_",
    "objective_history_",
    "objective_iterations_",
)


class NNMF(RankSelectionMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Non-negative matrix factorisation X ~= W @ H, of data at hand or of a stream.

    One row of X is one sample (an image, flattened); one row of H = `components_` is one
    component. Parameters, attributes and update rules are those of
    :class:`sklearn.decomposition.NMF` with ``solver="mu"``, plus restarts, quicker solvers, the
    `partial_fit` of :class:`sklearn.decomposition.MiniBatchNMF`, devices and pixels. `select_rank`
    compares numbers of components before a fit.

    Parameters
    ----------
    n_components : int or "auto", default="auto"
        Number of components. "auto" is 15, or min(n_samples, n_features) where that is smaller;
        with ``init="custom"`` the number of rows of H.
    beta_loss : float or {"frobenius", "kullback-leibler", "itakura-saito"}, \
            default="kullback-leibler"
        Divergence that is minimised: 2, 1, 0 or any other number. X must not contain zeros where
        it is 0 or less.
    solver : {"mu", "accelerated-mu", "hals"}, default="mu"
        How `fit` lowers the objective, W before H in each iteration; the notes say which to take.
        "mu": multiplicative updates [1]_ [2]_. "accelerated-mu": the same from extrapolated
        factors (in the manner of [5]_), for `beta_loss` in [1, 2]. "hals": hierarchical
        alternating least squares [4]_, for ``beta_loss="frobenius"``.
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
    forget_factor : float, default=0.7
        What `partial_fit` multiplies its memory of earlier mini-batches by, in [0, 1]: 1 weighs
        all rows alike, 0 forgets them.
    fresh_restarts_max_iter : int, default=30
        Number of updates that `partial_fit` spends on the W of a mini-batch, all executed.
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
    n_steps_ : int
        Mini-batches that `partial_fit` has seen; only there after `partial_fit`, which leaves
        `components_` and `n_components_` as the only other results.
    n_features_in_ : int
        Number of features seen by `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X had names that are all strings.

    Notes
    -----
    The objective is that of scikit-learn,
    ``D(X | W H) + n_features * alpha_W * (l1_ratio * sum(W) + (1 - l1_ratio) / 2 * sum(W ** 2))``
    plus the same of H with ``n_samples * alpha_H``.

    "mu" repeats scikit-learn's iterates and takes every `beta_loss`. "accelerated-mu" costs the
    same an iteration and usually needs far fewer of them to the same objective: take it for
    Kullback-Leibler. Every 10 iterations a start whose objective has risen is put back and goes on
    without momentum, so the recorded objective never rises; a record that repeats the one before
    it is such a block. "hals" usually needs the fewest for ``beta_loss="frobenius"``: it can leave
    zeros, and sweeps over the factors several times for each time that it reads X. All three stop
    by the rule of `tol`; from one start they may end in different minima.

    X may be anything scikit-learn takes densely, or a tensor on any device. uint8 means pixels
    and is read as x / 255 without a floating-point copy; other integers are counts and become
    float64; float32 stays float32. With compiled kernels, a memory map of one of these types in C
    order (``np.load(path, mmap_mode="r")``) is read where it is, so it may be larger than memory:
    beside it, `fit` holds the factors and a block of rows. Data in other orders are copied once.
    Fitted attributes are always NumPy arrays. `transform`,
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
    .. [4] Gillis & Glineur (2012), Accelerated multiplicative updates and hierarchical ALS
       algorithms for nonnegative matrix factorization, Neural Computation 24(4).
    .. [5] Hien, Leplat & Gillis (2024), Block majorization minimization with extrapolation and
       application to beta-NMF, arXiv:2401.06646.
    .. [6] Lefevre, Bach & Fevotte (2011), Online algorithms for nonnegative matrix factorization
       with the Itakura-Saito divergence, WASPAA.

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
        forget_factor: float = 0.7,
        fresh_restarts_max_iter: int = 30,
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
        self.forget_factor = forget_factor
        self.fresh_restarts_max_iter = fresh_restarts_max_iter
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
        self._fit(self._training_matrix(X), W, H)
        return self

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Any:
        """Fit to X and return ``transform(X)``; parameters and errors are those of `fit`.

        The result is what `transform` finds for X, not `W_`: features of training rows and of
        new rows are then of the same kind. X is read, checked and brought to the device once.
        """
        matrix = self._training_matrix(X)
        self._fit(matrix, W, H)
        return like_input(self._transform(matrix), X)

    def partial_fit(self, X: Any, y: Any = None, *, H: Any = None) -> NNMF:
        """Improve the components by the rows X, one mini-batch of a stream.

        The W of the mini-batch is found from H, then H from what is remembered of all
        mini-batches: one step of :class:`sklearn.decomposition.MiniBatchNMF`, for any
        `beta_loss` [6]_. `solver`, `max_iter`, `tol` and `n_init` have no influence.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Non-negative data. The first call may have fewer rows than components, except with the
            starts of "nndsvd..."; a stream goes on from where `fit` has ended, the rows of the fit
            counting as the mini-batch before.
        y : Ignored
            Present for scikit-learn's convention.
        H : array-like or Tensor of shape (n_components, n_features)
            The start of ``init="custom"``, used by the first call.

        Returns
        -------
        self : NNMF

        Raises
        ------
        TypeError, ValueError
            As `fit`.
        """
        check_parameters(self)
        first = not hasattr(self, "components_")
        matrix = read_matrix(self, X, device=resolve_device(self.device, X), reset=first)
        check_zeros(self, matrix)
        components, past = self._stream(matrix, H)
        if matrix.dtype != torch.uint8:
            matrix = matrix.to(components.dtype)
        components, statistics = minibatch_step(
            matrix,
            components,
            past,
            objective_of(self, *matrix.shape),
            n_iter=self.fresh_restarts_max_iter,
            forget_factor=self.forget_factor,
        )
        self._keep_step(components, statistics)
        return self

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
        check_parameters(self)
        matrix = read_matrix(self, X, device=resolve_device(self.device, X), reset=False)
        return like_input(self._transform(matrix), X)

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

    def _training_matrix(self, X: Any) -> Tensor:
        check_parameters(self)
        matrix = read_matrix(self, X, device=resolve_device(self.device, X), reset=True)
        check_zeros(self, matrix)
        return matrix

    def _fit(self, matrix: Tensor, W: Any, H: Any) -> None:
        """Fit to the matrix from the start W, H, where the user has given one."""
        starts = starts_of_fit(self, matrix, W, H)
        with self._progress() as progress:
            run = best_run(
                Problem(matrix, objective_of(self, *matrix.shape)),
                *starts,
                solver=self.solver,
                max_iter=self.max_iter,
                tol=self.tol,
                progress=progress.update,
            )
        self._keep(run)

    def _transform(self, matrix: Tensor) -> Tensor:
        dtype = factor_dtype(matrix)
        if matrix.dtype == torch.uint8:
            dtype = torch.from_numpy(self.components_).dtype
        components = torch.tensor(self.components_, dtype=dtype, device=matrix.device)
        if self.transform_solver == "nnls":
            return ops.project(matrix, components)
        check_zeros(self, matrix)
        return solve_W(
            matrix, components, objective_of(self, *matrix.shape), n_iter=self.transform_max_iter
        )

    def _stream(self, X: Tensor, H: Any) -> tuple[Tensor, Statistics]:
        """Return the components and the memory with which a stream meets the rows X."""
        if not hasattr(self, "components_"):
            components = start_of_stream(self, X, H)
            return components, Statistics(components, torch.ones_like(components))

        def stored(name: str) -> Tensor:
            return torch.tensor(getattr(self, name), device=X.device)

        components = stored("components_")
        self._check_stream(len(components))
        if hasattr(self, "n_steps_"):
            return components, Statistics(*map(stored, _MEMORY))
        W = stored("W_")
        return components, statistics_of_fit(W, components, objective_of(self, len(W), X.shape[1]))

    def _check_stream(self, n_components: int) -> None:
        """Raise where a parameter no longer fits what the stream remembers."""
        before: dict[str, Any] = {"n_components": n_components}
        if hasattr(self, "n_steps_"):
            before["beta_loss"] = self._beta_loss_of_stream
        for name, value in before.items():
            now = getattr(self, name)
            if now != "auto" and now != value:
                raise ValueError(
                    f"{name}={now!r} has changed from {value!r} since the stream began; set it "
                    "back, or start anew with sklearn.base.clone"
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
        for name in ("n_steps_", *_MEMORY):
            self.__dict__.pop(name, None)
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
                stacklevel=4,
            )

    def _keep_step(self, components: Tensor, statistics: Statistics) -> None:
        """Store what a mini-batch has led to, and drop what holds for the end of a fit only."""
        if not bool(components.isfinite().all()):
            raise ValueError("the mini-batch overflowed; scale X to values around 1 or use float64")
        for name in _OF_FIT_ALONE:
            self.__dict__.pop(name, None)
        self.components_ = components.cpu().numpy()
        self._beta_loss_of_stream = self.beta_loss
        self._components_numerator = statistics.numerator.cpu().numpy()
        self._components_denominator = statistics.denominator.cpu().numpy()
        self.n_components_ = len(self.components_)
        self.n_steps_ = getattr(self, "n_steps_", 0) + 1

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
