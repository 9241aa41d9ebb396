"""Predict what the headlines take: from the machine code of a build to bench/results/predictions-*.

`python -m bench predict --objects 'build/temp*/csrc/*/cuda/*.o'` writes a file for each device. It
needs cuobjdump and nvdisasm, a C++ compiler, and an object that was built for the device.
"""

from __future__ import annotations

import glob
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.case import Case, Size
from bench.headlines import HEADLINES, SETTINGS, VARIANTS, Setting
from bench.kernel_work import work_of
from bench.launched import Launched
from bench.launches import Plan, build_planner, plan_of
from bench.machine_code import Kernel, read_kernels
from bench.predictions import predictions_table, problem_key
from bench.ptxas_table import demangle, short_name
from bench.time_model import BEST, DEVICES, EXPECTED, SOURCES, WORST, Device, KernelWork, time_of

__all__ = ["RESULTS", "predict", "sizes_of", "write_page", "write_predictions"]

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]

_CALLS = {"nnls_drift": "nnls"}
"""What the planner calls an op, where that is another name."""
_FOUND: Mapping[str, Mapping[str, float]] = {
    "nnls many rows float32": {"rounds": 3.9, "free": 7.2},
    "nnls wide float32": {"rounds": 5.0, "free": 25.0},
    "nnls_drift many components float64": {"rounds": 5.2, "free": 650.0},
    "crown_bounds cnn float64": {"open": 0.2},
    "crown_bounds mlp float64": {"open": 0.1},
    "project drawn uint8": {"rounds": 1.0, "free": 15.0},
    "project drawn float32": {"rounds": 1.0, "free": 15.0},
}
"""What depends on the numbers, counted on the CPU with some rows of the headline's inputs: systems
that a row takes, and free variables in each. Open units are those that remain open (9 % and 4 %),
doubled: the bounds by intervals, which decide, are wider."""


def sizes_of(op: str, size: Size) -> dict[str, int]:
    """Return the sizes of a problem as the planner names them."""
    names = {"n_samples": "n", "n_boxes": "n", "n_features": "f", "n_components": "k"}
    names |= {"n_batch": "batch", "n_draws": "draws", "n_nonzeros": "nonzeros"}
    found = {names.get(name, name): value for name, value in size.shape.items()}
    defaults = {"batch": 1, "own_X": int(bool(size.options.get("own_X"))), "hidden": 0}
    defaults |= {"embedding": 32, "warm": 0, "ready": 0, "tensor": 0}
    return {**defaults, **found}


def predict(
    op: str,
    size: Size,
    device: Device,
    kernels: Mapping[str, Kernel],
    planner: Path,
    *,
    impl: str = "ours",
    setting: Setting | None = None,
) -> Record:
    """Return the prediction of a headline: its times by what they are spent on, and its kernels."""
    key = problem_key(op, size.name, size.dtype)
    sizes = sizes_of(op, size)
    given = {"multiprocessors": device.multiprocessors, "shared_bytes": device.shared_bytes}
    plan = plan_of(
        planner,
        f"{_CALLS.get(op, op)} {size.dtype}",
        {**sizes, **given, **VARIANTS.get(impl, {})},
        environment={} if setting is None else setting.environment,
    )
    n_iter = sizes.get("n_iter", 1)
    known: dict[str, float] = {**sizes, **plan.notes, **_FOUND.get(key, {})}
    known["weighted"] = op == "nnmf_weighted_mu"
    known["element_bytes"] = {"uint8": 1, "float64": 8}.get(size.dtype, 4)
    work = _works(plan, known, device, kernels, each=1 / n_iter)
    name = device.name.rsplit(" ", 1)[1].lower()
    calls = (2 if op.endswith("_gradient") else 1) / n_iter
    times = time_of(work, device, EXPECTED[name], calls=calls)
    low, high = (time_of(work, device, these[name], calls=calls) for these in (BEST, WORST))
    return {
        "problem": key,
        "impl": impl if setting is None else f"{impl}, {setting.name}",
        "ms": _rounded(times.ms),
        "low_ms": _rounded(low.ms),
        "high_ms": _rounded(high.ms),
        "host_ms": _rounded(times.host_ms),
        "by_bound_ms": {bound: _rounded(ms) for bound, ms in times.by_bound.items()},
        "binds": times.binds,
        "calls": calls,
        "kernels": [_short(asdict(one)) for one in work],
    }


def _works(
    plan: Plan,
    known: Mapping[str, float],
    device: Device,
    kernels: Mapping[str, Kernel],
    *,
    each: float,
) -> list[KernelWork]:
    """Return the work of all launches, those that are alike as one."""
    launches = [replace(one, symbol=_symbol(one.symbol, kernels)) for one in plan.launches]
    symbols = [launch.symbol for launch in launches]
    names = dict(zip(symbols, map(short_name, demangle(symbols)), strict=True))
    before: Counter[str] = Counter()
    works: Counter[str] = Counter()
    found: dict[str, KernelWork] = {}
    for launch in launches:
        code = kernels.get(launch.symbol)
        if code is None:
            raise ValueError(f"the objects have no {launch.symbol} for {device.architecture}")
        name = names[launch.symbol]
        base = name.split("<")[0]
        one = work_of(Launched(launch, code, known, device, before[base]), name, times=each)
        before[base] += 1
        text = json.dumps(asdict(one), sort_keys=True)
        works[text] += 1
        found[text] = one
    return [
        KernelWork.from_json({**asdict(one), "times": works[text] * each})
        for text, one in found.items()
    ]


def _symbol(name: str, kernels: Mapping[str, Kernel]) -> str:
    """Return the mangled name of a kernel that has no template arguments, or what is one."""
    if name in kernels:
        return name
    found = [symbol for symbol in kernels if f"{len(name)}{name}E" in symbol]
    return found[0] if len(found) == 1 else name


def _predicted() -> Iterator[tuple[Case, Size, str, Setting | None]]:
    """Give what is predicted: the headlines, then ours in other ways, then by each setting."""
    headlines = [(case, size) for case, sizes in HEADLINES for size in sizes]
    for impl in ("ours", *VARIANTS):
        for case, size in headlines:
            if impl in case.implementations:
                yield case, size, impl, None
    for setting in SETTINGS:
        for case, size in headlines:
            if problem_key(case.op, size.name, size.dtype) in setting.problems:
                yield case, size, "ours", setting


def write_page(page: Path) -> None:
    """Put the table of predictions into a page, between its marks.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    begin, end = "<!-- predictions -->", "<!-- /predictions -->"
    text = page.read_text("utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no {begin} and {end}")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{predictions_table()}\n{end}{after}", "utf-8")


def _by_lines(record: Record) -> str:
    """Return JSON with a line for each prediction."""
    head = json.dumps({**record, "predictions": []}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in record["predictions"])
    return head.replace('"predictions": []', f'"predictions": [\n{rows}\n ]') + "\n"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _short(values: Record) -> Record:
    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {name: short(one) for name, one in value.items()}
        return value

    return {name: short(value) for name, value in values.items()}


def write_predictions(
    objects: Sequence[str], *, devices: Sequence[str] = tuple(DEVICES), folder: Path = RESULTS
) -> list[Path]:
    """Write predictions-DEVICE.json for devices; return the files.

    Parameters
    ----------
    objects : sequence of str
        Objects with the kernels, or patterns of their paths.
    devices : sequence of str, default=all of `DEVICES`
    folder : Path

    Raises
    ------
    ValueError
        If there is no such object, a tool is missing, or a kernel is in none of them.
    """
    paths = [Path(path) for pattern in objects for path in sorted(glob.glob(pattern))]
    if not paths:
        raise ValueError(f"there is no object {' '.join(objects)}; build the extension with CUDA")
    written = []
    with tempfile.TemporaryDirectory() as work:
        planner = build_planner(Path(work))
        for name in devices:
            device = DEVICES[name]
            kernels = read_kernels(paths, device.architecture)
            rows = [
                predict(case.op, size, device, kernels, planner, impl=impl, setting=setting)
                for case, size, impl, setting in _predicted()
            ]
            record = {
                "device": device.name,
                "about": "Written by `python -m bench predict` before any kernel had run: from"
                " counted instructions, bytes and launches to milliseconds on the device, of an"
                " iteration where a call has several; a gradient is a forward and a backward pass."
                " The host's part, which a CUDA graph takes away, is host_ms. low_ms and high_ms"
                " are the same work on the most and the least that the assumptions allow.",
                "assumptions": asdict(EXPECTED[name]),
                "sources": SOURCES,
                "predictions": rows,
            }
            path = folder / f"predictions-{name}.json"
            path.write_text(_by_lines(record), "utf-8")
            written.append(path)
    return written
