"""Verify every implementation of a case, then time it; one record each."""

from __future__ import annotations

import datetime
import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnmf_cuda.benchmarks.measure import extra_peak_bytes, interleaved_seconds, largest_error
from nnmf_cuda.benchmarks.registry import (
    Call,
    Case,
    Inputs,
    NotApplicableError,
    Size,
    get_cases,
)

__all__ = ["append_json_line", "run_kernel_benchmarks"]

logger = logging.getLogger(__name__)

_SEED = 0
_MEASURED = (
    *("status", "reason", "median_ms", "p25", "p75", "n"),
    *("timer", "peak_bytes", "max_err", "tolerance"),
)


def run_kernel_benchmarks(
    *,
    cases: Iterable[str] | None = None,
    device: str | torch.device = "cpu",
    min_run_seconds: float = 1.0,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Measure the ops against their reference and their peers.

    Each implementation's output is first compared with the reference in float64: a wrong one is
    recorded as failed and not timed. The others are timed in turns. Inputs are made, and the first
    call is run, outside the timing.

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
        ``op, size, impl, served_by`` ("kernel", "reference" or "library"), ``shape, dtype, options,
        status`` ("ok", "failed", "skipped"), ``reason, median_ms, p25, p75`` (milliseconds), ``n``
        (samples), ``timer, peak_bytes, max_err, tolerance, smoke, device, device_name, torch,
        cuda, nnmf_cuda, commit, threads, date``. What was not measured is None.

    Raises
    ------
    ValueError
        If a case is unknown, the device is missing, or ``min_run_seconds`` is not positive.
    """
    from tqdm import tqdm

    from nnmf_cuda.pipeline.environment import resolve_device

    chosen = get_cases(cases)
    if not min_run_seconds > 0:
        raise ValueError(f"min_run_seconds={min_run_seconds}; need a positive number of seconds")
    where = resolve_device(str(device))
    machine = _machine(where)
    work = [(case, size) for case in chosen for size in ((case.smoke,) if smoke else case.sizes)]
    records = []
    bar = tqdm(work, desc="bench", unit="case", disable=None if progress else True)
    for case, size in bar:
        bar.set_postfix_str(f"{case.op} {size.name}")
        seconds = min(min_run_seconds, 0.02) if smoke else min_run_seconds
        for name, found in _measure(case, size, device=where, min_run_seconds=seconds).items():
            record = {
                "op": case.op,
                "size": size.name,
                "impl": name,
                "served_by": _served_by(case.op, name, where),
                "shape": dict(size.shape),
                "dtype": size.dtype,
                "options": dict(size.options),
                **found,
                "smoke": smoke,
                **machine,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            records.append(record)
            if json_path is not None:
                append_json_line(json_path, record)
    return records


def _measure(
    case: Case, size: Size, *, device: torch.device, min_run_seconds: float
) -> dict[str, dict[str, Any]]:
    """Verify every implementation on one problem, and time those that are right."""
    inputs = case.inputs(size, _SEED, device)
    truth = case.truth(inputs)
    tolerance = _tolerance(case, inputs)
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    for name, implementation in case.implementations.items():
        found[name] = dict.fromkeys(_MEASURED)
        found[name]["tolerance"] = tolerance
        try:
            call = implementation(inputs)
            error = largest_error(call(), truth)
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
    for name, call in calls.items():
        found[name]["peak_bytes"] = extra_peak_bytes(call, device=device)
    samples, method = interleaved_seconds(calls, device=device, min_run_seconds=min_run_seconds)
    for name, seconds in samples.items():
        p25, median, p75 = (float(v) for v in np.percentile(1e3 * seconds, (25, 50, 75)))
        found[name].update(median_ms=median, p25=p25, p75=p75, n=len(seconds), timer=method)
        found[name]["status"] = "ok"
    return found


def _tolerance(case: Case, inputs: Inputs) -> float:
    """Look the tolerance up by the dtype in which the implementations compute."""
    dtypes = [
        str(value.dtype).removeprefix("torch.")
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and name != "alphas_cumprod"  # float64 always
    ]
    return case.tolerance[dtypes[0]]


def _served_by(op: str, implementation: str, device: torch.device) -> str:
    from nnmf_cuda import show_config

    if implementation == "ours":
        return str(show_config()["ops"][op][device.type])
    return "reference" if implementation == "reference" else "library"


def _machine(device: torch.device) -> dict[str, Any]:
    """Return what a time depends on."""
    from nnmf_cuda.pipeline.environment import describe_environment

    environment = describe_environment(device, data_sha256="")
    return {
        "device": str(device),
        "device_name": environment["device_name"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nnmf_cuda": environment["nnmf_cuda"],
        "commit": environment["commit"],
        "threads": environment["threads"],
    }


def append_json_line(path: str | Path, record: dict[str, Any]) -> None:
    """Append a record to a file of JSON lines, making its folder where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
