"""What a mask and weights cost, and what a fit finds where entries are hidden from it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.inputs import doubled, low_rank, uniform
from bench.measure import elapsed_or_own, largest_error, quartiles
from nnmf_cuda import ops
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["HIDDEN", "planted_counts", "run_missing_benchmarks"]

HIDDEN = 0.3
"""Share of the entries that a fit does not see."""
_N_ITER = 10
_ROUNDS = 9
_TOLERANCE = 1e-3
"""Of ten iterations in float32, as a share of the largest entry of W and of H in float64."""
_CPU = torch.device("cpu")
_EXTRA = ("times_as_long", "cosine", "hidden_error", "cosines", "hidden_errors")
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class _Iteration:
    """An op, its divergence, and the size of X."""

    op: str
    beta_loss: float
    n_samples: int
    n_features: int
    n_components: int


_ITERATIONS = (
    _Iteration("nnmf_mu", 1.0, 1500, 4096, 15),
    _Iteration("nnmf_mu", 1.0, 2000, 1000, 20),
    _Iteration("nnmf_mu", 1.0, 1500, 2048, 40),
    _Iteration("nnmf_mu", 1.0, 1500, 4096, 6),
    _Iteration("nnmf_mu", 2.0, 1500, 4096, 15),
    _Iteration("nnmf_mu", 0.5, 1500, 1024, 15),
    _Iteration("nnmf_mu", 0.0, 1500, 1024, 15),
    _Iteration("nnmf_hals", 2.0, 1500, 4096, 15),
)
_TINY = tuple(_Iteration(one.op, one.beta_loss, 40, 30, 3) for one in _ITERATIONS[3:])
_PLANTED = {"n_samples": 400, "n_features": 150, "n_components": 6}
_TINY_PLANTED = {"n_samples": 80, "n_features": 40, "n_components": 3}
_N_DRAWS = 4
_MEAN = 10.0


def run_missing_benchmarks(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Measure on the CPU what a mask and weights cost, and what is found where entries are hidden.

    ``op`` "iteration of ..." is the time of one of ten iterations in float32 on all entries, with
    30 % of them masked, and with a number as weight of each; the three in turns, each held to the
    reference in float64 first. ``op`` "recovery" are fits of planted counts (`planted_counts`, four
    draws, Kullback-Leibler, the best of five starts) that see all entries, leave 30 % out by a
    mask, or have zeros or the means of their columns in the place of those.

    Parameters
    ----------
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks`, with ``times_as_long`` (the median over the rounds of
        the time over that on all entries in the same round), ``cosine`` (of parts matched with the
        planted ones, the mean over parts and draws) and ``hidden_error`` (root mean square error of
        W H against the planted means of the hidden entries, over their standard deviation; the mean
        over draws); ``cosines`` and ``hidden_errors`` are those of each draw.
    """
    from tqdm import tqdm

    recorder = Recorder("missing", device=_CPU, smoke=smoke, json_path=json_path)
    with tqdm(desc="bench", disable=None if progress else True) as bar:
        for problem, found in _measured(smoke=smoke):
            recorder.add(
                **problem,
                **{**MEASURED, **dict.fromkeys(_EXTRA), "status": "ok", **found},
            )
            bar.update()
    return recorder.records


def _measured(*, smoke: bool) -> Iterator[tuple[Record, Record]]:
    """Give the problem and the figures of each record."""
    for iteration in _TINY if smoke else _ITERATIONS:
        axes = ("n_samples", "n_features", "n_components")
        problem = {
            "op": f"iteration of {iteration.op}",
            "size": "smoke" if smoke else "low rank",
            "served_by": "kernel",
            "shape": {name: getattr(iteration, name) for name in axes},
            "dtype": "float32",
            "options": {"beta_loss": iteration.beta_loss, "n_iter": _N_ITER, "hidden": HIDDEN},
        }
        for impl, found in _costs(iteration, rounds=3 if smoke else _ROUNDS).items():
            yield {**problem, "impl": impl}, found
    shape = _TINY_PLANTED if smoke else _PLANTED
    problem = {
        "op": "recovery",
        "size": "smoke" if smoke else "planted counts",
        "served_by": "estimator",
        "shape": shape,
        "dtype": "float64",
        "options": {"beta_loss": 1.0, "mean": _MEAN, "n_draws": _N_DRAWS, "hidden": HIDDEN},
    }
    for impl, found in _recovery(shape).items():
        yield {**problem, "impl": impl}, found


# Cost ---------------------------------------------------------------------------------------------


def _costs(problem: _Iteration, *, rounds: int) -> dict[str, Record]:
    """Return the figures of an iteration on all entries, with a mask and with weights."""
    n, f, k = problem.n_samples, problem.n_features, problem.n_components
    X = low_rank(n, f, k, dtype="float32", seed=0, device=_CPU) + 1e-3
    given = {
        "X": X,
        "W": uniform(n, k, dtype="float32", seed=1, device=_CPU),
        "H": uniform(k, f, dtype="float32", seed=2, device=_CPU),
    }
    drawn = uniform(n, f, dtype="float32", seed=3, device=_CPU)
    weights: dict[str, Tensor | None] = {
        "all entries": None,
        "30 % masked": ops.pack_mask(drawn - 0.01 >= HIDDEN),
        "weights": drawn,
    }
    options = {"beta_loss": problem.beta_loss} if problem.op == "nnmf_mu" else {}
    solve = functools.partial(getattr(ops, problem.op), n_iter=_N_ITER, **options)
    calls = {
        name: functools.partial(solve, **given, weights=numbers)
        for name, numbers in weights.items()
    }
    errors = {}
    for name, numbers in weights.items():
        with ops.reference_path():
            truth = solve(**doubled({**given, "weights": numbers}))
        errors[name] = largest_error(calls[name]()[:2], truth[:2])
    seconds = np.array([[elapsed_or_own(call) for call in calls.values()] for _ in range(rounds)])
    return {
        name: _cost(1e3 * seconds[:, i] / _N_ITER, seconds[:, i] / seconds[:, 0], errors[name])
        for i, name in enumerate(calls)
    }


def _cost(milliseconds: FloatArray, ratios: FloatArray, error: float) -> Record:
    good = error <= _TOLERANCE
    return {
        **quartiles(milliseconds.tolist()),
        "times_as_long": float(np.median(ratios)),
        "max_err": error,
        "tolerance": _TOLERANCE,
        "status": "ok" if good else "failed",
        "reason": None if good else f"error {error:.1e} is above {_TOLERANCE:.0e}",
    }


# Recovery -----------------------------------------------------------------------------------------


def planted_counts(
    n_samples: int, n_features: int, n_components: int, *, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw counts of planted parts, their means, whose mean is 10, and those parts.

    A part is about 60 % of the features, a sample a mixture of all parts; both from heavy-tailed
    Gamma laws. Counts are Poisson around the means.
    """
    rng = np.random.default_rng(seed)
    size = (n_components, n_features)
    parts = rng.gamma(0.5, size=size) * (rng.random(size) < 0.6) + 1e-3
    means = rng.gamma(0.7, size=(n_samples, n_components)) @ parts
    means *= _MEAN / means.mean()
    return rng.poisson(means).astype(np.float64), means, parts


def _recovery(shape: dict[str, int]) -> dict[str, Record]:
    """Return what each way of fitting finds, over all draws."""
    found: dict[str, list[tuple[float, float]]] = {}
    for draw in range(_N_DRAWS):
        X, means, parts = planted_counts(**shape, seed=draw)
        mask = np.random.default_rng(100 + draw).random(X.shape) >= HIDDEN
        column_means = (X * mask).sum(0) / np.maximum(mask.sum(0), 1)
        ways: dict[str, tuple[FloatArray, Any]] = {
            "sees all": (X, None),
            "mask": (X, mask),
            "zeros in place": (np.where(mask, X, 0), None),
            "column means in place": (np.where(mask, X, column_means), None),
        }
        for name, (data, seen) in ways.items():
            W, H = _fit(data, seen, len(parts), seed=draw)
            error = np.sqrt(((W @ H - means)[~mask] ** 2).mean()) / means[~mask].std()
            found.setdefault(name, []).append((_cosine(H, parts), float(error)))
    return {
        name: {
            "cosine": float(np.mean([cosine for cosine, _ in draws])),
            "hidden_error": float(np.mean([error for _, error in draws])),
            "cosines": [cosine for cosine, _ in draws],
            "hidden_errors": [error for _, error in draws],
        }
        for name, draws in found.items()
    }


def _fit(
    X: FloatArray, mask: Any, n_components: int, *, seed: int
) -> tuple[FloatArray, FloatArray]:
    from nnmf_cuda import NNMF

    model = NNMF(
        n_components,
        solver="accelerated-mu",
        max_iter=2000,
        tol=1e-6,
        n_init=5,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit_transform(X, mask=mask), model.components_


def _cosine(found: FloatArray, planted: FloatArray) -> float:
    """Return the mean cosine of parts matched one to one."""
    from scipy.optimize import linear_sum_assignment

    one, other = (H / np.linalg.norm(H, axis=1, keepdims=True) for H in (found, planted))
    table = one @ other.T
    return float(table[linear_sum_assignment(table, maximize=True)].mean())
