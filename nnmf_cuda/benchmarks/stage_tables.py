"""The stage benchmark's record as tables: quality first, then seconds, then memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nnmf_cuda.benchmarks.records import where

Record = Mapping[str, Any]
_Table = list[tuple[str, ...]]
_NONE = "–"
_SHARES = ("differing_decisions", "equal_points")


def stages_table(record: Record) -> str:
    """Return the record of `run_stage_benchmarks` for a terminal.

    The four metric rows by path; the attacks on one model by both; the paper's six rows in seconds
    by path, with how many times as fast as the reference path this package is and the paper's
    columns beside; peak memory by path; notes.
    """
    from nnmf_cuda.report.tables import bullet_list

    tables = [_set(table, "simple") for table in _tables(record)]
    return "\n\n".join([*tables, bullet_list(_notes(record))])


def stages_markdown(records: Iterable[Record]) -> str:
    """Return the tables of each record as Markdown, with the notes below."""
    parts = []
    for record in records:
        tables = (_set(table, "pipe") for table in _tables(record))
        parts.append("\n\n".join((*tables, "\n".join(f"- {n}" for n in _notes(record)))))
    return "\n\n".join(parts) or "No records yet."


def _tables(record: Record) -> list[_Table]:
    return [_quality(record), _attacks(record), _seconds(record), _memory(record)]


def _quality(record: Record) -> _Table:
    """Return each metric row, the mean of the runs, by path, and how far the runs are apart."""
    from nnmf_cuda.report.tables import METRIC_TITLES

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
    return _NONE if record["smoke"] else f"{reference / ours:.2f} x"


def _seconds(record: Record) -> _Table:
    from nnmf_cuda.evaluation import PAPER_TIMINGS

    paths = record["paths"]
    devices = list(dict.fromkeys(name.partition(" ")[0] for name in paths))
    titles = [title for d in devices for title in (f"{d}, s", f"{d} reference, s", "speed")]
    table: _Table = [("stage", *titles, "paper CPU", "paper GPU")]
    for stage, title in _stage_titles():
        cells = []
        for device in devices:
            ours, reference = (paths[n]["stages"][stage] for n in (device, f"{device} reference"))
            speed = _speed(record, ours["median_s"], reference["median_s"])
            cells += [_median(ours), _median(reference), speed]
        published = PAPER_TIMINGS[stage]
        table.append((title, *cells, f"{published['cpu']:.2f}", f"{published['gpu']:.2f}"))
    return table


def _stage_titles() -> list[tuple[str, str]]:
    """Return the paper's six rows, by name and as they are shown."""
    from nnmf_cuda.report.tables import STAGE_TITLES
    from nnmf_cuda.timing import PAPER_STAGES

    return [(stage, STAGE_TITLES[stage]) for stage in (*PAPER_STAGES, "total")]


def _median(stage: Mapping[str, Any]) -> str:
    median = f"{stage['median_s']:.2f}"
    if len(stage["seconds"]) == 1:
        return median
    return f"{median} ({stage['low_s']:.2f}-{stage['high_s']:.2f})"


def _memory(record: Record) -> _Table:
    paths = record["paths"]
    table: _Table = [("peak memory", *paths)]
    for stage, title in _stage_titles():
        peaks = (path["stages"][stage]["peak_bytes"] for path in paths.values())
        table.append((title, *(f"{peak / 2**20:,.0f} MiB" for peak in peaks)))
    return table


def _notes(record: Record) -> list[str]:
    from nnmf_cuda.report.tables import PAPER_SECONDS_NOTE

    shape, environments = record["shape"], record["environments"]
    machines = "; ".join(f"{name}: {e['device_name']}" for name, e in environments.items())
    counts = ", ".join(f"{shape[f'n_{s}']} {s}" for s in ("train", "valid", "test"))
    size = f"{shape['height']} x {shape['width']}"
    synthetic = ", synthetic" if record["synthetic"] else ""
    notes = [
        f"Data: {record['size']} ({counts} images of {size}{synthetic}); settings:"
        f" {record['options']['preset']}. {machines}.",
        "Reference: the same experiment in plain eager torch, in the same process. Seconds: median"
        f" of {_runs(record['repeats'])} and of {_runs(record['reference_repeats'])} of the"
        " reference, in turns, with the range in brackets; the total is that of a run.",
        _metrics_note(record),
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
    return notes


def _metrics_note(record: Record) -> str:
    from nnmf_cuda.report.tables import METRIC_TITLES

    allowed = record["quality"]["allowed"]
    compared = ", ".join(METRIC_TITLES[metric] for metric in next(iter(allowed.values())))
    limits = ", ".join(f"{limits['accuracy']:.3f} in {row}" for row, limits in allowed.items())
    return (
        "Metrics: means of the runs. Before any time was shown, the largest difference between"
        f" runs of all paths was found to be within what is allowed of {compared}: in accuracy"
        f" {limits}."
    )


def _runs(n: int) -> str:
    return f"{n} run{'' if n == 1 else 's'}"


def _set(table: _Table, layout: str) -> str:
    """Return a table whose first row is its header, first column left, numbers right."""
    from tabulate import tabulate

    header, *body = table
    aligned = ("left", *("right" for _ in header[1:]))
    return tabulate(body, header, layout, disable_numparse=True, colalign=aligned)
