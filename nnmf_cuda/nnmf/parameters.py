"""An NNMF's parameters, X as they have it read, and the problem that both pose."""

from __future__ import annotations

from dataclasses import asdict
from inspect import Parameter, signature
from typing import Any, Literal

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor
from tqdm import tqdm

from nnmf_cuda import ops
from nnmf_cuda.nnmf.graph import GRAPHS, NEIGHBORS, Graph, neighbor_graph
from nnmf_cuda.nnmf.inputs import (
    as_matrix,
    check_choice,
    check_integer,
    check_matrix,
    check_real,
    resolve_device,
)
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.problem import Objective, Penalty, Problem
from nnmf_cuda.nnmf.saving import SavingMixin
from nnmf_cuda.nnmf.solvers import SIGNED, SOLVERS
from nnmf_cuda.nnmf.starts import INITS, Origin, fixed_rows
from nnmf_cuda.nnmf.units import UNKNOWN, Units, warn_of_other_units, warn_of_range
from nnmf_cuda.nnmf.weighted_matrix import Told, check_missing_values


class ParametersMixin(SavingMixin):
    """What the parts of `NNMF` and `ConsensusNNMF` share; these document and set the parameters."""

    n_components: int | Literal["auto"]
    beta_loss: float | str
    solver: str
    init: str
    max_iter: int
    tol: float
    random_state: Any
    alpha_W: float
    alpha_H: float | Literal["same"]
    l1_ratio: float
    n_init: int
    fixed_components: Any
    graph: Any
    alpha_graph: float
    missing_values: float | None
    device: str | torch.device | None
    verbose: int

    _units: dict[str, Any]  # of the X that was fitted: `Units`, in words that a file can hold

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickle, with the defaults of parameters that are younger than it."""
        super().__setstate__(state)
        for name, parameter in signature(type(self)).parameters.items():
            if parameter.default is not Parameter.empty and name not in vars(self):
                setattr(self, name, parameter.default)

    def _check_parameters(self) -> None:
        """Raise unless every parameter that does not depend on X is allowed."""
        if self.n_components != "auto":
            check_integer("n_components", self.n_components, low=1)
        check_choice("solver", self.solver, tuple(SOLVERS))
        SOLVERS[self.solver].check(ops.beta_loss_to_float(self.beta_loss))
        check_choice("init", self.init, INITS)
        for name in ("max_iter", "n_init"):
            check_integer(name, getattr(self, name), low=1)
        check_missing_values(self.missing_values)
        check_real("tol", self.tol, low=0)
        check_real("alpha_graph", self.alpha_graph, low=0)
        check_real("alpha_W", self.alpha_W, low=0)
        if self.alpha_H != "same":
            check_real("alpha_H", self.alpha_H, low=0)
        check_real("l1_ratio", self.l1_ratio, low=0, high=1)
        if self._signed:
            self._check_signed()
        if self.graph is not None:
            self._check_graph()

    def _check_signed(self) -> None:
        """Raise for what Semi-NMF has no answer to."""
        if self.init not in ("random", "custom"):
            raise ValueError(
                f"init={self.init!r} needs X >= 0, which solver={self.solver!r} does not; use "
                "init='random', or init='custom' with a W and H of your own"
            )
        if self._alpha_H * self.l1_ratio > 0:
            raise ValueError(
                f"solver={self.solver!r} finds H by least squares, which have no L1 penalty: "
                f"alpha_H={self.alpha_H!r} with l1_ratio={self.l1_ratio} is one; use alpha_H=0 "
                "(alpha_W stays), or l1_ratio=0"
            )

    def _check_graph(self) -> None:
        """Raise for what knows no graph."""
        if isinstance(self.graph, str):
            check_choice("graph", self.graph, GRAPHS)
        if not SOLVERS[self.solver].takes_graph:
            raise ValueError(
                f"solver={self.solver!r} does not lower the penalty of a graph; use solver='mu', "
                "'accelerated-mu' or 'semi', or graph=None"
            )
        if ops.beta_loss_to_float(self.beta_loss) not in (1, 2):
            raise ValueError(
                "graph goes with beta_loss='frobenius' (2) and 'kullback-leibler' (1), got "
                f"{self.beta_loss!r}; use one of them, or graph=None"
            )

    def _check_weighted(self) -> None:
        """Raise for what counts all entries of X alike."""
        if not self._signed and self.graph is None:
            return
        what = f"solver={self.solver!r}" if self._signed else "graph"
        raise ValueError(
            f"{what} counts all entries of X alike and knows no missing values, mask or weights; "
            "fill the entries in, or use another solver and graph=None"
        )

    @property
    def _signed(self) -> bool:
        """Whether X and H may have any sign."""
        return self.solver in SIGNED

    @property
    def _alpha_H(self) -> float:
        return self.alpha_W if self.alpha_H == "same" else self.alpha_H

    def _read(self, X: Any, *, reset: bool, mask: Any = None, weights: Any = None) -> Matrix:
        """Return X as a checked matrix where it is computed with, its features and units recorded.

        Without `reset` they are compared with those recorded before. `mask` and `weights` are the
        user's, of entries of X.
        """
        matrix, smallest, largest = self._read_own(X, reset=reset, mask=mask, weights=weights)
        self._note_units(matrix, smallest, largest, reset=reset)
        return matrix

    def _read_own(
        self, X: Any, *, reset: bool, mask: Any, weights: Any
    ) -> tuple[Matrix, float, float]:
        """Return X as `_read` does, its features recorded, with its smallest and largest entry."""
        told = Told(mask, weights, self.missing_values)
        device, owner = resolve_device(self.device, X), type(self).__name__
        check_matrix(X, owner)
        if isinstance(X, Tensor):
            self._note_features(X.shape[1], reset=reset)
        else:
            X = validate_data(
                self,
                X,
                reset=reset,
                dtype="numeric",
                ensure_all_finite=False,
                accept_sparse=("csr", "csc"),
            )
        matrix, smallest, largest = as_matrix(X, device, owner, told, signed=self._signed)
        if matrix.weighted:
            self._check_weighted()
        return matrix, smallest, largest

    def _note_features(self, n_features: int, *, reset: bool) -> None:
        """Keep scikit-learn's record of the features, or compare, without a look at the data."""
        stand_in = np.broadcast_to(np.float32(0), (1, n_features))
        validate_data(self, stand_in, reset=reset, skip_check_array=True)

    def _note_units(self, matrix: Matrix, smallest: float, largest: float, *, reset: bool) -> None:
        """Record the units of X, or compare them with those recorded."""
        if reset:
            mean = matrix.mean_power(2).sqrt().item() if self._signed else matrix.mean()
            self._units = asdict(Units(matrix.pixels, largest, mean, smallest))
        else:
            warn_of_other_units(self._fitted_units, pixels=matrix.pixels, largest=largest)

    @property
    def _fitted_units(self) -> Units:
        """The units of X as recorded, those of scikit-learn's floors for components set by hand."""
        known: dict[str, Any] = getattr(self, "_units", None) or vars(UNKNOWN)
        return Units(**known)

    def _read_training(
        self, X: Any, *, reset: bool = True, mask: Any = None, weights: Any = None
    ) -> Matrix:
        """Check the parameters and return X, in which the divergence must be finite."""
        self._check_parameters()
        matrix = self._read(X, reset=reset, mask=mask, weights=weights)
        self._check_zeros(matrix)
        if reset:
            warn_of_range(
                self._fitted_units,
                beta_loss=ops.beta_loss_to_float(self.beta_loss),
                dtype=matrix.factor_dtype,
            )
        return matrix

    def _check_zeros(self, X: Matrix) -> None:
        if ops.beta_loss_to_float(self.beta_loss) <= 0 and X.extremes()[0] == 0:
            raise ValueError(
                # scikit-learn's words first.
                "When beta_loss <= 0 and X contains zeros, the solver may diverge: with beta_loss="
                f"{self.beta_loss!r} the divergence of a zero is infinite; add a small value to X "
                "or use a beta_loss above 0"
            )

    def _objective(self, n_samples: int, n_features: int, dtype: torch.dtype) -> Objective:
        """Return what is minimised for X of this shape, its penalties scaled as in scikit-learn.

        The floor is that of the units of the fit, so that a row's result is its own.
        """
        penalty = Penalty(
            l1_reg_W=n_features * self.alpha_W * self.l1_ratio,
            l1_reg_H=n_samples * self._alpha_H * self.l1_ratio,
            l2_reg_W=n_features * self.alpha_W * (1 - self.l1_ratio),
            l2_reg_H=n_samples * self._alpha_H * (1 - self.l1_ratio),
        )
        beta_loss = ops.beta_loss_to_float(self.beta_loss)
        squared = SOLVERS[self.solver].squares_floor
        floor = self._fitted_units.floor(dtype, beta_loss, squared=squared)
        return Objective(beta_loss, penalty, floor, self._signed)

    def _problem(self, X: Matrix, n_fixed: int = 0, graph: Graph | None = None) -> Problem:
        return Problem(X, self._objective(*X.whole_shape, X.factor_dtype), n_fixed, graph)

    def _graph_for(self, X: Matrix, y: Any) -> Graph | None:
        """Return the graph over the rows of X, made of them or of the labels y where asked to."""
        if self.graph is None:
            return None
        matrix, n_samples = self.graph, X.whole_shape[0]
        if isinstance(matrix, str) and matrix == "labels":
            if y is None:
                raise ValueError("graph='labels' needs the labels of the samples: fit(X, y)")
            return Graph.of_labels(y, X, self.alpha_graph)
        if isinstance(matrix, str):
            if n_samples == 1:
                raise ValueError(
                    "graph='neighbors' needs neighbours, but X has n_samples=1; use graph=None"
                )
            if X.own is not X:
                raise ValueError(
                    "graph='neighbors' compares all rows of X, of which each rank has some: make "
                    "the graph once with neighbor_graph, and give each rank its rows of it"
                )
            matrix = neighbor_graph(X.tensor, min(NEIGHBORS, n_samples - 1))
        return Graph.of_matrix(matrix, X, self.alpha_graph)

    def _origin_for(self, X: Matrix) -> Origin:
        """Return how fits to X start, and what they hold."""
        fixed = self.fixed_components
        return Origin(
            self.init,
            self.n_init,
            self.random_state,
            self._fitted_units.scale,
            None if fixed is None else fixed_rows(fixed, X, signed=self._signed),
            self._signed,
        )

    def _progress(
        self,
        what: str,
        unit: str,
        items: Any = None,
        *,
        total: int,
        initial: int = 0,
        wanted: bool = True,
    ) -> Any:
        # None shows the bar on a terminal only.
        disable = None if self.verbose and wanted else True
        return tqdm(items, what, total, unit=unit, initial=initial, disable=disable)
