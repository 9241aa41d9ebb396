"""How much memory a fit takes beside X, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from nnmf_cuda.benchmarks.inputs import PAPER
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["run_memory_benchmarks"]

_N_ITER = 12  # past the convergence test of iteration 10
_LIBRARIES = ("ours", "scikit-learn mu")
_TIMEOUT = 600  # seconds


def run_memory_benchmarks(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Measure the peak memory of a Kullback-Leibler fit on the CPU at the paper's size.

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
    work = [(impl, dtype) for dtype in ("float32", "uint8") for impl in _LIBRARIES]
    for impl, dtype in tqdm(work, desc="bench", disable=None if progress else True):
        found = _in_a_process(impl, dtype, shape)
        recorder.add(
            op="memory of a fit",
            size="smoke" if smoke else "paper",
            impl=impl,
            served_by="estimator" if impl == "ours" else "library",
            shape={**shape, "n_iter": _N_ITER},
            dtype=dtype,
            options={"beta_loss": 1.0},
            **{**MEASURED, "x_bytes": None, **found},
        )
    return recorder.records


def _in_a_process(impl: str, dtype: str, shape: dict[str, int]) -> Record:
    if impl != "ours" and dtype == "uint8":
        return {"status": "skipped", "reason": "takes floating point only"}
    if not Path("/proc/self/status").exists():
        return {"status": "skipped", "reason": "needs /proc/self/status: Linux only"}
    numbers = (torch.get_num_threads(), _N_ITER, *shape.values())
    arguments = [impl, dtype, *map(str, numbers)]
    command = [sys.executable, "-m", "nnmf_cuda.benchmarks._fit_memory", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        return {"status": "failed", "reason": last}
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"took more than {_TIMEOUT} s"}
    return {"status": "ok", **json.loads(done.stdout.splitlines()[-1])}
