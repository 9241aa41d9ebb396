"""How far our factors and objectives are from scikit-learn's, from the same start."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.inputs import low_rank, uniform
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["BETA_LOSSES", "ITERATIONS", "SHAPES", "TOLERANCES", "run_equality_benchmarks"]

logger = logging.getLogger(__name__)

_SEED = 0
BETA_LOSSES = (2.0, 1.0, 0.0, 0.5, 1.5, 3.0)
ITERATIONS = (1, 10, 100)
SHAPES = ((31, 129, 5), (300, 1021, 15))
"""Samples, features and components; none fills whole tiles."""
_DTYPES = ("float64", "float32", "uint8")
TOLERANCES = {
    "float64": {"W": 1e-12, "H": 1e-12, "objective": 1e-12},
    "float32": {"W": 2e-5, "H": 2e-5, "objective": 2e-6},
}
"""By type of the factors: the largest difference allowed after any number of `ITERATIONS`."""


def run_equality_benchmarks(
    *,
    device: str | torch.device = "cpu",
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Compare multiplicative updates with those of scikit-learn in float64.

    Both start from the same factors, which float32 can hold, and run 1, 10 and 100 iterations.
    scikit-learn's public function does so in float64 on the CPU, ours in float64, float32, and in
    float32 with uint8 X, on the device.

    Parameters
    ----------
    device : str or torch.device, default="cpu"
        Where ours run.
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks` with ``op`` "nnmf_mu" and ``differences``: by number
        of iterations those of "W" and "H" (the largest, as a share of scikit-learn's largest
        entry) and of the "objective" (a share of scikit-learn's). ``status`` is "failed" where one
        is above `TOLERANCES`.
    """
    from tqdm import tqdm

    from nnmf_cuda import show_config
    from nnmf_cuda.pipeline.environment import resolve_device

    where = resolve_device(str(device))
    recorder = Recorder("equality", device=where, smoke=smoke, json_path=json_path)
    work = [
        (shape, dtype, beta_loss)
        for shape in (SHAPES[:1] if smoke else SHAPES)
        for beta_loss in BETA_LOSSES
        for dtype in _DTYPES
        if dtype != "uint8" or beta_loss > 0  # pixels may be zero, and that has no such divergence
    ]
    for (n, f, k), dtype, beta_loss in tqdm(work, desc="bench", disable=None if progress else True):
        recorder.add(
            op="nnmf_mu",
            size="smoke" if smoke else f"{n} x {f}",
            impl="ours",
            served_by=str(show_config()["ops"]["nnmf_mu"][where.type]),
            shape={"n_samples": n, "n_features": f, "n_components": k},
            dtype=dtype,
            options={"beta_loss": beta_loss},
            **_compared((n, f, k), dtype, beta_loss, where),
        )
    return recorder.records


def _compared(
    shape: tuple[int, int, int], dtype: str, beta_loss: float, device: torch.device
) -> Record:
    factors = "float32" if dtype == "uint8" else dtype
    found: Record = {**MEASURED, "differences": None}
    try:
        differences = _differences(shape, dtype, beta_loss, device)
    except Exception as failure:  # one that is broken must not hide the others
        logger.exception("equality with scikit-learn, beta_loss=%s, %s", beta_loss, dtype)
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return {**found, "status": "failed", "reason": reason}
    found["differences"] = differences
    found["max_err"] = max(max(values.values()) for values in differences.values())
    beyond = [
        f"{name} after {n_iter} iterations: {value:.2g} above {TOLERANCES[factors][name]:.2g}"
        for n_iter, values in differences.items()
        for name, value in values.items()
        if not value <= TOLERANCES[factors][name]
    ]
    return {**found, "status": "failed" if beyond else "ok", "reason": "; ".join(beyond) or None}


def _differences(
    shape: tuple[int, int, int], dtype: str, beta_loss: float, device: torch.device
) -> dict[str, dict[str, float]]:
    X, W, H = _start(shape, dtype)
    floats = torch.float64 if dtype == "float64" else torch.float32
    ours = (X.to(device), W.to(device, floats), H.to(device, floats))
    pixels = X.double() / 255 if X.dtype == torch.uint8 else X.double()
    return {
        str(n_iter): _difference(
            _ours(*ours, beta_loss, n_iter),
            _scikit_learns(pixels.numpy(), W.numpy(), H.numpy(), beta_loss, n_iter),
        )
        for n_iter in ITERATIONS
    }


def _start(shape: tuple[int, int, int], dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw X in its type, and W and H in float64, of numbers that float32 holds."""
    n, f, k = shape
    cpu = torch.device("cpu")
    single = "uint8" if dtype == "uint8" else "float32"
    X = low_rank(n, f, k, dtype=single, seed=_SEED, device=cpu)
    W, H = (
        uniform(*size, dtype="float32", seed=_SEED + i, device=cpu).double()
        for i, size in enumerate(((n, k), (k, f)), start=1)
    )
    return X.double() if dtype == "float64" else X, W, H


Fit = tuple[NDArray[Any], NDArray[Any], float]


def _ours(X: Tensor, W: Tensor, H: Tensor, beta_loss: float, n_iter: int) -> Fit:
    from nnmf_cuda import ops

    new_W, new_H, objective = ops.nnmf_mu(
        X, W, H, beta_loss=beta_loss, n_iter=n_iter, compute_divergence=True
    )
    return new_W.cpu().numpy(), new_H.cpu().numpy(), float(objective)


def _scikit_learns(
    X: NDArray[Any], W: NDArray[Any], H: NDArray[Any], beta_loss: float, n_iter: int
) -> Fit:
    from sklearn.decomposition import non_negative_factorization
    from sklearn.decomposition._nmf import _beta_divergence

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it does not converge in a given number of iterations
        new_W, new_H, _ = non_negative_factorization(
            X,
            W.copy(),
            H.copy(),
            n_components=len(H),
            init="custom",
            solver="mu",
            beta_loss=beta_loss,
            tol=0,
            max_iter=n_iter,
        )
    return new_W, new_H, float(_beta_divergence(X, new_W, new_H, beta_loss))


def _difference(ours: Fit, theirs: Fit) -> dict[str, float]:
    found = {
        name: float(np.abs(mine - his).max() / np.abs(his).max())
        for name, mine, his in zip("WH", ours[:2], theirs[:2], strict=True)
    }
    return {**found, "objective": abs(ours[2] - theirs[2]) / abs(theirs[2])}
