"""Tables of all machines: equality with scikit-learn, break-even sizes, stages on GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nnmf_cuda.benchmarks.break_even import COPIES, ON_CPU, ON_DEVICE, break_even_size
from nnmf_cuda.benchmarks.plot import write_parts
from nnmf_cuda.benchmarks.records import Record, latest_records, read_records
from nnmf_cuda.benchmarks.stage_tables import stages_markdown
from nnmf_cuda.benchmarks.table import compact_shape, where

__all__ = ["break_even_table", "equality_table", "write_device_tables"]

_NOT_RUN = "not run"
_NOT_MEASURED = "Not measured: no GPU has run."
_NO_GPU = ("a GPU", "cuda")
_NAMES = {2.0: "Frobenius", 1.0: "Kullback-Leibler", 0.0: "Itakura-Saito"}


def write_device_tables(paths: Iterable[str | Path], *, page: str | Path) -> Path:
    """Write the tables of the newest records into a page, whatever machines they are of.

    Parameters
    ----------
    paths : iterable of path
        Files of records; those of other suites are passed over.
    page : path
        Markdown file with lines ``<!-- equality -->`` and ``<!-- /equality -->``, and such lines
        for ``break_even`` and ``stages``.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ValueError
        If a file is damaged, or the page has no such lines.
    """
    records = [r for r in latest_records(read_records(paths)) if not r["smoke"]]
    parts = {
        "equality": equality_table([r for r in records if r["suite"] == "equality"]),
        "break_even": break_even_table([r for r in records if r["suite"] == "break_even"]),
        "stages": _stages_on_gpus([r for r in records if r["suite"] == "stages"]),
    }
    write_parts(Path(page), parts)
    return Path(page)


def equality_table(records: Sequence[Record]) -> str:
    """Return differences from scikit-learn by problem, three columns a machine, as Markdown.

    A machine that has not run a problem has "not run" there; so has "a GPU" where none has run any.
    """
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
        [*problem, *(cell for m in machines for cell in _differences(found.get(m), names))]
        for problem, found in rows.items()
    ]
    return "\n\n".join([_markdown(header, lines), *_sentences(records)])


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
            lines.append([op, shape, *(_ms(found.get(n)) for n in (ON_CPU, ON_DEVICE, COPIES))])
    header = ["op", "size", ON_CPU, ON_DEVICE, COPIES]
    return "\n\n".join([" ".join(sentences), _markdown(header, lines), where(records)])


def _stages_on_gpus(records: Sequence[Record]) -> str:
    measured = [r for r in records if _machine(r)[1] == "cuda"]
    return stages_markdown(measured) if measured else _NOT_MEASURED


def _ms(record: Record | None) -> str:
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


def _differences(record: Record | None, names: Sequence[str]) -> list[str]:
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
    return [where([r for r in records if _machine(r) == machine]) for machine in machines]


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
