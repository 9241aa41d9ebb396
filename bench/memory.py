"""How much memory a fit takes beside X, each in a process of its own."""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.inputs import PAPER
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["LIBRARIES", "fit_in_a_process", "fit_memory", "peak_beside", "run_memory_benchmarks"]

_N_ITER = 12  # past the convergence test of iteration 10
_OURS: dict[str, dict[str, Any]] = {
    "ours": {"beta_loss": 1},
    "ours, Frobenius": {"beta_loss": 2},
    "ours, HALS": {"beta_loss": 2, "solver": "hals"},
}
LIBRARIES = ("ours", "scikit-learn mu", "ours, Frobenius", "ours, HALS")
_TIMEOUT = 600  # seconds
_ROOT = Path(__file__).parents[1]


def run_memory_benchmarks(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Measure the peak memory of a fit on the CPU at the paper's size.

    Each fit runs in a fresh process: X is made in place, a tiny fit loads the libraries, and the
    peak resident set during the fit is compared with that before it, without pages of files
    (program code read for the first time). Linux only.

    Parameters
    ----------
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks` with ``op`` "memory of a fit", ``peak_bytes`` beside
        X, and ``x_bytes``.
    """
    from tqdm import tqdm

    device = torch.device("cpu")
    recorder = Recorder("memory", device=device, smoke=smoke, json_path=json_path)
    shape = {"n_samples": 100, "n_features": 300, "n_components": 5} if smoke else PAPER
    work = [(impl, dtype) for dtype in ("float32", "uint8") for impl in LIBRARIES]
    for impl, dtype in tqdm(work, desc="bench", disable=None if progress else True):
        found = fit_in_a_process(impl, dtype, shape)
        recorder.add(
            op="memory of a fit",
            size="smoke" if smoke else "paper",
            impl=impl,
            served_by="estimator" if impl in _OURS else "library",
            shape={**shape, "n_iter": _N_ITER},
            dtype=dtype,
            options={"beta_loss": float(_OURS.get(impl, _OURS["ours"])["beta_loss"])},
            **{**MEASURED, "x_bytes": None, **found},
        )
    return recorder.records


def fit_in_a_process(impl: str, dtype: str, shape: dict[str, int]) -> Record:
    if impl not in _OURS and dtype == "uint8":
        return {"status": "skipped", "reason": "takes floating point only"}
    if not Path("/proc/self/status").exists():
        return {"status": "skipped", "reason": "needs /proc/self/status: Linux only"}
    numbers = (torch.get_num_threads(), _N_ITER, *shape.values())
    arguments = [impl, dtype, *map(str, numbers)]
    command = [sys.executable, "-m", "bench.memory", *arguments]
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        return {"status": "failed", "reason": last}
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"took more than {_TIMEOUT} s"}
    return {"status": "ok", **json.loads(done.stdout.splitlines()[-1])}


# The process that is started: one fit ------------------------------------------------------------


def _status() -> dict[str, int]:
    """Return the process's memory in bytes: VmHWM, VmRSS, RssFile, ..."""
    text = Path("/proc/self/status").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}


def _fit(impl: str, X: NDArray[Any], n_components: int, n_iter: int) -> None:
    if impl in _OURS:
        from nnmf_cuda import NNMF

        NNMF(n_components, max_iter=n_iter, tol=0, random_state=0, **_OURS[impl]).fit(X)
        return
    from sklearn.decomposition import NMF

    options = {"solver": "mu", "beta_loss": "kullback-leibler", "init": "random"}
    NMF(n_components, max_iter=n_iter, tol=0, random_state=0, **options).fit(X)


def fit_memory(
    impl: str, dtype: str, threads: int, n_iter: int, n: int, f: int, k: int
) -> dict[str, int]:
    """Fit once in this process, and return what that took and what X takes, in bytes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    tiny = rng.random((8, 8), dtype=np.float32)
    _fit(impl, (255 * tiny).astype(dtype) if dtype == "uint8" else tiny, 2, n_iter)
    X = np.empty((n, f), dtype)
    for row in X:  # row by row, so that freed memory cannot hide what the fit takes
        row[:] = rng.integers(0, 256, f) if dtype == "uint8" else rng.random(f)
    return {"peak_bytes": peak_beside(lambda: _fit(impl, X, k, n_iter)), "x_bytes": X.nbytes}


def peak_beside(call: Callable[[], Any]) -> int:
    """Return how many bytes more than before were resident at a time during a call."""
    from nnmf_cuda.timing import reset_peak_rss

    # What was freed before, and is kept for later, would hide what the call takes.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
    before = _status()
    # Without the right to reset it, the peak is that since the start: X as well, if it is large.
    reset_peak_rss()
    call()
    after = _status()
    files = max(0, after.get("RssFile", 0) - before.get("RssFile", 0))
    return max(0, after["VmHWM"] - before["VmRSS"] - files)


def main() -> None:
    """Measure one fit and print it as a line of JSON: what `fit_in_a_process` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("impl")
    parser.add_argument("dtype")
    for name in ("threads", "n_iter", "n", "f", "k"):
        parser.add_argument(name, type=int)
    print(json.dumps(fit_memory(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
