"""Non-negative matrix factorisation as a scikit-learn estimator over `nnmf_cuda.ops`.

The file is long by its documentation, which is half of it; the work is in mixins and what they use.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.checkpoint import Checkpoint
from nnmf_cuda.nnmf.fingerprints import description_of_fit
from nnmf_cuda.nnmf.fitting import Callback, Watch, fit_to_end
from nnmf_cuda.nnmf.inputs import check_choice, check_integer, like_input, shared_tensor
from nnmf_cuda.nnmf.matrix import Dense, Matrix
from nnmf_cuda.nnmf.minimisation import Minimisation, Run, State
from nnmf_cuda.nnmf.projection import TRANSFORM_SOLVERS, solve_W, updated_W
from nnmf_cuda.nnmf.rank_choice import RankSelectionMixin
from nnmf_cuda.nnmf.sharding import best_of_all, one_fate, own_starts
from nnmf_cuda.nnmf.solvers import SOLVERS
from nnmf_cuda.nnmf.starts import held_factors, initial_factors
from nnmf_cuda.nnmf.streaming import MEMORY, StreamMixin
from nnmf_cuda.nnmf.user_warning import warn_user
from nnmf_cuda.nnmf.weighted_matrix import check_columns
from nnmf_cuda.ops.nnmf import PRECISIONS, check_precision


class NNMF(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    StreamMixin,
    RankSelectionMixin,
):
    """Non-negative matrix factorisation X ~= W @ H, of data at hand or of a stream.

    One row of X is one sample (an image, flattened); one row of H = `components_` is one
    component. Parameters, attributes and update rules are those of
    :class:`sklearn.decomposition.NMF` with ``solver="mu"``, plus restarts, quicker solvers, the
    `partial_fit` of :class:`sklearn.decomposition.MiniBatchNMF`, devices and pixels. `select_rank`
    compares numbers of components before a fit. `save` and `load` bring a fitted estimator to
    another process, without pickle.

    Parameters
    ----------
    n_components : int or "auto", default="auto"
        Number of components, which may be above n_samples and n_features, except with the starts
        "nndsvd...". "auto" is 15, or min(n_samples, n_features) where that is smaller; with
        ``init="custom"`` the number of rows of H.
    beta_loss : float or {"frobenius", "kullback-leibler", "itakura-saito"}, \
            default="kullback-leibler"
        Divergence that is minimised: 2, 1, 0 or any other number. X must not contain zeros where
        it is 0 or less.
    solver : {"mu", "accelerated-mu", "hals", "cd", "semi", "semi-hals"}, default="mu"
        How `fit` lowers the objective, W before H in each iteration; the notes say which to take.
        "mu": multiplicative updates [1]_ [2]_. "accelerated-mu": the same from extrapolated
        factors (in the manner of [5]_), for `beta_loss` in [1, 2]. "hals": hierarchical
        alternating least squares [4]_, for ``beta_loss="frobenius"`` (scikit-learn's "cd"). "cd":
        coordinate descent for Kullback-Leibler and sparse X [9]_. "semi": Semi-NMF [7]_, for
        X of any sign and that loss: W stays non-negative, while H is the least-squares solution,
        of any sign. "semi-hals": the same with the sweeps of "hals" over W in place of the
        multiplicative updates of [7]_.
    init : {"random", "nndsvd", "nndsvda", "nndsvdar", "custom"}, default="random"
        Start. "random": uniform on [0, 1) plus 0.1. "nndsvd...": from a singular value
        decomposition [3]_, its zeros kept, replaced by sqrt(mean of X) (a) or by small random
        numbers (ar). All are scaled so that a fit does not depend on the units of X. "custom":
        the W and H given to `fit`.
    max_iter : int, default=200
        Most iterations of a fit.
    tol : float, default=1e-4
        Tested every 10 iterations: the fit has converged when sqrt(2 * objective), penalties
        included, did not rise and fell by no more than `tol` times itself (or than its rounding,
        so that exact fits end too). 0 runs all `max_iter` iterations.
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
    fixed_components : array-like or Tensor of shape (n_fixed, n_features), default=None
        Components that are known: they are the first rows of `components_` and are held, while the
        others are learned beside them, by `fit` and `partial_fit`. Starts: "random" or "custom".
    graph : None, "neighbors", "labels" or matrix of shape (n_samples, n_samples), default=None
        Graph over the rows of X, along whose edges `fit` keeps W alike [8]_, for the Frobenius
        norm and Kullback-Leibler, with any solver but "hals", "semi-hals" and "cd". "neighbors":
        each row with its 5 nearest (:func:`nnmf_cuda.nnmf.neighbor_graph` makes others). "labels":
        each row with all of its class, by 1 / (size of the class); y of `fit` has the classes, -1
        where one is not known. A matrix, sparse or dense: symmetric weights >= 0. New rows have no
        part in it: `transform` leaves it out.
    alpha_graph : float, default=1.0
        Strength of the graph's penalty, the lambda of [8]_: not scaled by the size of X.
    missing_values : None, np.nan or float, default=None
        What stands in X for an entry that nobody knows: such entries are left out of the sums of
        `fit`, `transform` and all else, so that what is in their place does not matter. None: every
        entry counts, and NaN is an error. More is told by `mask` and `weights` of `fit`.
    warm_start : bool, default=False
        Whether `fit` starts from the fitted `components_`, and from `W_` where X has as many rows
        (else from the W of `fresh_restarts_max_iter` updates), instead of `init`; not where W or H
        is given. Entries that are zero stay so, except with "hals", "semi-hals" and "cd", and in H
        of "semi".
    transform_solver : {"nnls", "mu", "same"}, default="nnls"
        How `transform` finds the W of new rows: "nnls" is exact non-negative least squares,
        whatever `beta_loss`, without regularisation; "mu" minimises the regularised `beta_loss`
        by multiplicative updates with H fixed; "same" minimises what `fit` minimises: as "mu", but
        exactly for ``beta_loss="frobenius"``, where that is a least-squares problem. Each row's
        result is its own in all cases: it does not depend on the rows beside it (beyond rounding,
        for "same" with that loss and a penalty, and for "mu" of Semi-NMF).
    transform_max_iter : int, default=200
        Number of updates of ``transform_solver="mu"`` and "same", all executed.
    forget_factor : float, default=0.7
        What `partial_fit` multiplies its memory of earlier mini-batches by, in [0, 1]: 1 weighs
        all rows alike, 0 forgets them.
    fresh_restarts_max_iter : int, default=30
        Number of updates that `partial_fit` spends on the W of a mini-batch, all executed.
    device : None, "auto", str or torch.device, default=None
        Where to compute: None where X lives (the CPU for arrays), "auto" on CUDA if there is one.
    precision : {"float32", "tf32x3"}, default="float32"
        How a GPU forms the sums over X in `fit`. "tf32x3": on tensor cores, as exact as float32
        (:func:`nnmf_cuda.ops.nnmf_mu`), for the solvers "mu" and "accelerated-mu" with
        Kullback-Leibler, dense float32 or uint8 X, no mask, weights or graph. Above 16 components,
        and on the CPU, it makes no difference.
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

    With a `graph` of the weights A it also has
    ``alpha_graph / 4 * sum(A[i, j] * ((W[i] - W[j]) ** 2).sum())``, which for "labels" is half the
    scatter of W within classes. W H does not change where W shrinks and H grows, but that penalty
    does: give an `alpha_H`, or many iterations drive W to zero.

    "mu" repeats scikit-learn's iterates and takes every `beta_loss`. "accelerated-mu" costs the
    same an iteration and usually needs far fewer of them to the same objective: take it for
    Kullback-Leibler. Every 10 iterations a start whose objective has risen is put back and goes on
    without momentum, so the recorded objective rises only where plain updates raise it, as they may
    with a penalty; a record that repeats the one before it is a block that was put back. "hals"
    usually needs the fewest for ``beta_loss="frobenius"``: it can leave zeros, and sweeps over the
    factors several times for each time that it reads X. "cd" usually needs the least time for
    Kullback-Leibler and sparse X: it can leave zeros, holds X^T beside X, and goes on from
    extrapolated factors, as "accelerated-mu" does; no record of its objective is above the one
    before, but for rounding. It knows no dense X, mask or weights. "semi-hals" needs far fewer than
    "semi". Both start, with ``init="random"``, from a random W and the H that fits it best, and
    have no `partial_fit`, no `select_rank` and no L1 penalty of H. No iteration of them, or of "mu"
    with a graph, raises the objective beyond rounding. All stop by the rule of `tol`; from one
    start they may end in different minima. With a graph and Kullback-Leibler, X^T is held beside X.

    X may be anything scikit-learn takes, or a tensor on any device. uint8 means pixels and is read
    as x / 255 without a floating-point copy; other integers are counts and become float64; float32
    stays float32. Sparse X (SciPy's CSR and CSC, torch's CSR) is never made dense; with
    Kullback-Leibler and Frobenius only its non-zeros cost time. With compiled kernels, a memory map
    of one of these types in C order (``np.load(path, mmap_mode="r")``) is read where it is, so it
    may be larger than memory: beside it, `fit` holds the factors and a block of rows. Data in other
    orders are copied once. Where X is a :class:`nnmf_cuda.distributed.Shard`, each process of a
    group gives some of its rows, and all fit to all of them together; the `W_` of a process is that
    of its own rows.

    What runs where: compiled kernels on the CPU and on CUDA serve "mu", "accelerated-mu", "hals"
    and "cd", for every `beta_loss`, penalty and kind of X (dense, sparse, with a mask or weights)
    that they take, and the exact least squares of `transform`. "semi" but for the sweeps of
    "semi-hals", a `graph` with the Frobenius norm (with Kullback-Leibler, what it adds),
    extrapolation, the products for "nndsvd..." and the sums of `partial_fit` are plain torch on any
    device. Where no kernel is built the reference runs, in plain torch too
    (:func:`nnmf_cuda.show_config` tells). docs/nnmf.md has the table of each solver, loss, input
    and penalty.

    Fitted attributes are always NumPy arrays. `transform`, `fit_transform` and `inverse_transform`
    return a tensor on the device of their input for a tensor, an array otherwise. No gradient flows
    through the estimator: a tensor that requires grad is detached. For gradients to X use
    `nnmf_cuda.ops.project`.

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
    .. [7] Ding, Li & Jordan (2010), Convex and semi-nonnegative matrix factorizations, IEEE
       TPAMI 32(1).
    .. [8] Cai, He, Han & Huang (2011), Graph regularized nonnegative matrix factorization for
       data representation, IEEE TPAMI 33(8).
    .. [9] Hsieh & Dhillon (2011), Fast coordinate descent methods with variable selection for
       non-negative matrix factorization, KDD; the steps here are those of
       :func:`nnmf_cuda.ops.nnmf_cd`.

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
        fixed_components: Any = None,
        graph: Any = None,
        alpha_graph: float = 1.0,
        missing_values: float | None = None,
        warm_start: bool = False,
        transform_solver: str = "nnls",
        transform_max_iter: int = 200,
        forget_factor: float = 0.7,
        fresh_restarts_max_iter: int = 30,
        device: str | torch.device | None = None,
        precision: str = "float32",
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
        self.fixed_components = fixed_components
        self.graph = graph
        self.alpha_graph = alpha_graph
        self.missing_values = missing_values
        self.warm_start = warm_start
        self.transform_solver = transform_solver
        self.transform_max_iter = transform_max_iter
        self.forget_factor = forget_factor
        self.fresh_restarts_max_iter = fresh_restarts_max_iter
        self.device = device
        self.precision = precision
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: Any = None,
        W: Any = None,
        H: Any = None,
        *,
        update_H: bool = True,
        mask: Any = None,
        weights: Any = None,
        callback: Callback | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float = 60.0,
    ) -> NNMF:
        """Learn the components of X.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            Non-negative data, of any sign for Semi-NMF; see the class notes for types.
        y : array-like of shape (n_samples,), default=None
            Labels of the rows for ``graph="labels"``, -1 where one is not known; else ignored.
        W, H : array-like or Tensor of shape (n_samples, n_components), (n_components, n_features)
            The start of ``init="custom"``, or what ``update_H=False`` needs; not modified, cast to
            the type of X.
        update_H : bool, default=True
            False holds the components H and learns W alone, from the W given or from one constant
            in each row: `W_` is then what `fit` minimises for these rows. `init`, `n_init` and
            `warm_start` have no influence.
        mask : array-like or Tensor of shape (n_samples, n_features), optional
            bool: entries where it is False are left out, as missing ones are. Kernels read it as
            bits. Every column needs an entry that counts, unless ``update_H=False``; a row without
            one gets a W of 0.
        weights : array-like or Tensor of shape (n_samples, n_features) or (n_samples,), optional
            How much each entry, or each sample, counts, >= 0: what is minimised is the sum of
            weight times divergence. 0 leaves an entry out; weights of 0 and 1 alone are a mask.
        callback : callable, optional
            Called with a :class:`nnmf_cuda.nnmf.FitRecord` at every record (see
            `objective_history_`). The fit ends where it returns True, with the best start as it
            stands, and without a warning. Its own errors end the fit too.
        checkpoint : path, optional
            A file from which the same call goes on if it was stopped, by whatever: to the same
            bits, on the same device, as if it had not been. Where there is no such file the fit
            begins. It is written at the start, every `checkpoint_every` seconds, and when the fit
            ends or is interrupted; it stays when the fit has ended, and leads to the same result
            at once. Data or parameters other than those that it was begun with are refused,
            except for those that do not matter and `max_iter`: a larger one takes a fit further
            that had not converged. Nothing that was drawn at random is drawn again; a warm start
            needs the estimator as it was, which `save` keeps. The file is
            a safetensors file without code and holds the factors of the starts that still run,
            twice for "accelerated-mu" and "cd", and those of the best that has ended. For a digest,
            X is read once more than without. Of a :class:`nnmf_cuda.distributed.Shard` the rows of
            W are in files beside it, one of each process, and any number of processes goes on:
            with as many to the same bits, with others within the rounding of sums. It is then not
            written where an error ends the fit.
        checkpoint_every : float, default=60.0
            Seconds between two writings; 0 writes at every record.

        Raises
        ------
        TypeError
            For a sparse tensor that is not in CSR, mask or weights of sparse X, or a parameter of
            the wrong type.
        ValueError
            For negative, infinite, NaN or empty X, zeros in X with ``beta_loss <= 0``,
            more components than the start can give, a parameter out of range, a factorisation
            that overflows, or a checkpoint that is damaged or of another fit.

        Warns
        -----
        ConvergenceWarning
            If ``tol > 0`` and the rule was not met within `max_iter` iterations.
        RuntimeWarning
            If the checkpoint cannot be written later than at the start; the fit goes on.
        UserWarning
            If the mean of X is so small or large that the type of X, or the kernels, cannot hold
            what updates form.

        Examples
        --------
        >>> import numpy as np
        >>> from nnmf_cuda import NNMF
        >>> X = np.random.default_rng(0).random((20, 12))
        >>> model = NNMF(n_components=3, tol=0, random_state=0)
        >>> model.fit(X, callback=lambda record: record.iteration >= 50).n_iter_
        50
        """
        with one_fate(X):
            watch = Watch(callback, checkpoint, checkpoint_every)
            matrix = self._read_training(X, mask=mask, weights=weights)
            self._fit(matrix, y, W, H, watch, update_H=update_H)
        return self

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        W: Any = None,
        H: Any = None,
        *,
        update_H: bool = True,
        mask: Any = None,
        weights: Any = None,
        callback: Callback | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float = 60.0,
    ) -> Any:
        """Fit to X and return ``transform(X)``; parameters and errors are those of `fit`.

        The result is what `transform` finds for X, not `W_`: features of training rows and of
        new rows are then of the same kind. X is read, checked and brought to the device once.
        """
        with one_fate(X):
            watch = Watch(callback, checkpoint, checkpoint_every)
            matrix = self._read_training(X, mask=mask, weights=weights)
            self._fit(matrix, y, W, H, watch, update_H=update_H)
            return like_input(self._transform(matrix), X)

    def transform(self, X: Any, *, mask: Any = None, weights: Any = None) -> Any:
        """Project the rows of X onto the fitted components, as `transform_solver` says.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            Non-negative data.
        mask, weights : array-like or Tensor, optional
            As for `fit`. Where they, or `missing_values`, leave entries out, "nnls" solves each row
            by those it has; a row without one gets zeros.

        Returns
        -------
        W : ndarray or Tensor of shape (n_samples, n_components)
            Non-negative coefficients, a tensor on X's device if X is a tensor; float32, or float64
            where X is, or holds integers beyond uint8.

        Warns
        -----
        UserWarning
            If the fit was to uint8 pixels and X has entries above 2 in another type, or the other
            way round; or if `alpha_W` is positive, which ``transform_solver="nnls"`` leaves out.
        """
        with one_fate(X):
            check_is_fitted(self)
            self._check_parameters()
            matrix = self._read(X, reset=False, mask=mask, weights=weights)
            return like_input(self._transform(matrix), X)

    def inverse_transform(self, X: Any) -> Any:
        """Return ``X @ components_``, the data that the coefficients X stand for.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_components)
            Coefficients, as `transform` returns them.

        Returns
        -------
        X_original : ndarray, DataFrame or Tensor of shape (n_samples, n_features)
            Reconstructed data, in the units of the data (pixels: 0 to 1). No gradient. For a pandas
            DataFrame it is one, with the index of X and the `feature_names_in_`.

        Examples
        --------
        What is missing in X is filled in by what the rest of its row says:

        >>> import numpy as np
        >>> from nnmf_cuda import NNMF
        >>> X = np.outer([1.0, 2, 3, 4], [2.0, 1, 3])
        >>> X[1, 2] = np.nan
        >>> model = NNMF(1, missing_values=np.nan, tol=0, random_state=0)
        >>> filled = np.where(np.isnan(X), model.inverse_transform(model.fit_transform(X)), X)
        >>> print(filled[1, 2].round(6))
        6.0
        """
        check_is_fitted(self)
        frame = X if hasattr(X, "iloc") else None
        if not isinstance(X, Tensor):
            X = check_array(X, dtype=[np.float64, np.float32])
        if X.ndim != 2 or X.shape[1] != self.n_components_:
            raise ValueError(
                f"X has shape {tuple(X.shape)}, but inverse_transform needs coefficients of shape "
                f"(n_samples, {self.n_components_})"
            )
        if not isinstance(X, Tensor):
            X_original = X @ self.components_.astype(X.dtype, copy=False)
            if frame is None:
                return X_original
            columns = getattr(self, "feature_names_in_", None)
            return type(frame)(X_original, index=frame.index, columns=columns)
        X = X.detach() if X.is_floating_point() else X.double()
        return X @ torch.tensor(self.components_, dtype=X.dtype, device=X.device)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice("transform_solver", self.transform_solver, TRANSFORM_SOLVERS)
        check_integer("transform_max_iter", self.transform_max_iter, low=1)
        if not isinstance(self.warm_start, bool | np.bool_):
            raise TypeError(f"warm_start must be True or False, got {self.warm_start!r}")
        check_choice("precision", self.precision, PRECISIONS)

    def _fit(self, X: Matrix, y: Any, W: Any, H: Any, watch: Watch, *, update_H: bool) -> None:
        """Fit to X from the start W, H, where the user has given one."""
        if not isinstance(update_H, bool | np.bool_):
            raise TypeError(f"update_H must be True or False, got {update_H!r}")
        given, of_rows = {"H": H, "update_H": bool(update_H)}, {"W": W}
        self._check_call(X, given | of_rows, watch)
        SOLVERS[self.solver].check_data(X)
        self._check_precision(X)
        if update_H:
            check_columns(X)
        graph = self._graph_for(X, y)
        origin = self._origin_for(X)
        if not update_H:
            if origin.fixed is not None:
                raise ValueError("update_H=False holds all of H: use fixed_components=None")
            W, H = held_factors(X, self.n_components, W=W, H=H, signed=self._signed)
            origin = replace(origin, init="custom", n_init=1, fixed=H)
        elif self.warm_start and W is None and H is None and hasattr(self, "components_"):
            W, H = self._warm_factors(X)
            origin = replace(origin, init="custom")
            of_rows["W_ of the warm start"] = W
            given["components_ of the warm start"] = H
        if origin.init == "nndsvd" and SOLVERS[self.solver].keeps_zeros:
            warn_user(
                "multiplicative updates cannot leave the zeros of init='nndsvd'; 'nndsvda' and "
                "'nndsvdar' fill them and usually end better",
                UserWarning,
            )
        file, state = None, None
        if watch.checkpoint is not None:
            # A subclass need not have them all among its own.
            parameters = {name: getattr(self, name) for name in NNMF._get_param_names()}
            parameters |= self.get_params(deep=False)
            fit = description_of_fit(X, parameters, given, of_rows=of_rows, graph=graph)
            file = Checkpoint(watch.checkpoint, watch.every, fit, X)
            state = file.read(self.max_iter)
        problem = replace(self._problem(X, origin.n_fixed, graph), precision=self.precision)
        own = own_starts(X, origin.n_init)
        if state is None:
            if update_H:
                W, H = initial_factors(X, self.n_components, origin, W=W, H=H, own=own)
            else:
                W, H = W[None], H[None]
            state = State.of_starts(problem, W, H)
        done, best = state.iterations[-1], state.best
        minimisation = Minimisation(problem, state, solver=self.solver, tol=self.tol)
        del state, W, H, given, of_rows  # starts of this fit need no room to its end
        bar = self._progress("NNMF", "it", total=self.max_iter, initial=done, wanted=X.leads)
        with bar as shown:
            outcome = fit_to_end(
                minimisation,
                best,
                max_iter=self.max_iter,
                callback=watch.callback,
                checkpoint=file,
                progress=shown.update,
            )
        self._keep(best_of_all(X, outcome.run, own), stopped=outcome.stopped)

    def _check_precision(self, X: Matrix) -> None:
        """Raise unless a fit to X can run so."""
        if self.precision == "float32":
            return
        if self.solver not in ("mu", "accelerated-mu") or self.graph is not None:
            what = "a graph" if self.graph is not None else f"solver={self.solver!r}"
            raise ValueError(
                f"precision={self.precision!r} is for solver='mu' and 'accelerated-mu' without a "
                f"graph, got {what}; use precision='float32'"
            )
        beta_loss = ops.beta_loss_to_float(self.beta_loss)
        plain = isinstance(X.own, Dense) and not X.weighted
        check_precision(self.precision, beta_loss, X.factor_dtype, plain=plain)

    def _warm_factors(self, X: Matrix) -> tuple[Tensor, Tensor]:
        """Return the fitted W and components, from which a fit to X goes on."""
        k, n_features = self.components_.shape
        for name, value, expected in (
            ("n_init", self.n_init, 1),
            ("n_components", self.n_components, k),
            ("n_features of X", X.shape[1], n_features),
        ):
            if value not in ("auto", expected):
                raise ValueError(
                    f"warm_start=True goes on from one fit with {k} components of {n_features} "
                    f"features, but {name} is {value}; set it to {expected}, or warm_start=False"
                )
        H = torch.tensor(self.components_, dtype=X.factor_dtype, device=X.device)
        W = getattr(self, "W_", None)
        if W is None or len(W) != X.shape[0]:
            return updated_W(self._problem(X), H, n_iter=self.fresh_restarts_max_iter), H
        return torch.tensor(W), H

    def _keep(self, run: Run, *, stopped: bool) -> None:
        """Store the best run as fitted attributes, or raise if even that one overflowed."""
        if not math.isfinite(run.objective[-1]):
            raise ValueError(
                f"the factorisation overflowed (objective {run.objective[-1]}); scale X to values "
                "around 1, use float64 or another beta_loss"
            )
        self._forget("n_steps_", *MEMORY)
        self.components_ = run.H.cpu().numpy()
        self.W_ = run.W.cpu().numpy()
        self.n_components_ = run.n_components
        self.n_iter_ = run.iterations[-1]
        self.converged_ = run.converged
        self.reconstruction_err_ = run.error
        self.objective_history_ = np.array(run.objective)
        self.objective_iterations_ = np.array(run.iterations)
        if self.tol > 0 and not run.converged and not stopped:
            warn_user(
                # scikit-learn's words first: filters of warnings know them.
                f"Maximum number of iterations {self.max_iter} reached. Increase it to improve "
                f"convergence to tol={self.tol}, or set tol=0 if a fixed number of iterations is "
                "what you want",
                ConvergenceWarning,
            )

    def _transform(self, X: Matrix) -> Tensor:
        # Pixels take the type that the components have.
        dtype = None if X.pixels else X.factor_dtype
        H = shared_tensor(self.components_).to(X.device, dtype)
        solver = self.transform_solver
        if solver != "nnls":
            self._check_zeros(X)
        elif self.alpha_W > 0:
            warn_user(
                f"transform_solver='nnls' leaves alpha_W={self.alpha_W} out, so that these are "
                "less small and sparse than W_; transform_solver='same' minimises what fit does",
                UserWarning,
            )
        problem = self._problem(X.converted(H.dtype))
        return solve_W(problem, H, solver=solver, n_iter=self.transform_max_iter)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = not self._signed
        tags.input_tags.sparse = True
        missing = self.missing_values
        tags.input_tags.allow_nan = missing is not None and math.isnan(missing)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
