"""From what size on a GPU is worth it: our op on the CPU against our op on the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.case import Call, Case, Inputs, Size
from bench.cases import get_cases
from bench.inputs import PIXELS
from bench.measure import interleaved_seconds, largest_error
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = [
    "COPIES",
    "ON_CPU",
    "ON_DEVICE",
    "SIZES",
    "break_even_size",
    "run_break_even_benchmarks",
]

logger = logging.getLogger(__name__)

ON_CPU, ON_DEVICE, COPIES = "ours on cpu", "ours on cuda", "copies to cuda"
_SEED = 0
_KL = {"beta_loss": 1.0}
_ITERATIONS = 10


def _mu(n: int, f: int, k: int) -> Size:
    shape = {"n_samples": n, "n_features": f, "n_components": k, "n_iter": _ITERATIONS}
    return Size(f"{n} x {f}", shape, "float32", _KL)


def _project(n: int, f: int, k: int) -> Size:
    shape = {"n_samples": n, "n_features": f, "n_components": k}
    return Size(f"{n} rows", shape, "uint8")


SIZES: Mapping[str, tuple[Size, ...]] = {
    "nnmf_mu": tuple(
        _mu(n, f, 15)
        for n, f in ((16, 64), (32, 256), (64, 1024), (128, 4096), (512, 8192), (1500, PIXELS))
    ),
    "project": tuple(_project(n, PIXELS, 15) for n in (1, 8, 32, 128, 512, 2048)),
}
"""By op, what grows."""
_SMOKE = {"nnmf_mu": (_mu(4, 8, 2), _mu(9, 33, 3)), "project": (_project(3, 20, 2),)}


def run_break_even_benchmarks(
    *,
    device: str | torch.device = "cuda",
    min_run_seconds: float = 0.5,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Time our ops on the CPU and on a GPU over growing problems, and the copies between them.

    By the clock of the host, and until the results are there: launches and waiting count, as they
    do for a caller. The copies (of X and the start, from ordinary memory) have a line of their own.
    Results are verified in float64 first. On the CPU all of torch's threads work.

    Parameters
    ----------
    device : str or torch.device, default="cuda"
        The GPU. With "cpu" only the CPU is timed, and the rest recorded as skipped.
    min_run_seconds, smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks`, three a problem; `break_even_size` reads them.
    """
    from tqdm import tqdm

    from nnmf_cuda.pipeline.environment import resolve_device

    where = resolve_device(str(device))
    recorder = Recorder("break_even", device=where, smoke=smoke, json_path=json_path)
    sizes = _SMOKE if smoke else SIZES
    work = [(case, size) for case in get_cases(sizes) for size in sizes[case.op]]
    for case, size in tqdm(work, desc="bench", disable=None if progress else True):
        found = _measure(case, size, where, min_run_seconds=0.02 if smoke else min_run_seconds)
        for name, measured in found.items():
            recorder.add(
                op=case.op,
                size=size.name,
                impl=name,
                served_by=_served_by(case.op, name),
                shape=dict(size.shape),
                dtype=size.dtype,
                options=dict(size.options),
                **measured,
            )
    return recorder.records


def break_even_size(
    records: Iterable[Mapping[str, Any]], op: str, *, copies: bool
) -> Mapping[str, Any] | None:
    """Return the record of the smallest problem from which on the GPU is the faster one.

    Parameters
    ----------
    records : iterable of dict
        Of one run of `run_break_even_benchmarks`.
    op : str
        Such as "nnmf_mu".
    copies : bool
        Whether the copies to the device count.

    Returns
    -------
    dict or None
        The GPU's record of that problem; None where the GPU loses at the largest one, or did not
        run.
    """
    problems: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        if record["op"] == op and record["status"] == "ok":
            problems.setdefault(record["size"], {})[record["impl"]] = record
    first = None
    for names in problems.values():
        if not {ON_CPU, ON_DEVICE, COPIES} <= set(names):
            return None
        ms = {name: record["median_ms"] for name, record in names.items()}
        wins = ms[ON_DEVICE] + (ms[COPIES] if copies else 0) < ms[ON_CPU]
        first = (first or names[ON_DEVICE]) if wins else None
    return first


def _measure(
    case: Case, size: Size, device: torch.device, *, min_run_seconds: float
) -> dict[str, Record]:
    found = {name: dict(MEASURED) for name in (ON_CPU, ON_DEVICE, COPIES)}
    on_cpu = case.inputs(size, _SEED, torch.device("cpu"))
    calls: dict[str, Call] = {}
    builds: dict[str, Callable[[], Call]] = {ON_CPU: lambda: case.implementations["ours"](on_cpu)}
    if device.type == "cuda":
        on_device = _moved(on_cpu, device)
        truth = case.truth(on_device)
        builds[ON_DEVICE] = lambda: case.implementations["ours"](on_device)
        calls[COPIES] = lambda: _moved(on_cpu, device)
    else:
        truth = case.truth(on_cpu)
        for name in (ON_DEVICE, COPIES):
            found[name].update(status="skipped", reason="needs a CUDA device: give --device cuda")
    tolerance = case.tolerance["float32"]
    for name, build in builds.items():
        found[name]["tolerance"] = tolerance
        try:
            call = build()
            error = largest_error(call(), truth)
        except Exception as failure:  # one that is broken must not hide the other's figures
            logger.exception("break-even of %s, %s", case.op, name)
            reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
            found[name].update(status="failed", reason=reason)
            continue
        if error <= tolerance:
            found[name]["max_err"] = error
            calls[name] = call
        else:
            found[name].update(status="failed", reason=f"wrong: error {error:.2g}")
    _time(calls, found, size, device, min_run_seconds)
    return found


def _time(
    calls: Mapping[str, Call],
    found: Mapping[str, Record],
    size: Size,
    device: torch.device,
    min_run_seconds: float,
) -> None:
    def awaited(call: Call) -> Call:
        def run() -> None:
            call()
            torch.cuda.synchronize(device)

        return run

    waiting = {name: call if name == ON_CPU else awaited(call) for name, call in calls.items()}
    # By the host's clock, whichever device does the work.
    timed = interleaved_seconds(
        waiting, device=torch.device("cpu"), min_run_seconds=min_run_seconds
    )
    n_iter = size.shape.get("n_iter")
    for name, seconds in timed.seconds.items():
        p25, median, p75 = (1e3 * float(v) for v in np.percentile(seconds, (25, 50, 75)))
        found[name].update(
            status="ok",
            median_ms=median,
            p25=p25,
            p75=p75,
            iteration_ms=None if n_iter is None or name == COPIES else median / n_iter,
            n=len(seconds),
            timer=timed.method,
        )


def _moved(inputs: Inputs, device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def _served_by(op: str, name: str) -> str:
    from nnmf_cuda import show_config

    if name == COPIES:
        return "torch"
    return str(show_config()["ops"][op]["cpu" if name == ON_CPU else "cuda"])
