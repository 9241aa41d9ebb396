"""Counts like those of 20 newsgroups: sparse updates against scikit-learn's, and their memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.measure import elapsed_or_own, quartiles
from bench.memory import peak_beside
from nnmf_cuda import ops
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["newsgroups_like", "run_sparse_benchmarks"]

_SEED = 0
_SHAPE = {"n_samples": 11314, "n_features": 10000, "n_components": 20}
_SMOKE_SHAPE = {"n_samples": 60, "n_features": 90, "n_components": 3}
_ROOT = Path(__file__).parents[1]
_TIMEOUT = 600  # seconds
_METHODS = ("fit", "fit_transform")
"""Of the estimator, whose memory is measured."""
_MOST = 4
"""A solver may take this many times scikit-learn's iterations."""
Factors = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class _Loss:
    """A divergence, scikit-learn's solver for it, and our ops and solvers."""

    name: str
    sklearn_solver: str
    goal_iterations: int
    ops: tuple[str, ...]
    solvers: tuple[str, ...]

    @property
    def work(self) -> tuple[tuple[str, str, str], ...]:
        """What memory is measured of: name in records, "op" and which or a method and a solver."""
        fits = tuple(
            (f"ours {solver}", method, solver) for method in _METHODS for solver in self.solvers
        )
        return *((f"ours {op}", "op", op) for op in self.ops), *fits


_KL_SOLVERS = ("mu", "accelerated-mu", "cd")
_LOSSES = (
    _Loss("kullback-leibler", "mu", 200, ("nnmf_mu", "nnmf_cd"), _KL_SOLVERS),
    _Loss("frobenius", "cd", 50, ("nnmf_hals",), ("hals",)),
)


def newsgroups_like(
    n_samples: int, n_features: int, n_components: int, *, seed: int = 0
) -> scipy.sparse.csr_matrix:
    """Draw counts of words in documents, float32: 0.7 % filled at the size of 20 newsgroups.

    Words are as frequent as Zipf's law has it, in an order that says nothing; each of
    `n_components` topics prefers some of them, a document is about a few topics, and its length is
    log-normal.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / (10 + rng.permutation(n_features)) ** 1.05
    topics = frequency * rng.gamma(0.3, size=(n_components, n_features))
    cumulated = np.cumsum(topics, axis=1)
    cumulated /= cumulated[:, -1:]
    shares = rng.dirichlet(np.full(n_components, 0.1), n_samples)
    lengths = np.maximum(1, rng.lognormal(np.log(0.0056 * n_features), 0.9, n_samples)).astype(int)
    per_topic = np.stack([rng.multinomial(m, p) for m, p in zip(lengths, shares, strict=True)])
    documents, words = [], []
    for topic, of_topic in enumerate(per_topic.T):
        documents.append(np.repeat(np.arange(n_samples), of_topic))
        words.append(np.searchsorted(cumulated[topic], rng.random(of_topic.sum())))
    rows, columns = np.concatenate(documents), np.concatenate(words).clip(0, n_features - 1)
    ones = np.ones(len(rows), np.float32)
    X = scipy.sparse.coo_matrix((ones, (rows, columns)), shape=(n_samples, n_features)).tocsr()
    X.sum_duplicates()
    return X


def start_for(X: scipy.sparse.csr_matrix, n_components: int) -> Factors:
    """Return W and H, float32, of the size that random starts have."""
    rng = np.random.default_rng(_SEED + 1)
    scale = np.sqrt(X.mean() / n_components)
    W, H = (
        (scale * np.abs(rng.standard_normal(shape))).astype(np.float32)
        for shape in ((X.shape[0], n_components), (n_components, X.shape[1]))
    )
    return W, H


def csr_tensor(X: scipy.sparse.csr_matrix) -> Tensor:
    """Return X as torch has it, sharing its memory."""
    crow, col, values = (torch.from_numpy(part) for part in (X.indptr, X.indices, X.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(crow, col, values, size=X.shape, check_invariants=False)


def run_sparse_benchmarks(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Measure sparse updates on the CPU: iterations, time to scikit-learn's objective, memory.

    Everybody has the same float32 counts (`newsgroups_like`) and the same start. ``op`` "sparse
    iteration" is the time of one of ten iterations without a test of convergence; "sparse fit" the
    time of scikit-learn's 200 iterations of ``mu`` (Kullback-Leibler) or 50 of ``cd`` (Frobenius),
    and of our fits that arrive at the objective of those, evaluated in float64. "sparse memory" is
    the peak during an op of ten iterations beside X and the start, "sparse memory of fit" and "of
    fit_transform" that of the estimator beside X and one pair of factors; ``x_bytes`` is the size
    of those two. What
    ``nnmf_cd`` makes of X^T in each call is part of both its iteration and its memory.

    Parameters
    ----------
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks`, with ``iterations``, ``goal``, ``objective`` and
        ``x_bytes``.
    """
    from tqdm import tqdm

    recorder = Recorder("sparse", device=torch.device("cpu"), smoke=smoke, json_path=json_path)
    shape = _SMOKE_SHAPE if smoke else _SHAPE
    X = newsgroups_like(*shape.values(), seed=_SEED)
    start = start_for(X, shape["n_components"])
    with tqdm(desc="bench", disable=None if progress else True) as bar:
        for loss in _LOSSES:
            for op, impl, found in _measured(loss, X, start, smoke=smoke):
                recorder.add(
                    op=op,
                    size="smoke" if smoke else "20 newsgroups",
                    impl=impl,
                    served_by="library" if impl.startswith("scikit-learn") else "kernel",
                    shape={**shape, "n_nonzeros": int(X.nnz)},
                    dtype="float32",
                    options={"beta_loss": loss.name},
                    **{
                        **MEASURED,
                        **dict.fromkeys(("iterations", "goal", "objective", "x_bytes")),
                        "status": "ok",
                        **found,
                    },
                )
                bar.update()
    return recorder.records


def _measured(
    loss: _Loss, X: scipy.sparse.csr_matrix, start: Factors, *, smoke: bool
) -> list[tuple[str, str, Record]]:
    """Return op, implementation and figures of all that is measured with a divergence."""
    theirs = f"scikit-learn {loss.sklearn_solver}"
    n_iter = 10
    goal_iterations = 10 if smoke else loss.goal_iterations
    W, H, seconds = _sklearn(loss, X, start, n_iter)
    found = [("sparse iteration", theirs, quartiles([1e3 * seconds / n_iter]))]
    for op in loss.ops:
        call = _op(op, csr_tensor(X), start, n_iter)
        call()
        times = [1e3 * elapsed_or_own(call) / n_iter for _ in range(3 if smoke else 9)]
        found.append(("sparse iteration", f"ours {op}", quartiles(times)))
    W, H, seconds = _sklearn(loss, X, start, goal_iterations)
    goal = _objective(loss, X, W, H)
    found.append(
        (
            "sparse fit",
            theirs,
            {**quartiles([1e3 * seconds]), "iterations": goal_iterations, "goal": goal,
             "objective": goal},
        )
    )  # fmt: skip
    for solver in loss.solvers:
        reached = _time_to(goal, loss, solver, X, start, goal_iterations)
        found.append(("sparse fit", f"ours {solver}", reached))
    for impl, method, solver in loss.work[: len(loss.ops) + 1 if smoke else None]:
        op = "sparse memory" if method == "op" else f"sparse memory of {method}"
        found.append((op, impl, _memory(loss, method, solver, smoke=smoke)))
    return found


def _op(name: str, X: Tensor, start: Factors, n_iter: int) -> Callable[[], Any]:
    W, H = (torch.from_numpy(factor) for factor in start)
    solve = getattr(ops, name)
    return lambda: solve(X, W, H, n_iter=n_iter)


def _sklearn(
    loss: _Loss, X: scipy.sparse.csr_matrix, start: Factors, n_iter: int
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Return W, H and the seconds of scikit-learn's iterations."""
    from sklearn.decomposition import NMF

    model = NMF(
        len(start[1]),
        init="custom",
        solver=loss.sklearn_solver,
        beta_loss=loss.name,
        max_iter=n_iter,
        tol=0,
    )
    W, H = (factor.copy() for factor in start)
    found: list[NDArray[Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = elapsed_or_own(lambda: found.append(model.fit_transform(X, W=W, H=H)))
    return found[0], model.components_, seconds


def _objective(loss: _Loss, X: scipy.sparse.csr_matrix, W: Any, H: Any) -> float:
    """Return the divergence in float64, from the reference."""
    from nnmf_cuda import reference

    parts = (torch.from_numpy(part) for part in (X.indptr, X.indices, X.data.astype(np.float64)))
    factors = (torch.as_tensor(factor).double()[None] for factor in (W, H))
    beta_loss = ops.beta_loss_to_float(loss.name)
    return float(reference.nnmf_sparse_divergence(*parts, *factors, beta_loss=beta_loss))


def _time_to(
    goal: float,
    loss: _Loss,
    solver: str,
    X: scipy.sparse.csr_matrix,
    start: Factors,
    n_iter: int,
) -> Record:
    """Return time and objective of the shortest fit, in tens of iterations, that arrives."""
    from nnmf_cuda import NNMF

    def fit(max_iter: int) -> NNMF:
        model = NNMF(
            len(start[1]),
            beta_loss=loss.name,
            solver=solver,
            init="custom",
            max_iter=max_iter,
            tol=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(X, W=start[0], H=start[1])

    model = fit(_MOST * n_iter)
    # What the history has in the precision of the fit has to hold in float64.
    arrived = np.flatnonzero(model.objective_history_ <= goal * (1 - 1e-6))
    if not len(arrived):
        reason = f"not at the goal after {_MOST * n_iter} iterations"
        return {"status": "failed", "reason": reason, "goal": goal}
    iterations = int(model.objective_iterations_[arrived[0]])
    times = [1e3 * elapsed_or_own(lambda: fit(iterations)) for _ in range(3)]
    model = fit(iterations)
    objective = _objective(loss, X, model.W_, model.components_)
    if not objective <= goal:
        raise RuntimeError(f"objective {objective} of the timed fit is above the goal {goal}")
    return {**quartiles(times), "iterations": iterations, "goal": goal, "objective": objective}


def _memory(loss: _Loss, method: str, solver: str, *, smoke: bool) -> Record:
    """Return the peak of an op, or of a method of the estimator, in a process of its own."""
    if not Path("/proc/self/status").exists():
        return {"status": "skipped", "reason": "needs /proc/self/status: Linux only"}
    arguments = [loss.name, method, solver, str(torch.get_num_threads())]
    command = [sys.executable, "-m", "bench.sparse", *arguments, *(["--smoke"] if smoke else [])]
    done = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"status": "failed", "reason": last}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _fit(loss: _Loss, method: str, solver: str, X: scipy.sparse.csr_matrix, k: int) -> None:
    from nnmf_cuda import NNMF

    # Past the convergence tests of iterations 10 and 20.
    options: dict[str, Any] = {"beta_loss": loss.name, "max_iter": 22, "tol": 0, "random_state": 0}
    getattr(NNMF(k, solver=solver, **options), method)(X)


def main() -> None:
    """Measure one call and print it as a line of JSON: what `_memory` starts."""
    parser = argparse.ArgumentParser()
    for name in ("loss", "method", "solver"):
        parser.add_argument(name)
    parser.add_argument("threads", type=int)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    loss = next(loss for loss in _LOSSES if loss.name == given.loss)
    shape = _SMOKE_SHAPE if given.smoke else _SHAPE
    k = shape["n_components"]

    def measured(X: scipy.sparse.csr_matrix) -> dict[str, int]:
        start = start_for(X, k)
        held = sum(part.nbytes for part in (X.data, X.indices, X.indptr, *start))
        if given.method == "op":
            return {
                "peak_bytes": peak_beside(_op(given.solver, csr_tensor(X), start, 10)),
                "x_bytes": held,
            }
        of_start = sum(factor.nbytes for factor in start)
        del start
        peak = peak_beside(lambda: _fit(loss, given.method, given.solver, X, k))
        return {"peak_bytes": max(0, peak - of_start), "x_bytes": held}

    measured(newsgroups_like(*_SMOKE_SHAPE.values()))  # loads the libraries
    print(json.dumps(measured(newsgroups_like(*shape.values(), seed=_SEED))))


if __name__ == "__main__":
    main()
