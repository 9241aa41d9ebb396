"""Benchmark records as tables: plain text for the terminal, Markdown for the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["baselines", "compact_shape", "markdown_table", "problem_name", "records_table"]

Record = Mapping[str, Any]
Column = tuple[str, Callable[[Record, float | None], str]]
_NONE = "–"


def records_table(records: Iterable[Record]) -> str:
    """Return the records of one run, of any suite, as a table.

    "speed" is how many times as fast as the baseline on the same problem (the reference, or
    scikit-learn in "convergence"), left out of smoke runs; "sgemm" and "read" the share of the
    machine's matrix-product rate and memory bandwidth of the same run; "memory" what a call took
    beyond its inputs; "error" the largest, as a share of the largest true value.
    """
    rows = list(records)
    if not rows:
        return "no records"
    table = _cells(rows)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_set(row, widths) for row in table]
    return "\n".join([lines[0], rule, *lines[1:], rule, where(rows)])


def markdown_table(records: Iterable[Record]) -> str:
    """Return the same as a Markdown table, with the machine below it."""
    rows = list(records)
    if not rows:
        return "No records yet."
    header, *body = _cells(rows)
    lines = [header, tuple("---" if i < 3 else "---:" for i in range(len(header))), *body]
    cells = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{cells}\n\n{where(rows)}"


def baselines(records: Iterable[Record]) -> dict[str, float]:
    """Return by problem the milliseconds of what the others are compared with."""
    return {
        problem_name(r): r["median_ms"]
        for r in records
        if r["status"] == "ok"
        and r["median_ms"] is not None
        and (
            r["impl"] == "reference" or r["suite"] == "convergence" and r["served_by"] == "library"
        )
    }


def problem_name(record: Record) -> str:
    """Return the problem of a record in words: op, size, type, shape and divergence."""
    beta_loss = record["options"].get("beta_loss")
    divergence = {None: "", 1.0: " KL", 2.0: " Frobenius"}.get(beta_loss, f" {beta_loss}")
    name = f"{record['op']}{divergence}, {record['size']} {record['dtype']}"
    return f"{name} ({compact_shape(record['shape'])})"


def compact_shape(shape: Mapping[str, int]) -> str:
    """Return a shape as "1500 x 16384 x 15, n_iter 2"."""
    axes = ("n_samples", "n_features", "n_draws", "n_components", "hidden")
    sizes = " x ".join(str(shape[name]) for name in axes if name in shape)
    others = [f", {name} {value}" for name, value in shape.items() if name not in axes]
    return sizes + "".join(others)


def where(records: Sequence[Record]) -> str:
    """Return the machine of the records, its ceilings and the versions, in a sentence or two.

    The records may come from several runs: all their versions, commits and days are named.
    """
    record = records[-1]
    threads = sorted({r["threads"] for r in records})
    counts = ", ".join(map(str, threads))
    text = (
        f"{record['device_name']} ({record['device']}"
        + (f", {record['cpu_isa']}" if record["cpu_isa"] else "")
        + f"), {counts} thread{'' if threads == [1] else 's'}, {_versions(records)}."
    )
    measured = [r["ceilings"] for r in records if r.get("ceilings")]
    if measured and not record["smoke"]:
        gemm = sorted(c["gemm_gflops"] for c in measured)
        read = sorted(c["read_gb_per_s"] for c in measured)
        text += f" Ceilings: {_range(gemm)} GFLOP/s of matrix products, {_range(read)} GB/s read."
    if record["smoke"]:
        text += " Smoke run: sizes too small to say anything about speed."
    return text


def _versions(records: Sequence[Record]) -> str:
    """Return torch, commits and days of the records, the oldest first."""
    dated = sorted(records, key=lambda r: str(r["date"]))
    torch = dict.fromkeys(r["torch"] for r in dated)
    commits = dict.fromkeys(
        (r["commit"][:10] or "unknown") + (" with changes" if r["uncommitted_changes"] else "")
        for r in dated
    )
    days = dict.fromkeys((dated[0]["date"][:10], dated[-1]["date"][:10]))
    return (
        f"torch {', '.join(torch)}, commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}, "
        f"{' to '.join(days)}"
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.0f}", f"{values[-1]:.0f}"
    return low if low == high else f"{low} to {high}"


def _cells(records: Sequence[Record]) -> list[tuple[str, ...]]:
    columns = _COLUMNS[records[0]["suite"]]
    baseline = baselines(records)
    table: list[tuple[str, ...]] = [("case", *(name for name, _ in columns))]
    previous = None
    for record in records:
        problem = problem_name(record)
        name = problem if problem != previous else ""
        previous = problem
        cells = [cell(record, baseline.get(problem)) for _, cell in columns]
        table.append((name, *cells))
    return table


def _median(record: Record, baseline: float | None) -> str:
    if record["status"] != "ok":
        return str(record["status"])
    return f"{_ms(record['median_ms'])} ms"


def _seconds(record: Record, baseline: float | None) -> str:
    if record["status"] != "ok":
        return str(record["status"])
    return f"{record['median_ms'] / 1e3:.2f} s"


def _spread(record: Record, baseline: float | None) -> str:
    return "" if record["p25"] is None else f"{_ms(record['p25'])}-{_ms(record['p75'])}"


def _speed(record: Record, baseline: float | None) -> str:
    if record["status"] != "ok":
        return ""
    # Tiny problems measure overheads only.
    compared = baseline is not None and not record["smoke"]
    return f"{baseline / record['median_ms']:.2f} x" if compared and baseline else _NONE


def _share(name: str) -> Callable[[Record, float | None], str]:
    def share(record: Record, baseline: float | None) -> str:
        if record["status"] != "ok":
            return ""
        value = (record["rates"] or {}).get(name)
        return _NONE if value is None or record["smoke"] else f"{100 * value:.0f} %"

    return share


def _gflops(record: Record, baseline: float | None) -> str:
    value = (record["rates"] or {}).get("gflops")
    return _NONE if value is None or record["smoke"] else f"{value:.1f}"


def _items(record: Record, baseline: float | None) -> str:
    if record["status"] != "ok":
        return ""
    value = (record["rates"] or {}).get("items_per_s")
    return _NONE if value is None or record["smoke"] else f"{value:,.0f}"


def _memory(record: Record, baseline: float | None) -> str:
    if record["status"] != "ok":
        return ""
    return _NONE if record["peak_bytes"] is None else f"{record['peak_bytes'] / 2**20:.1f} MiB"


def _error(record: Record, baseline: float | None) -> str:
    if record["status"] != "ok":
        return str(record["reason"])
    return _NONE if record["max_err"] is None else f"{record['max_err']:.1e}"


def _outcome(record: Record, baseline: float | None) -> str:
    return str(record["reason"]) if record["status"] != "ok" else f"{record['objective']:.7g}"


def _iterations(record: Record, baseline: float | None) -> str:
    return _NONE if record["iterations"] is None else str(record["iterations"])


def _x_bytes(record: Record, baseline: float | None) -> str:
    return _NONE if record["x_bytes"] is None else f"{record['x_bytes'] / 2**20:.1f} MiB"


def _of_x(record: Record, baseline: float | None) -> str:
    if record["status"] != "ok":
        return str(record["reason"])
    return f"{100 * record['peak_bytes'] / record['x_bytes']:.1f} %"


def _differences(name: str) -> Callable[[Record, float | None], str]:
    """Return a cell with the differences after 1, 10 and 100 iterations."""

    def cell(record: Record, baseline: float | None) -> str:
        found = record["differences"]
        return _NONE if found is None else ", ".join(f"{v[name]:.0e}" for v in found.values())

    return cell


def _passed(record: Record, baseline: float | None) -> str:
    return str(record["reason"] or record["status"])


def _text(name: str) -> Callable[[Record, float | None], str]:
    return lambda record, baseline: str(record[name])


_WHO: tuple[Column, ...] = (("implementation", _text("impl")), ("served by", _text("served_by")))
_TIMES: tuple[Column, ...] = (("median", _median), ("p25-p75", _spread))
_SHARES: tuple[Column, ...] = (("sgemm", _share("gemm_share")), ("read", _share("read_share")))
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "kernels": (
        *_WHO,
        *_TIMES,
        ("speed", _speed),
        *_SHARES,
        ("items/s", _items),
        ("memory", _memory),
        ("error", _error),
    ),
    "scaling": (
        ("implementation", _text("impl")),
        ("threads", _text("threads")),
        *_TIMES,
        ("GFLOP/s", _gflops),
        *_SHARES,
        ("error", _error),
    ),
    "convergence": (
        *_WHO,
        ("time", _seconds),
        ("speed", _speed),
        ("iterations", _iterations),
        ("objective", _outcome),
    ),
    "memory": (*_WHO, ("X", _x_bytes), ("beside X", _memory), ("of X", _of_x)),
    "break_even": (*_WHO, *_TIMES, ("error", _error)),
    "equality": (
        *_WHO,
        ("W", _differences("W")),
        ("H", _differences("H")),
        ("objective", _differences("objective")),
        ("outcome", _passed),
    ),
}


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _set(row: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(row[3:-1], widths[3:-1], strict=True)]
    return "  ".join([*left, *right, row[-1]]).rstrip()
