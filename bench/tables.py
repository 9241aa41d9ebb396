"""Benchmark records as tables: plain text for the terminal, Markdown for the docs.

Those of one machine first; then those that show all machines beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.break_even import COPIES, ON_CPU, ON_DEVICE, break_even_size
from nnmf_cuda.benchmarks.records import where

__all__ = [
    "baselines",
    "break_even_table",
    "compact_shape",
    "equality_table",
    "markdown_table",
    "problem_name",
    "records_table",
    "stages_markdown",
    "stages_on_gpus_table",
]

Record = Mapping[str, Any]
Column = tuple[str, Callable[[Record, float | None], str]]
_NONE = "–"


def records_table(records: Iterable[Record]) -> str:
    """Return the records of one run, of any suite, as a table.

    "speed" is how many times as fast as the baseline on the same problem (the reference, or
    scikit-learn in "convergence" and "consensus"), left out of smoke runs; "sgemm" and "read" the
    share of the machine's matrix-product rate and memory bandwidth of the same run; "memory" what a
    call took beyond its inputs; "error" the largest, as a share of the largest true value.
    """
    rows = list(records)
    if not rows:
        return "no records"
    return f"{_set(rows, 'simple')}\n\n{_where(rows)}"


def markdown_table(records: Iterable[Record]) -> str:
    """Return the same as a Markdown table, with the machine below it."""
    rows = list(records)
    return f"{_set(rows, 'pipe')}\n\n{_where(rows)}" if rows else "No records yet."


def stages_markdown(records: Iterable[Record]) -> str:
    """Return the tables of each record of the stages as Markdown, with the notes below."""
    from nnmf_cuda.benchmarks.stage_tables import stage_notes, stage_tables

    parts = []
    for record in records:
        notes = "\n".join(f"- {note}" for note in stage_notes(record))
        parts.append("\n\n".join((*stage_tables(record, "pipe"), notes)))
    return "\n\n".join(parts) or "No records yet."


def _where(records: Sequence[Record]) -> str:
    """Return the machine of the records and its ceilings, where they were measured."""
    measured = [r["ceilings"] for r in records if r.get("ceilings")]
    if not measured or records[-1]["smoke"]:
        return where(records)
    gemm, read = (
        _range(sorted(c[name] for c in measured)) for name in ("gemm_gflops", "read_gb_per_s")
    )
    return f"{where(records)} Ceilings: {gemm} GFLOP/s of matrix products, {read} GB/s read."


def _range(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.0f}", f"{values[-1]:.0f}"
    return low if low == high else f"{low} to {high}"


def _set(records: Sequence[Record], layout: str) -> str:
    from tabulate import tabulate

    header, *body = _cells(records)
    # The case, who and served by what, then numbers; the last column may hold a reason.
    aligned = ("left",) * 3 + ("right",) * (len(header) - (4 if layout == "simple" else 3))
    aligned += ("left",) * (len(header) - len(aligned))
    return tabulate(body, header, layout, disable_numparse=True, colalign=aligned)


def baselines(records: Iterable[Record]) -> dict[str, float]:
    """Return by problem the milliseconds of what the others are compared with."""
    return {
        problem_name(r): r["median_ms"]
        for r in records
        if r["status"] == "ok"
        and r["median_ms"] is not None
        and (
            r["impl"] == "reference"
            or (r["suite"] in ("convergence", "sparse") and r["served_by"] == "library")
            or (r["served_by"] == "library" and r["impl"].endswith(", sparse"))
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


def _correlation(record: Record, baseline: float | None) -> str:
    return str(record["reason"]) if record["status"] != "ok" else f"{record['correlation']:.5f}"


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
    compared = baseline is not None and record["median_ms"] is not None and not record["smoke"]
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


def _time_if_any(record: Record, baseline: float | None) -> str:
    return _NONE if record["median_ms"] is None else _median(record, baseline)


def _outcome_if_any(record: Record, baseline: float | None) -> str:
    if record["status"] == "ok" and record["objective"] is None:
        return ""
    return _outcome(record, baseline)


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


def _of_bound(name: str) -> Callable[[Record, float | None], str]:
    """Return a cell with an error that was seen, and its bound where it has one."""

    def cell(record: Record, baseline: float | None) -> str:
        bounds = record["bounds"]
        seen = f"{record['errors'][name]:.1e}"
        return seen if bounds is None else f"{seen} of {bounds[name]:.1e}"

    return cell


def _if_any(name: str, spec: str) -> Callable[[Record, float | None], str]:
    """Return a cell with a number of the record, where it has one."""

    def cell(record: Record, baseline: float | None) -> str:
        return _NONE if record[name] is None else format(record[name], spec)

    return cell


def _bytes(name: str) -> Callable[[Record, float | None], str]:
    """Return a cell with bytes of the record, where it has some."""

    def cell(record: Record, baseline: float | None) -> str:
        return _NONE if record[name] is None else f"{record[name] / 2**20:.0f} MiB"

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
    "sparse": (
        *_WHO,
        ("time", _time_if_any),
        ("speed", _speed),
        ("iterations", _iterations),
        ("X and start", _x_bytes),
        ("peak beside them", _memory),
        ("outcome", _outcome_if_any),
    ),
    "consensus": (*_WHO, ("time", _seconds), ("speed", _speed), ("correlation", _correlation)),
    "missing": (
        *_WHO,
        ("time", _time_if_any),
        ("times as long", _if_any("times_as_long", ".2f")),
        ("cosine", _if_any("cosine", ".5f")),
        ("error of what is hidden", _if_any("hidden_error", ".1%")),
        ("error", _error),
    ),
    "out_of_core": (
        *_WHO,
        ("time", _seconds),
        ("X", _x_bytes),
        ("limit", _bytes("limit_bytes")),
        ("of what", _text("limited_by")),
        ("own pages", _bytes("peak_bytes")),
        ("with those of files", _bytes("resident_bytes")),
        ("of its group", _bytes("group_bytes")),
        ("outcome", _passed),
    ),
    "two_ranks": (
        ("implementation", _text("impl")),
        ("time", _seconds),
        ("CPU seconds", _if_any("cpu_s", ".1f")),
        ("X", _x_bytes),
        ("a process beside the start", _bytes("resident_bytes")),
        ("without pages of files", _bytes("peak_bytes")),
        ("exchange and waiting", _if_any("waiting_share", ".1%")),
        ("outcome", _passed),
    ),
    "digits": (
        ("network", _text("impl")),
        ("fit", _seconds),
        ("validation", _if_any("valid_accuracy", ".2%")),
        ("test", _if_any("accuracy", ".2%")),
        ("beside PCANet", _if_any("beside_pcanet", "+.2%")),
        ("outcome", _passed),
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
    "tf32": (
        ("tensor cores", _text("impl")),
        ("W H", _of_bound("product")),
        ("X / W H", _of_bound("quotient")),
        ("numerators", _of_bound("numerator")),
        ("outcome", _passed),
    ),
}


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


# All machines: equality with scikit-learn, break-even sizes, stages on GPUs ----------------------

_NOT_RUN = "not run"
_NOT_MEASURED = "Not measured: no GPU has run."
_NO_GPU = ("a GPU", "cuda")
_NAMES = {2.0: "Frobenius", 1.0: "Kullback-Leibler", 0.0: "Itakura-Saito"}


def equality_table(records: Sequence[Record]) -> str:
    """Return differences from scikit-learn by problem, three columns a machine, as Markdown.

    A machine that has not run a problem has "not run" there; so has "a GPU" where none has run any.
    """
    from tabulate import tabulate

    machines = _machines(records)
    if not any(device == "cuda" for _, device in machines):
        machines.append(_NO_GPU)
    names = ("W", "H", "objective")
    header = ["divergence", "X"]
    header += [f"{name}, {quantity}" for name, _ in machines for quantity in names]
    rows: dict[tuple[str, str], dict[tuple[str, str], Record]] = {}
    for record in records:
        rows.setdefault(_problem(record), {})[_machine(record)] = record
    lines = [
        [*problem, *(cell for m in machines for cell in _three_differences(found.get(m), names))]
        for problem, found in rows.items()
    ]
    table = tabulate(lines, header, "pipe", disable_numparse=True)
    return "\n\n".join([table, *_sentences(records)])


def break_even_table(records: Sequence[Record]) -> str:
    """Return by GPU and op the sizes from which on the GPU is faster, and all times, as Markdown.

    "not measured" where no GPU has run.
    """
    measured = [m for m in _machines(records) if m[1] == "cuda"]
    if not measured:
        return _NOT_MEASURED
    return "\n\n".join(
        _break_even_of([r for r in records if _machine(r) == machine]) for machine in measured
    )


def _break_even_of(records: Sequence[Record]) -> str:
    from tabulate import tabulate

    sentences, lines = [], []
    for op in dict.fromkeys(r["op"] for r in records):
        for copies in (False, True):
            first = break_even_size(records, op, copies=copies)
            size = "never here" if first is None else f"from {compact_shape(first['shape'])}"
            sentences.append(f"`{op}`, copies {'counted' if copies else 'not counted'}: {size}.")
        sizes = dict.fromkeys(r["size"] for r in records if r["op"] == op)
        for size in sizes:
            found = {r["impl"]: r for r in records if r["op"] == op and r["size"] == size}
            shape = compact_shape(next(iter(found.values()))["shape"])
            times = [_time_of(found.get(name)) for name in (ON_CPU, ON_DEVICE, COPIES)]
            lines.append([op, shape, *times])
    header = ["op", "size", ON_CPU, ON_DEVICE, COPIES]
    table = tabulate(lines, header, "pipe", disable_numparse=True)
    return "\n\n".join([" ".join(sentences), table, _where(records)])


def stages_on_gpus_table(records: Sequence[Record]) -> str:
    """Return the tables of the stage benchmark of every GPU, as Markdown."""
    measured = [r for r in records if _machine(r)[1] == "cuda"]
    return stages_markdown(measured) if measured else _NOT_MEASURED


def _time_of(record: Record | None) -> str:
    if record is None:
        return _NOT_RUN
    return f"{record['median_ms']:.3f} ms" if record["status"] == "ok" else str(record["status"])


def _machine(record: Record) -> tuple[str, str]:
    return record["device_name"], record["device"].partition(":")[0]


def _machines(records: Iterable[Record]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(_machine(r) for r in records))


def _problem(record: Record) -> tuple[str, str]:
    beta_loss = record["options"]["beta_loss"]
    name = _NAMES.get(beta_loss, f"beta = {beta_loss:g}")
    return name, f"{compact_shape(record['shape'])} {record['dtype']}"


def _three_differences(record: Record | None, names: Sequence[str]) -> list[str]:
    if record is None:
        return [_NOT_RUN] * len(names)
    if record["differences"] is None:
        return [str(record["status"])] * len(names)
    failed = " (failed)" if record["status"] != "ok" else ""
    return [
        ", ".join(f"{values[name]:.0e}" for values in record["differences"].values()) + failed
        for name in names
    ]


def _sentences(records: Sequence[Record]) -> list[str]:
    machines = _machines(records)
    return [_where([r for r in records if _machine(r) == machine]) for machine in machines]
