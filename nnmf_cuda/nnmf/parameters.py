"""The parameters of an `NNMF`: whether they are allowed, and what they say about the objective."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.inputs import check_choice, check_integer, check_real, extremes
from nnmf_cuda.nnmf.solvers import SOLVERS, Objective, Penalty, check_solver
from nnmf_cuda.nnmf.starts import INITS

TRANSFORM_SOLVERS = ("nnls", "mu")


def check_parameters(estimator: Any) -> None:
    """Raise unless every parameter that does not depend on X is allowed."""
    if estimator.n_components != "auto":
        check_integer("n_components", estimator.n_components, low=1)
    check_choice("solver", estimator.solver, SOLVERS)
    check_solver(estimator.solver, ops.beta_loss_to_float(estimator.beta_loss))
    check_choice("init", estimator.init, INITS)
    check_choice("transform_solver", estimator.transform_solver, TRANSFORM_SOLVERS)
    for name in ("max_iter", "n_init", "transform_max_iter", "fresh_restarts_max_iter"):
        check_integer(name, getattr(estimator, name), low=1)
    check_real("tol", estimator.tol, low=0)
    check_real("alpha_W", estimator.alpha_W, low=0)
    if estimator.alpha_H != "same":
        check_real("alpha_H", estimator.alpha_H, low=0)
    check_real("forget_factor", estimator.forget_factor, low=0, high=1)
    check_real("l1_ratio", estimator.l1_ratio, low=0, high=1)


def check_zeros(estimator: Any, X: Tensor) -> None:
    """Raise where X has zeros from which the divergence is infinite."""
    if ops.beta_loss_to_float(estimator.beta_loss) <= 0 and extremes(X)[0] == 0:
        raise ValueError(
            f"X contains zeros, for which beta_loss={estimator.beta_loss!r} is infinite; add a "
            "small value to X or use a beta_loss above 0"
        )


def objective_of(estimator: Any, n_samples: int, n_features: int) -> Objective:
    """Return what is minimised for X of this shape, its penalties scaled as in scikit-learn."""
    alpha_W, l1_ratio = estimator.alpha_W, estimator.l1_ratio
    alpha_H = alpha_W if estimator.alpha_H == "same" else estimator.alpha_H
    penalty = Penalty(
        l1_reg_W=n_features * alpha_W * l1_ratio,
        l1_reg_H=n_samples * alpha_H * l1_ratio,
        l2_reg_W=n_features * alpha_W * (1 - l1_ratio),
        l2_reg_H=n_samples * alpha_H * (1 - l1_ratio),
    )
    return Objective(ops.beta_loss_to_float(estimator.beta_loss), penalty)
