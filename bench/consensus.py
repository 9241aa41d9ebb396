"""How long a consensus NMF of counts takes, beside the same steps on scikit-learn."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from bench.plain_consensus import (
    Plain,
    matched_correlation,
    plain_consensus,
    planted_counts,
    runs_of_scikit_learn,
)
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder
from nnmf_cuda.ops import beta_loss_to_float

__all__ = ["LEAST_CORRELATION", "RACES", "Race", "run_consensus_benchmarks"]

logger = logging.getLogger(__name__)

LEAST_CORRELATION = 0.99
"""Of each of our spectra with scikit-learn's; one below is recorded as failed."""
_SEED = 0


@dataclass(frozen=True)
class Race:
    """A divergence, its solvers, and the size of the counts."""

    beta_loss: str
    sklearn_solver: str
    solver: str
    n_cells: int
    n_genes: int
    n_programs: int
    n_init: int
    depth: float = 0.5  # counts of a gene in a cell, in the mean
    tol: float = 1e-4  # cNMF's

    def tiny(self) -> Race:
        """Return the same on few cells, to the minimum, where all solvers agree."""
        few = replace(self, n_cells=120, n_genes=80, n_programs=3)
        return replace(few, n_init=4, depth=2.0, tol=1e-6)


RACES = (
    Race("frobenius", "cd", "hals", 3000, 2000, 10, 20),
    Race("kullback-leibler", "mu", "accelerated-mu", 800, 600, 6, 5),
)


def run_consensus_benchmarks(
    *,
    device: str | torch.device = "cpu",
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Time `ConsensusNNMF` and the same steps on scikit-learn, on planted counts.

    Both factorise from random starts to a `tol` of 1e-4, and cluster, take medians and refit.
    scikit-learn's runs are those of cNMF ("cd" for the Frobenius norm, "mu" for Kullback-Leibler),
    on the sparse matrix and on the dense one. The time is that of the process's own computing (one
    run each), so that others on the machine count less.

    Parameters
    ----------
    device : str or torch.device, default="cpu"
        Where ours run; scikit-learn runs on the CPU.
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks` with ``op`` "consensus" and ``correlation``, the least
        of spectra matched with those of the plain steps on the sparse matrix. ``status`` is
        "failed" where it is below `LEAST_CORRELATION`.
    """
    from tqdm import tqdm

    from nnmf_cuda.pipeline.environment import resolve_device

    where = resolve_device(str(device))
    recorder = Recorder("consensus", device=where, smoke=smoke, json_path=json_path)
    with tqdm(total=5 * len(RACES), desc="bench", disable=None if progress else True) as bar:
        for race in [one.tiny() if smoke else one for one in RACES]:
            X = planted_counts(
                np.random.default_rng(_SEED),
                n_cells=race.n_cells,
                n_genes=race.n_genes,
                n_programs=race.n_programs,
                depth=race.depth,
            )
            shape = {
                "n_samples": X.shape[0],
                "n_features": X.shape[1],
                "n_components": race.n_programs,
            }
            filled = float((X > 0).mean())
            beta_loss = beta_loss_to_float(race.beta_loss)
            for impl, dtype, record in _measured(X, race, where):
                recorder.add(
                    op="consensus",
                    size="smoke" if smoke else "planted",
                    impl=impl,
                    served_by="library" if impl.startswith("scikit-learn") else "estimator",
                    shape=shape,
                    dtype=dtype,
                    options={"beta_loss": beta_loss, "n_init": race.n_init, "filled": filled},
                    **record,
                )
                bar.update()
    return recorder.records


def _measured(
    X: np.ndarray[Any, Any], race: Race, device: torch.device
) -> Iterator[tuple[str, str, Record]]:
    """Give the name, type and record of the plain steps on both, then of ours."""
    sparse = scipy.sparse.csr_matrix(X)

    def plain(data: Any) -> Plain:
        k, beta_loss = race.n_programs, race.beta_loss
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = runs_of_scikit_learn(
                data, k, n_init=race.n_init, beta_loss=beta_loss, tol=race.tol
            )
            return plain_consensus(X, merged, k)

    seconds, goal = _timed(lambda: plain(sparse))
    name = f"scikit-learn {race.sklearn_solver}"
    yield f"{name}, sparse", "float64", _record(seconds, goal.spectra, goal.spectra)
    seconds, dense = _timed(lambda: plain(X))
    yield f"{name}, dense", "float64", _record(seconds, dense.spectra, goal.spectra)
    for kind, data in (("sparse", sparse), ("dense", X), ("dense", X.astype(np.float32))):
        try:
            record = _ours(data, race, device, goal)
        except Exception as failure:  # one that is broken must not hide the others
            logger.exception("consensus of %s %s", kind, data.dtype)
            reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
            record = {**MEASURED, "correlation": None, "status": "failed", "reason": reason}
        yield f"ours {race.solver}, {kind}", str(data.dtype), record


def _ours(data: Any, race: Race, device: torch.device, goal: Plain) -> Record:
    from nnmf_cuda import ConsensusNNMF

    model = ConsensusNNMF(
        race.n_programs,
        n_init=race.n_init,
        beta_loss=race.beta_loss,
        solver=race.solver,
        tol=race.tol,
        random_state=_SEED,
        device=device,
    )
    seconds, _ = _timed(lambda: model.fit(data))
    return _record(seconds, model.components_, goal.spectra)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    result = run()
    return time.process_time() - begin, result


def _record(seconds: float, spectra: np.ndarray[Any, Any], goal: np.ndarray[Any, Any]) -> Record:
    correlation = float(matched_correlation(goal, spectra.astype(np.float64)).min())
    good = correlation >= LEAST_CORRELATION
    times = dict.fromkeys(("median_ms", "p25", "p75"), 1e3 * seconds)
    return {
        **MEASURED,
        **times,
        "n": 1,
        "timer": "process_time, one run",
        "correlation": correlation,
        "max_err": 1 - correlation,
        "tolerance": 1 - LEAST_CORRELATION,
        "status": "ok" if good else "failed",
        "reason": None if good else f"a spectrum agrees to {correlation:.3f} only",
    }
