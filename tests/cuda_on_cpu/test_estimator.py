"""Fits of NNMF whose every iteration the CUDA kernels run: units of X, and the rule that stops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nnmf_cuda import NNMF, ops
from tests.cuda_on_cpu.harness import Builder, run_kernels

SOLVERS_AND_LOSSES = [
    *(("mu", beta_loss) for beta_loss in (2, 1, 0, -0.5, 0.5, 1.5, 3)),
    ("accelerated-mu", 1),
    ("accelerated-mu", 1.5),
    ("hals", 2),
]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnmf.cpp")


@pytest.fixture
def n_calls(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the kernels serve the ops of a fit; count their calls."""
    calls: list[int] = []

    def run(X: Tensor, W: Tensor, H: Tensor, **options: float) -> tuple[Tensor, Tensor, Tensor]:
        active = torch.ones(len(W), dtype=torch.uint8)
        tensors = {"X": X, "W": W, "H": H, "active": active}
        given = {name: 0.0 for name in ("l1_reg_W", "l1_reg_H", "l2_reg_W", "l2_reg_H", "n_inner")}
        given |= {"beta_loss": 2.0, "floor": ops.EPSILON, "n_fixed": 0, "update_H": 1.0}
        options = {**given, **options, "multiprocessors": 4}
        options.pop("compute_divergence", None)
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        got = run_kernels(kernels, "nnmf", tensors, options, seeds=(0,))
        calls.append(1)
        return got["W"], got["H"], got["divergence"]

    def divergence(X: Tensor, W: Tensor, H: Tensor, **options: float) -> Tensor:
        return run(X, W, H, n_iter=0, **options)[2]

    monkeypatch.setattr(ops, "nnmf_mu", run)
    monkeypatch.setattr(ops, "nnmf_hals", run)
    monkeypatch.setattr(ops, "nnmf_divergence", divergence)
    return calls


def matrix(dtype: type) -> np.ndarray:
    rng = np.random.default_rng(2)
    X = rng.gamma(0.7, size=(17, 3)) @ rng.gamma(0.7, size=(3, 14))
    X = X * rng.gamma(5, 0.2, size=X.shape) + 0.01
    return (X / X.mean()).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVERS_AND_LOSSES)
def test_errors_do_not_depend_on_units(n_calls, solver, beta_loss, dtype):
    X = matrix(dtype)
    options = {"solver": solver, "beta_loss": beta_loss, "random_state": 0, "tol": 1e-3}
    options["max_iter"] = 20 if solver == "accelerated-mu" else 100
    errors = []
    for c in (1e-5, 1.0, 1e5):
        model = NNMF(3, **options).fit((c * X).astype(dtype))
        errors.append(model.reconstruction_err_ / c ** (beta_loss / 2))
    assert len(n_calls) >= 3 * model.n_iter_ / 10
    assert errors == pytest.approx([errors[1]] * 3, rel=0.01)


@pytest.mark.parametrize(("solver", "beta_loss"), [("mu", 2), ("mu", 1), ("mu", 0), ("hals", 2)])
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
def test_converged_is_within_a_hundredth_of_the_end(n_calls, solver, beta_loss, l1_ratio):
    options = {"solver": solver, "beta_loss": beta_loss, "random_state": 0, "max_iter": 300}
    options |= {"alpha_W": 0.3, "l1_ratio": l1_ratio}
    X = matrix(np.float64)
    model = NNMF(3, tol=1e-5, **options).fit(X)
    end = NNMF(3, tol=0, **options).fit(X).objective_history_[-1]
    assert model.converged_
    assert model.objective_history_[-1] <= 1.01 * end
    assert len(n_calls) >= (model.n_iter_ + 300) / 10
