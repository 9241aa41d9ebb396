"""Verify every implementation of a case, then time it; one record each. Scaling on top of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.case import (
    Call,
    Case,
    Inputs,
    NotApplicableError,
    Size,
)
from bench.cases import get_cases
from bench.ceilings import Ceilings, rates, require_full_float32
from bench.cuda_peers import memory_is_known
from bench.inputs import PAPER
from bench.measure import extra_peak_bytes, gpu_clocks, interleaved_seconds, largest_error
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = [
    "AXES",
    "Problem",
    "computed_in",
    "measure_problem",
    "run_kernel_benchmarks",
    "run_problems",
    "run_scaling_benchmarks",
    "scaling_problems",
    "served_by",
    "thread_counts",
    "verify",
]

logger = logging.getLogger(__name__)

_SEED = 0
_SMOKE_SECONDS = 0.02
_SLOWEST_PART = {
    "extract": "project",
    "extract_jpegs": "project",
    "extract_stacks": "project",
    "extract_volumes": "project",
    "nnls_drift": "nnls",
    "project_wide": "project",
    "purify_gradient": "purify_backward",
    "defended_logits_gradient": "defended_logits_backward",
    "train_classifier": "train_feature_cnn_epoch",
    "train_denoiser": "train_mlp_epoch",
}
"""By case: the op that says what serves it, where it has another name."""


@dataclass(frozen=True)
class Problem:
    """One size of one case.

    Attributes
    ----------
    case : Case
    size : Size
    only : tuple of str, optional
        The implementations to measure; all by default.
    threads : int, optional
        Threads of torch meanwhile; those in use by default.
    ceilings : bool, default=True
        Whether to measure the machine's ceilings in the same rounds, which takes seconds.
    """

    case: Case
    size: Size
    only: tuple[str, ...] | None = None
    threads: int | None = None
    ceilings: bool = True


def run_kernel_benchmarks(
    *,
    cases: Iterable[str] | None = None,
    device: str | torch.device = "cpu",
    min_run_seconds: float = 1.0,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Measure the ops against their reference and their peers.

    Each implementation's output is first compared with the truth in float64: a wrong one is
    recorded as failed and not timed. The others are timed in turns, together with the machine's
    ceilings: a matrix product and a read from memory. Inputs are made, and the first call is run
    (and compiled), outside the timing.

    Parameters
    ----------
    cases : iterable of str, optional
        Ops to measure; all by default.
    device : str or torch.device, default="cpu"
        Where the inputs live.
    min_run_seconds : float, default=1.0
        Time spent on each implementation.
    smoke : bool, default=False
        Tiny sizes and short runs: shows that it works, not how fast it is.
    json_path : path, optional
        Each record is appended to this file as a line of JSON, as soon as it is there.
    progress : bool, default=False
        Whether to show a progress bar, on a terminal.

    Returns
    -------
    list of dict
        ``suite, run`` (when this run began), ``op, size, impl, served_by`` ("kernel", "reference",
        "compiled", "library", "torch" (its modules), "CUDA graph" (of the plain training loop), or
        "pillow" for decoding alone), ``shape, dtype, options``, ``status`` ("ok", "failed",
        "skipped"), ``reason``, ``median_ms, p25, p75`` (milliseconds of a call), ``iteration_ms``
        (the median over the iterations of a call, ``shape["n_iter"]``), ``n`` (samples), ``timer,
        l2`` (see `Timed`),
        ``peak_bytes, max_err, tolerance, flops, bytes, items`` (of a call), ``ceilings``
        (``gemm_gflops, read_gb_per_s`` and how they were measured), ``rates`` (``gflops,
        gemm_share, gb_per_s, read_share, items_per_s``),
        ``clocks`` (of a GPU, MHz, right after the timing), ``smoke`` and the machine: ``device,
        device_name, gpu`` (see `describe_gpu`), ``cpu_count, cpu_isa, load_average, threads,
        torch, cuda, nnmf_cuda, commit, uncommitted_changes, date``. What was not measured is None.

    Raises
    ------
    ValueError
        If a case is unknown, the device is missing, or ``min_run_seconds`` is not positive.
    """
    from nnmf_cuda.pipeline.environment import resolve_device

    chosen = get_cases(cases)
    where = resolve_device(str(device))
    problems = [
        Problem(case, size) for case in chosen for size in case.sizes_on(where, smoke=smoke)
    ]
    return run_problems(
        problems,
        suite="kernels",
        device=where,
        min_run_seconds=min_run_seconds,
        smoke=smoke,
        json_path=json_path,
        progress=progress,
    )


def run_scaling_benchmarks(
    *,
    device: str | torch.device = "cpu",
    min_run_seconds: float = 0.5,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Measure our Kullback-Leibler updates along n, f, k, the number of starts and the threads.

    Parameters and records are those of `run_kernel_benchmarks`; ``options["axis"]`` of a record
    says what varies. Of a batch of starts the first and the last are verified.
    """
    from nnmf_cuda.pipeline.environment import resolve_device

    where = resolve_device(str(device))
    return run_problems(
        scaling_problems(smoke=smoke, threads=where.type == "cpu"),
        suite="scaling",
        device=where,
        min_run_seconds=min_run_seconds,
        smoke=smoke,
        json_path=json_path,
        progress=progress,
    )


def run_problems(
    problems: Iterable[Problem],
    *,
    suite: str,
    device: str | torch.device,
    min_run_seconds: float,
    smoke: bool,
    json_path: str | Path | None,
    progress: bool,
    run: str | None = None,
    setting: str | None = None,
) -> list[Record]:
    """Measure problems one after the other; see `run_kernel_benchmarks`, `Recorder` for `run`.

    `setting` says what the environment chooses: records then call ours "ours, SETTING".
    """
    from tqdm import tqdm

    from nnmf_cuda.pipeline.environment import resolve_device

    if not min_run_seconds > 0:
        raise ValueError(f"min_run_seconds={min_run_seconds}; need a positive number of seconds")
    where = resolve_device(str(device))
    seconds = min(min_run_seconds, _SMOKE_SECONDS) if smoke else min_run_seconds
    recorder = Recorder(suite, device=where, smoke=smoke, json_path=json_path, run=run)
    bar = tqdm(list(problems), desc="bench", unit="case", disable=None if progress else True)
    for problem in bar:
        case, size = problem.case, problem.size
        bar.set_postfix_str(f"{case.op} {size.name}")
        with _threads(problem.threads), _float32_convolutions():
            found = measure_problem(problem, device=where, min_run_seconds=seconds, smoke=smoke)
            for name, measured in found.items():
                recorder.add(
                    op=case.op,
                    size=size.name,
                    impl=name if setting is None else f"{name}, {setting}",
                    served_by=served_by(case.op, name, where),
                    shape=dict(size.shape),
                    dtype=size.dtype,
                    options=dict(size.options),
                    **measured,
                )
    return recorder.records


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """Keep cuDNN from TF32: with its 10 bits torch's modules would miss the tolerances."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def measure_problem(
    problem: Problem, *, device: torch.device, min_run_seconds: float, smoke: bool
) -> dict[str, Record]:
    """Verify every implementation on one problem, and time those that are right."""
    case, size = problem.case, problem.size
    if device.type == "cuda":
        require_full_float32()
        torch.cuda.empty_cache()  # other libraries have no use for what torch keeps
    inputs = case.inputs(size, _SEED, device)
    found, calls = verify(problem, inputs)
    if not calls:
        return found
    for name, call in calls.items():
        if device.type == "cpu" or memory_is_known(name):
            found[name]["peak_bytes"] = extra_peak_bytes(call, device=device)
    dtype = getattr(torch, computed_in(inputs))
    ceilings = Ceilings(device, dtype=dtype, smoke=smoke) if problem.ceilings else None
    probes = {} if ceilings is None else ceilings.calls
    timed = interleaved_seconds({**calls, **probes}, device=device, min_run_seconds=min_run_seconds)
    clocks = gpu_clocks(device) if device.type == "cuda" else None
    reached = None if ceilings is None else ceilings.from_seconds(timed.seconds)
    work = case.work(size)
    n_iter = size.shape.get("n_iter")
    for name in calls:
        samples = timed.seconds[name]
        p25, median, p75 = (float(v) for v in np.percentile(samples, (25, 50, 75)))
        found[name].update(
            status="ok",
            median_ms=1e3 * median,
            p25=1e3 * p25,
            p75=1e3 * p75,
            iteration_ms=None if n_iter is None else 1e3 * median / n_iter,
            n=len(samples),
            timer=timed.method,
            l2=timed.l2,
            clocks=clocks,
            flops=work.flops,
            bytes=work.bytes,
            items=work.items,
            ceilings=reached,
            rates=rates(work, median, reached),
        )
    return found


def verify(problem: Problem, inputs: Inputs) -> tuple[dict[str, Record], dict[str, Call]]:
    """Return a record for each implementation, and the calls of those that are right."""
    case = problem.case
    tolerance = case.tolerance[computed_in(inputs)]
    truths: dict[Any, Any] = {}
    found: dict[str, Record] = {}
    calls: dict[str, Call] = {}
    for name, implementation in case.implementations.items():
        if problem.only is not None and name not in problem.only:
            continue
        found[name] = {**MEASURED, "tolerance": tolerance}
        try:
            call = implementation(inputs)
            output = call()
            truth = case.truths.get(name, case.truth)
            if truth not in truths:
                truths[truth] = truth(inputs)
            error = largest_error(output, truths[truth])
        except NotApplicableError as reason:
            found[name].update(status="skipped", reason=str(reason))
        except ImportError as missing:
            found[name].update(status="skipped", reason=f"not installed: {missing.name}")
        except Exception as failure:  # one broken implementation must not hide the others' figures
            logger.exception("benchmark of %s, %s", case.op, name)
            reason_text = f"{type(failure).__name__}: {failure}".splitlines()[0]
            found[name].update(status="failed", reason=reason_text)
        else:
            # JSON knows no infinity.
            found[name]["max_err"] = error if math.isfinite(error) else None
            if error <= tolerance:
                calls[name] = call
            else:
                reason_text = f"wrong: error {error:.2g} above {tolerance:.2g}"
                found[name].update(status="failed", reason=reason_text)
    return found, calls


def computed_in(inputs: Inputs) -> str:
    """Return the floating-point type in which the implementations compute."""
    dtypes = [
        str(value.dtype).removeprefix("torch.")
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and name != "alphas_cumprod"  # float64 always
    ]
    return dtypes[0]


def served_by(op: str, implementation: str, device: torch.device) -> str:
    from nnmf_cuda import show_config

    if implementation == "ours, decoding alone":
        return "pillow"
    if implementation.startswith("ours"):
        served = show_config()["ops"].get(_SLOWEST_PART.get(op, op), {})
        found = str(served.get(device.type, "unavailable"))
        trains_without_kernel = op.startswith("train_") and found != "kernel"
        return "CUDA graph" if trains_without_kernel and device.type == "cuda" else found
    names = {"reference": "reference", "torch.compile": "compiled", "torch modules": "torch"}
    return names.get(implementation, "library")


# Scaling ---------------------------------------------------------------------------------------

AXES = {
    "n_samples": (94, 375, 1500, 3000),
    "n_features": (1024, 4096, 16384, 32768),
    "n_components": (1, 2, 4, 8, 15, 16, 32, 64, 128),
    "n_batch": (1, 4, 16),
}
"""What varies, and its values; the rest is as in the paper."""

_SMOKE = {"n_samples": 33, "n_features": 129, "n_components": 5}
_SMOKE_AXES = {
    "n_samples": (9, 33),
    "n_features": (65, 129),
    "n_components": (1, 5),
    "n_batch": (1, 3),
}


def scaling_problems(*, smoke: bool, threads: bool) -> list[Problem]:
    """Return the problems of every axis; with `threads` also one for each number of threads."""
    (case,) = get_cases(["nnmf_mu"])
    base, axes = (_SMOKE, _SMOKE_AXES) if smoke else (PAPER, AXES)

    def problem(axis: str, value: int | None = None, n_threads: int | None = None) -> Problem:
        shape = {**base, "n_iter": 2}
        if value is not None:
            shape[axis] = value
        size = Size(f"along {axis}", shape, "float32", {"beta_loss": 1.0, "axis": axis})
        return Problem(case, size, only=("ours",), threads=n_threads)

    found = [problem(axis, value) for axis, values in axes.items() for value in values]
    if threads:
        found += [problem("threads", n_threads=n) for n in thread_counts()]
    return found


def thread_counts() -> list[int]:
    """Return the powers of two below the number of threads in use, and that number."""
    most = torch.get_num_threads()
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
