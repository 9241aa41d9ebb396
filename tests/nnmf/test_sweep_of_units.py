"""X and c X have one factorisation in other units: W and H grow by sqrt(c) each, whatever c."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nnmf_cuda import NNMF

SOLVERS_AND_LOSSES = [
    *(("mu", beta_loss) for beta_loss in (2, 1, 0, -0.5, 0.5, 1.5, 3)),
    *(("accelerated-mu", beta_loss) for beta_loss in (1, 1.5, 2)),
    ("hals", 2),
]
UNITS = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 10.0, 100.0, 1e3, 1e4, 1e5]

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore:multiplicative updates cannot leave the zeros:UserWarning",
)


def matrix(kind: str) -> np.ndarray:
    """Draw X of mean 1; only that of counts has zeros."""
    rng = np.random.default_rng(3)
    X = rng.gamma(0.7, size=(40, 4)) @ rng.gamma(0.7, size=(4, 30))
    if kind == "counts":
        X = rng.poisson(X).astype(np.float64)
    else:
        X = X * rng.gamma(5, 0.2, size=X.shape) + 0.01
    if kind == "profiles":  # rows that sum to the same
        X = X / X.sum(1, keepdims=True)
    return X / X.mean()


def check_units(X, beta_loss, units=UNITS, **parameters):
    """Assert that fits of c X end where the fit of X does: divergences grow by c ** beta_loss."""
    options = {"n_components": 4, "beta_loss": beta_loss, "random_state": 0, **parameters}

    def error(c):
        model = NNMF(**options).fit((c * X).astype(X.dtype))
        return model.reconstruction_err_ / c ** (beta_loss / 2)

    errors = {c: error(c) for c in units}
    assert errors == pytest.approx(dict.fromkeys(units, error(1.0)), rel=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["counts", "profiles"])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVERS_AND_LOSSES)
def test_errors_do_not_depend_on_units(solver, beta_loss, kind, dtype):
    if kind == "counts" and beta_loss <= 0:
        pytest.skip("X with zeros has no such divergence")
    check_units(matrix(kind).astype(dtype), beta_loss, solver=solver)


@pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda", "nndsvdar"])
@pytest.mark.parametrize("tol", [1e-6, 0])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVERS_AND_LOSSES)
def test_tolerances_do_not_depend_on_units(solver, beta_loss, tol, init):
    check_units(matrix("noisy"), beta_loss, [1e-5, 1e5], solver=solver, init=init, tol=tol)


@pytest.mark.parametrize("parameters", [{"n_init": 3}, {"n_components": 50}, {"n_components": 1}])
@pytest.mark.parametrize(("solver", "beta_loss"), [("mu", 1), ("accelerated-mu", 1), ("hals", 2)])
def test_units_do_not_matter_for_any_number_of_starts_and_components(solver, beta_loss, parameters):
    check_units(matrix("noisy"), beta_loss, [1e-5, 1e5], solver=solver, **parameters)


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVERS_AND_LOSSES)
def test_penalties_in_the_units_of_X_make_no_difference(solver, beta_loss, l1_ratio):
    # Sums of W grow by sqrt(c), sums of squares by c, and the divergence by c ** beta_loss.
    X, own = matrix("noisy"), 0.5 if l1_ratio else 1.0
    objectives = []
    for c in (1e-5, 1.0, 1e5):
        alpha = 0.02 * c ** (beta_loss - own)
        options = {"solver": solver, "beta_loss": beta_loss, "random_state": 0, "max_iter": 300}
        model = NNMF(4, alpha_W=alpha, alpha_H=alpha / 2, l1_ratio=l1_ratio, **options).fit(c * X)
        objectives.append(model.objective_history_[-1] / c**beta_loss)
    assert objectives == pytest.approx([objectives[1]] * 3, rel=0.01)


@pytest.mark.parametrize("transform_solver", ["nnls", "mu", "same"])
@pytest.mark.parametrize("beta_loss", [2, 1, 0, 0.5, 1.5])
def test_streams_do_not_depend_on_units(beta_loss, transform_solver):
    X = matrix("profiles")
    errors, options = [], {"beta_loss": beta_loss, "transform_solver": transform_solver}
    for c in (1e-5, 1.0, 1e5):
        model = NNMF(4, random_state=0, **options)
        for _, first in itertools.product(range(3), range(0, 40, 8)):
            model.partial_fit(c * X[first : first + 8])
        errors.append(np.linalg.norm(c * X - model.transform(c * X) @ model.components_) / c)
    assert errors == pytest.approx([errors[1]] * 3, rel=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta_loss", [-0.5, 0, 0.5, 1, 1.5, 2])
def test_entries_of_twelve_orders_count_in_all_units(beta_loss, dtype):
    # Where beta_loss is 0 or less, the smallest weigh as much as the largest.
    X = 10 ** np.random.default_rng(5).uniform(-6, 6, size=(30, 20))
    check_units(X.astype(dtype), beta_loss, [1e-5, 1e5], tol=1e-5)
