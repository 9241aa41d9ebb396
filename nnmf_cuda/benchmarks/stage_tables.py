"""The stage benchmark's record as tables: quality first, then seconds, then memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from nnmf_cuda.benchmarks.records import where
from nnmf_cuda.evaluation import PAPER_TIMINGS
from nnmf_cuda.report.tables import (
    METRIC_TITLES,
    NONE,
    PAPER_SECONDS_NOTE,
    STAGE_TITLES,
    bullet_list,
)

Record = Mapping[str, Any]
_Table = list[tuple[str, ...]]
_SHARES = ("differing_decisions", "equal_points")


def stages_table(record: Record) -> str:
    """Return the record of `run_stage_benchmarks` for a terminal: its tables, then its notes."""
    return "\n\n".join([*stage_tables(record, "simple"), bullet_list(stage_notes(record))])


def stage_tables(record: Record, layout: str) -> list[str]:
    """Set four tables in a layout of tabulate.

    The metric rows by path; the attacks on one model by both; the paper's six rows in seconds by
    path, with how many times as fast as the reference path this package is and the paper's columns
    beside; peak memory by path.
    """
    tables = []
    for make in (_quality, _attacks, _seconds, _memory):
        header, *body = make(record)
        aligned = ("left", *("right" for _ in header[1:]))
        tables.append(tabulate(body, header, layout, disable_numparse=True, colalign=aligned))
    return tables


def _quality(record: Record) -> _Table:
    """Return each metric row, the mean of the runs, by path, and how far the runs are apart."""
    table: _Table = [("metrics", *METRIC_TITLES.values())]
    for row, differences in record["quality"]["largest_difference"].items():
        for name, path in record["paths"].items():
            runs = [found[row] for found in path["rows"]]
            means = (sum(run[metric] for run in runs) / len(runs) for metric in METRIC_TITLES)
            table.append((f"{row}, {name}", *(f"{mean:.4f}" for mean in means)))
        apart = (f"{differences[metric]:.4f}" for metric in METRIC_TITLES)
        table.append((f"{row}, largest difference", *apart))
    return table


def _attacks(record: Record) -> _Table:
    """Return the attacks on one model: what this package and the reference have found, and when."""
    titles = ("robust", "reference", "differing decisions", "equal points", "mean difference")
    table: _Table = [("attacks on one model", *titles, "seconds", "reference, s", "speed")]
    for device, models in record["attacks"].items():
        for model, found in models.items():
            robust = (list(after.values())[-1] for after in found["accuracy_after"].values())
            ours, reference = (sum(seconds.values()) for seconds in found["seconds"].values())
            cells = [f"{share:.4f}" for share in robust]
            cells += [f"{100 * found[name]:.1f} %" for name in _SHARES]
            cells += [f"{found['mean_difference']:.1e}", f"{ours:.2f}", f"{reference:.2f}"]
            table.append((f"{model}, {device}", *cells, _speed(record, ours, reference)))
    return table


def _speed(record: Record, ours: float, reference: float) -> str:
    # A tiny experiment measures overheads only.
    return NONE if record["smoke"] else f"{reference / ours:.2f} x"


def _seconds(record: Record) -> _Table:
    paths = record["paths"]
    devices = list(dict.fromkeys(name.partition(" ")[0] for name in paths))
    titles = [title for d in devices for title in (f"{d}, s", f"{d} reference, s", "speed")]
    table: _Table = [("stage", *titles, "paper CPU", "paper GPU")]
    for stage, title in STAGE_TITLES.items():
        cells = []
        for device in devices:
            ours, reference = (paths[n]["stages"][stage] for n in (device, f"{device} reference"))
            speed = _speed(record, ours["median_s"], reference["median_s"])
            cells += [_median(ours), _median(reference), speed]
        published = PAPER_TIMINGS[stage]
        table.append((title, *cells, f"{published['cpu']:.2f}", f"{published['gpu']:.2f}"))
    return table


def _median(stage: Mapping[str, Any]) -> str:
    median = f"{stage['median_s']:.2f}"
    if len(stage["seconds"]) == 1:
        return median
    return f"{median} ({stage['low_s']:.2f}-{stage['high_s']:.2f})"


def _memory(record: Record) -> _Table:
    paths = record["paths"]
    table: _Table = [("peak memory", *paths)]
    for stage, title in STAGE_TITLES.items():
        peaks = (path["stages"][stage]["peak_bytes"] for path in paths.values())
        table.append((title, *(f"{peak / 2**20:,.0f} MiB" for peak in peaks)))
    return table


def stage_notes(record: Record) -> list[str]:
    """Return what was measured, how, and how to read the tables."""
    shape, environments = record["shape"], record["environments"]
    allowed = record["quality"]["allowed"]
    compared = ", ".join(METRIC_TITLES[metric] for metric in next(iter(allowed.values())))
    limits = ", ".join(f"{found['accuracy']:.3f} in {row}" for row, found in allowed.items())
    machines = "; ".join(f"{name}: {e['device_name']}" for name, e in environments.items())
    counts = ", ".join(f"{shape[f'n_{s}']} {s}" for s in ("train", "valid", "test"))
    size = f"{shape['height']} x {shape['width']}"
    synthetic = ", synthetic" if record["synthetic"] else ""
    return [
        f"Data: {record['size']} ({counts} images of {size}{synthetic}); settings:"
        f" {record['options']['preset']}. {machines}.",
        "Reference: the same experiment in plain eager torch, in the same process. Seconds: median"
        f" of {_runs(record['repeats'])} and of {_runs(record['reference_repeats'])} of the"
        " reference, in turns, with the range in brackets; the total is that of a run.",
        "Metrics: means of the runs. Before any time was shown, the largest difference between"
        f" runs of all paths was found to be within what is allowed of {compared}: in accuracy"
        f" {limits}.",
        "Attacks on one model: those of the first run of this package, attacked once more by the"
        " reference with the same samples, seed and noise. Robust: the share of the samples that"
        " AutoAttack counts as robust; a decision differs where one attack breaks a sample and the"
        " other does not; points are equal in every bit, and the mean difference is that of all"
        " features of all points.",
        "Peak memory on the CPU: the largest resident set of the whole process during the stage,"
        " libraries and images included; on a GPU: the most that torch held on it.",
        PAPER_SECONDS_NOTE,
        where([record]),
    ]


def _runs(n: int) -> str:
    return f"{n} run{'' if n == 1 else 's'}"
