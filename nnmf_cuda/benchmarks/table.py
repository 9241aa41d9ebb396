"""Benchmark records as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["records_table"]

_HEADER = ("case", "implementation", "served by", "median", "p25-p75", "speed", "memory", "error")


def records_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records of `run_kernel_benchmarks` as a table.

    "speed" is how many times as fast as the reference on the same inputs, left out of smoke runs;
    "memory" what a call took beyond its inputs; "error" the largest, as a share of the largest
    true value.
    """
    records = list(records)
    if not records:
        return "no records"
    baseline = {_problem(r): r["median_ms"] for r in records if r["impl"] == "reference"}
    table: list[tuple[str, ...]] = [_HEADER]
    previous = None
    for record in records:
        problem = _problem(record)
        name = problem if problem != previous else ""
        previous = problem
        table.append((name, *_cells(record, baseline.get(problem))))
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEADER))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_set(row, widths) for row in table]
    return "\n".join([lines[0], rule, *lines[1:], rule, _where(records[0])])


def _problem(record: Mapping[str, Any]) -> str:
    shape = " x ".join(str(size) for size in record["shape"].values())
    return f"{record['op']} {record['size']} {record['dtype']} ({shape})"


def _cells(record: Mapping[str, Any], baseline_ms: float | None) -> tuple[str, ...]:
    who = (record["impl"], record["served_by"])
    if record["status"] != "ok":
        return (*who, record["status"], "", "", "", record["reason"])
    median = record["median_ms"]
    compared = baseline_ms and not record["smoke"]  # tiny problems measure overheads only
    speed = f"{baseline_ms / median:.2f} x" if compared else "–"
    memory = "–" if record["peak_bytes"] is None else f"{record['peak_bytes'] / 2**20:.1f} MiB"
    spread = f"{_ms(record['p25'])}-{_ms(record['p75'])}"
    return (*who, f"{_ms(median)} ms", spread, speed, memory, f"{record['max_err']:.1e}")


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _set(row: tuple[str, ...], widths: list[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(row[3:-1], widths[3:-1], strict=True)]
    return "  ".join([*left, *right, row[-1]]).rstrip()


def _where(record: Mapping[str, Any]) -> str:
    smoke = " Smoke run: sizes too small to say anything about speed." if record["smoke"] else ""
    return (
        f"{record['device_name']} ({record['device']}), {record['threads']} threads, "
        f"torch {record['torch']}.{smoke}"
    )
