"""How long our solvers need to the objective at which scikit-learn arrives."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.ceilings import measure_ceilings
from bench.inputs import PAPER
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["RACES", "Race", "first_reaching", "run_convergence_benchmarks"]

logger = logging.getLogger(__name__)

_SEED = 0
_REPEATS = 3
_MOST = 8
"""A solver may take this many times scikit-learn's iterations."""


@dataclass(frozen=True)
class Race:
    """A divergence, scikit-learn's solver and iterations that set the goal, and our solvers."""

    beta_loss: str
    sklearn_solver: str
    n_iter: int
    solvers: tuple[str, ...]


RACES = (
    Race("kullback-leibler", "mu", 200, ("mu", "accelerated-mu")),
    Race("frobenius", "cd", 50, ("mu", "accelerated-mu", "hals")),
)


@dataclass(frozen=True)
class _Start:
    """The data and one start for everybody."""

    X: Tensor  # (n, f) float32, on the CPU
    W: Tensor
    H: Tensor
    source: str


def run_convergence_benchmarks(
    *,
    data: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Time our solvers to the objective of scikit-learn, from the same start on the same data.

    scikit-learn runs once, a fixed number of iterations, and its objective is the goal. For each
    of our solvers the smallest ``max_iter`` that reaches it is searched for; then the fit with
    that ``max_iter`` and ``tol=0`` is timed, as a user would run it, and its objective verified.
    Objectives are evaluated in float64 from the factors.

    Parameters
    ----------
    data : sequence of str, optional
        Images as for ``nnmf-cuda run``, or "phantom" for 1500 synthetic ones. By default the
        phantom, and ``darabi.npz`` of the folder that the environment variable NNMF_CUDA_DATA
        names, where it is set.
    device : str or torch.device, default="cpu"
        Where our solvers run; scikit-learn runs on the CPU.
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks` with ``op`` "fit", and ``iterations``, ``goal`` and
        ``objective``. ``status`` is "failed" for a solver that does not arrive or raises.
    """
    from tqdm import tqdm

    from nnmf_cuda.pipeline.environment import resolve_device

    where = resolve_device(str(device))
    recorder = Recorder("convergence", device=where, smoke=smoke, json_path=json_path)
    starts = [_start(source, smoke=smoke) for source in data or _default_data()]
    ceilings = measure_ceilings(where, smoke=smoke)
    runners = len(starts) * sum(1 + len(race.solvers) for race in RACES)
    with tqdm(total=runners, desc="bench", disable=None if progress else True) as bar:
        for start in starts:
            for race in RACES:
                for impl, found in _run(start, race, smoke=smoke, device=where):
                    _add(recorder, start, race, impl, {**found, "ceilings": ceilings})
                    bar.update()
                    bar.set_postfix_str(f"{race.beta_loss} {impl}")
    return recorder.records


def _run(
    start: _Start, race: Race, *, smoke: bool, device: torch.device
) -> Iterator[tuple[str, Record]]:
    """Give the name and the record of scikit-learn, then of each of our solvers."""
    n_iter = 10 if smoke else race.n_iter
    peer = _sklearn(start, race, n_iter)
    yield f"scikit-learn {race.sklearn_solver}", peer
    for solver in race.solvers:
        found = _ours(start, race, solver, goal=peer["goal"], n_iter=n_iter, device=device)
        yield f"ours {solver}", found


def first_reaching(reaches: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest i in (low, high] with ``reaches(i)``.

    ``reaches(high)`` must hold, and ``reaches`` stay true once it is; ``reaches(low)`` counts as
    false and is not called.
    """
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def _default_data() -> list[str]:
    folder = os.environ.get("NNMF_CUDA_DATA")
    return ["phantom"] if folder is None else ["phantom", str(Path(folder) / "darabi.npz")]


def _start(source: str, *, smoke: bool) -> _Start:
    from nnmf_cuda.data import load_dataset, phantom
    from nnmf_cuda.nnmf.matrix import Dense
    from nnmf_cuda.nnmf.starts import Origin, initial_factors

    if source != "phantom":
        dataset = load_dataset(source)
    elif smoke:
        dataset = phantom((24, 2, 2), _SEED, image_shape=(16, 16))
    else:
        dataset = phantom((PAPER["n_samples"], 2, 2), _SEED)
    images = dataset.matrix("train")
    X = torch.from_numpy(images.astype(np.float32))
    if images.dtype == np.uint8:
        X /= 255
    k, mean = 3 if smoke else PAPER["n_components"], float(X.mean())
    W, H = initial_factors(Dense(X), k, Origin("random", random_state=_SEED, mean=mean))
    return _Start(X, W[0], H[0], Path(source).name)


def _objective(start: _Start, W: Any, H: Any, beta_loss: str) -> float:
    from nnmf_cuda import ops, reference

    W, H = (torch.as_tensor(factor).double()[None] for factor in (W, H))
    number = ops.beta_loss_to_float(beta_loss)
    # A few rows at a time: the reference makes several matrices of X's size.
    rows = zip(start.X.split(256), W.split(256, dim=1), strict=True)
    return sum(float(reference.nnmf_divergence(x, w, H, beta_loss=number)) for x, w in rows)


def _sklearn(start: _Start, race: Race, n_iter: int) -> Record:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    model = NMF(
        n_components=len(start.H),
        init="custom",
        solver=race.sklearn_solver,
        beta_loss=race.beta_loss,
        max_iter=n_iter,
        tol=0,
    )
    X, W, H = start.X.numpy(), start.W.numpy().copy(), start.H.numpy().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        W = model.fit_transform(X, W=W, H=H)
        seconds = time.perf_counter() - begin
    objective = _objective(start, W, model.components_, race.beta_loss)
    return {
        "status": "ok",
        **_times([seconds], "one run"),
        "iterations": int(model.n_iter_),
        "goal": objective,
        "objective": objective,
    }


def _ours(
    start: _Start, race: Race, solver: str, *, goal: float, n_iter: int, device: torch.device
) -> Record:
    """Return what a record says of one of our solvers."""
    found: Record = {"goal": goal}
    try:
        return {**found, **_time_to(goal, start, race, solver, n_iter, device)}
    except Exception as failure:  # the other solvers' figures stand
        logger.exception("benchmark of %s, %s", race.beta_loss, solver)
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return {**found, "status": "failed", "reason": reason}


def _time_to(
    goal: float, start: _Start, race: Race, solver: str, n_iter: int, device: torch.device
) -> Record:
    from nnmf_cuda import NNMF

    X = start.X.to(device)

    def fit(max_iter: int) -> NNMF:
        model = NNMF(
            len(start.H),
            beta_loss=race.beta_loss,
            solver=solver,
            init="custom",
            max_iter=max_iter,
            tol=0,
        )
        return model.fit(X, W=start.W, H=start.H)

    def objective(max_iter: int) -> float:
        model = fit(max_iter)
        return _objective(start, model.W_, model.components_, race.beta_loss)

    bracket = _bracket(fit, goal, first=n_iter, most=_MOST * n_iter)
    if bracket is None:
        reached = objective(_MOST * n_iter)
        above = (reached - goal) / goal
        reason = f"{100 * above:.2g} % above the goal after {_MOST * n_iter} iterations"
        return {"status": "failed", "reason": reason, "objective": reached}
    low, high = bracket
    while not objective(high) <= goal:  # the history is in the precision of the fit
        low, high = high, high + 1
    iterations = first_reaching(lambda i: objective(i) <= goal, low, high)
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        model = fit(iterations)
        seconds.append(time.perf_counter() - begin)
    reached = _objective(start, model.W_, model.components_, race.beta_loss)
    if not reached <= goal:
        raise RuntimeError(f"objective {reached} of the timed fit is above the goal {goal}")
    return {
        "status": "ok",
        **_times(seconds, "repeated fits"),
        "iterations": iterations,
        "objective": reached,
    }


def _bracket(
    fit: Callable[[int], Any], goal: float, *, first: int, most: int
) -> tuple[int, int] | None:
    """Return iterations without and with the goal, at most ten apart, from fits' histories."""
    max_iter = first
    while True:
        model = fit(max_iter)
        arrived = np.flatnonzero(model.objective_history_ <= goal)
        if len(arrived):
            iterations = model.objective_iterations_
            last = int(arrived[0])
            return int(iterations[max(0, last - 1)]), max(1, int(iterations[last]))
        if max_iter >= most:
            return None
        max_iter = min(2 * max_iter, most)


def _times(seconds: list[float], timer: str) -> Record:
    p25, median, p75 = (1e3 * float(v) for v in np.percentile(seconds, (25, 50, 75)))
    return {"median_ms": median, "p25": p25, "p75": p75, "n": len(seconds), "timer": timer}


def _add(
    recorder: Recorder,
    start: _Start,
    race: Race,
    impl: str,
    found: Record,
) -> None:
    n, f = start.X.shape
    fields = {**MEASURED, "iterations": None, "goal": None, "objective": None, **found}
    recorder.add(
        op="fit",
        size=start.source,
        impl=impl,
        served_by="library" if impl.startswith("scikit-learn") else "estimator",
        shape={"n_samples": n, "n_features": f, "n_components": len(start.H)},
        dtype="float32",
        options={"beta_loss": race.beta_loss},
        **fields,
    )
