"""The tables of docs/scaling.md, from the record of `python -m bench ranks` and the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from bench.plot import write_parts
from bench.ranks_carried import ASSUMED, Carried, blocks_of, carried
from bench.ranks_model import Fit, exchanged, gathered_bytes, operations, waiting
from bench.ranks_record import Record

__all__ = ["PARTS", "parts_of", "write_page"]

_FITS: tuple[tuple[str, Callable[[int], Fit]], ...] = (
    ('"mu", Kullback-Leibler', lambda k: Fit(10_000_000, 16_384, k)),
    ('"mu", Frobenius', lambda k: Fit(10_000_000, 16_384, k, beta_loss=2.0)),
    ('"mu", another `beta_loss`', lambda k: Fit(10_000_000, 16_384, k, beta_loss=0.5)),
    ('"hals"', lambda k: Fit(10_000_000, 16_384, k, "hals", 2.0)),
)
_RANKS = (2, 4, 8, 64, 1024)
_WAITING = (2, 8, 64, 1024)


def write_page(record: Record, page: Path) -> None:
    """Put the tables into a page, between its marks; ValueError where it has none."""
    write_parts(page, parts_of(record))


def parts_of(record: Record) -> dict[str, str]:
    """Return the Markdown of each part of the page, by its mark."""
    of_millions = carried(record)
    return {
        "exchange": exchange_table(),
        "constants": constants(record),
        "measured": measured_table(record),
        "millions": millions_table(record, of_millions),
        "assumed": assumed_table(),
        "waiting": waiting_table(record, of_millions),
    }


PARTS = ("exchange", "constants", "measured", "millions", "assumed", "waiting")


def _table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    return tabulate(rows, header, "pipe", disable_numparse=True)


def exchange_table() -> str:
    """Return operations and received bytes of a rank by solver, components and ranks."""
    rows = []
    for name, of in _FITS:
        for fit in (of(15), of(64)):
            received = [_bytes(exchanged(fit, ranks).received_bytes) for ranks in _RANKS]
            all_to_all = _bytes(gathered_bytes(fit, _RANKS[-1]))
            per_rank = f"{operations(fit, 64) / 1e12:.3g}"
            rows.append([name, str(fit.n_components), per_rank, *received, all_to_all])
    header = ["", "k", "10^12 operations, 64 ranks", *(f"{ranks} ranks" for ranks in _RANKS)]
    return _table(rows, [*header, f"{_RANKS[-1]}, all to all"])


def constants(record: Record) -> str:
    """Return what was measured of the parts, and where, as sentences."""
    network = record.network()
    rates = [
        f"{rate.entry_ns:.3g} ns (k = {rate.n_components}, f = {rate.n_features})"
        for rate in record.rates
    ]
    fixed, number = record.H_constants()
    told = record.machine
    busy = f"{told['load_average']:.1f} before and {told['load_average_after']:.1f} after"
    at_once = "" if _was_quiet(record) else _BUSY
    times = ", ".join(f"{rate.busy:.2f}" for rate in record.rates)
    return "\n".join(
        [
            f"Measured on {told['cpu_count']} cores ({told['device_name']}, {told['cpu_isa']}),"
            f" torch {told['torch']}, {told['date'][:10]}; load average {busy}, and one rank's"
            f" updates took {times} times their CPU time.{at_once}",
            "",
            f"- An entry of X in an iteration takes a core {', '.join(rates)}.",
            f"- H takes it {1e3 * fixed:.2g} ms and {1e9 * number:.3g} ns for each of its numbers.",
            f"- A collective call takes {1e6 * network.step_s:.3g} us and"
            f" {1e6 * network.message_s:.3g} us for each other rank, and a rank receives"
            f" {network.bytes_per_s / 1e9:.3g} GB/s, float64 sums and copies included.",
            f"- At most {record.W_times:.2g} times W of its rows and {record.H_times:.2g} times H"
            " in float64 are in a rank's memory, beside X.",
        ]
    )


_QUIET = 6.0
"""Four processes of one thread alone make a load of 4."""


def _was_quiet(record: Record) -> bool:
    loads = (float(record.machine[name]) for name in ("load_average", "load_average_after"))
    return max(loads) < _QUIET


_BUSY = " **Other work ran at the same time: these are first figures, to be measured again.**"


def measured_table(record: Record) -> str:
    """Return iterations as measured and as predicted, and how far these are off."""
    rows: list[list[str]] = []
    ratios: list[float] = []  # where each thread has a core
    crowded: list[float] = []
    for one in record.iterations:
        cost = record.predicted(one)
        ratio = one.ms / (1e3 * cost.seconds)
        (crowded if one.ranks * one.threads > record.cores else ratios).append(ratio)
        rows.append(
            [
                f"{one.n_samples} x {one.n_features}, k = {one.n_components}",
                f"{one.ranks} x {one.threads}",
                f"{one.ms:.1f} ms",
                f"{one.p25:.1f} to {one.p75:.1f}",
                f"{1e3 * cost.seconds:.1f} ms",
                f"{ratio:.2f}",
                f"{cost.exchange_share:.0%}",
            ]
        )
    header = ["X, uint8", "ranks x threads", "measured", "quartiles", "predicted"]
    table = _table(rows, [*header, "measured / predicted", "exchange, predicted"])
    said = [_spread(ratios, "each thread has a core"), _spread(crowded, "they share cores")]
    return f"{table}\n\nMeasured over predicted: {'; '.join(filter(None, said))}."


def _spread(ratios: Sequence[float], where: str) -> str:
    if not ratios:
        return ""
    median = f"median {np.median(ratios):.2f}"
    return f"{min(ratios):.2f} to {max(ratios):.2f}, {median}, where {where}"


def millions_table(record: Record, of: Sequence[Carried]) -> str:
    """Return what the model says of ten million images."""
    rows = [
        [
            one.name,
            str(one.fit.n_components),
            _ms(one.cost.seconds),
            _ms(one.cost.X_s),
            _ms(one.cost.H_s),
            _ms(one.cost.exchange_s),
            f"{one.cost.exchange_share:.1%}",
            "never" if one.binding is None else f"{one.binding} ranks",
            f"{one.fastest} ranks",
            _bytes(one.memory.total),
            f"{_bytes(one.memory.X_bytes)}, {_bytes(one.memory.W_bytes)},"
            f" {_bytes(one.memory.H_bytes)}",
        ]
        for one in of
    ]
    header = ["predicted for", "k", "an iteration", "of X", "of H", "exchange", "its share"]
    header += ["more than half from", "fastest with", "memory a rank", "of X, W, H"]
    table = _table(rows, header)
    if _was_quiet(record):
        return table
    return (
        f"{table}\n\n**The exchange of the nodes is that of a machine that other work kept busy.**"
    )


def assumed_table() -> str:
    """Return what is assumed, and where each number is from."""
    rows = [[name, one.text, one.source] for name, one in ASSUMED.items()]
    return _table(rows, ["assumed", "", "why"])


def waiting_table(record: Record, of: Sequence[Carried]) -> str:
    """Return the simulated loss of waiting for the slowest rank."""
    nodes = [one for one in of if one.name.startswith("64 nodes")]
    kinds = [("for a whole iteration", 1)]
    for k in dict.fromkeys(one.fit.n_components for one in nodes):
        blocks = blocks_of(record, [one for one in nodes if one.fit.n_components == k])
        kinds.append((f"for {record.update_ms:.0f} ms of an iteration (k = {k})", blocks))
    rows = [
        [name, str(blocks)]
        + [
            f"{waiting(record.relative_times, ranks, blocks=blocks, draws=400):+.0%}"
            for ranks in _WAITING
        ]
        for name, blocks in kinds
    ]
    header = ["a rank is as slow as it is", "draws of a rank", *(f"{n} ranks" for n in _WAITING)]
    p50, p90, p99 = np.percentile(record.relative_times, (50, 90, 99))
    said = (
        f"{len(record.relative_times)} times of the same update, by two ranks at once: the 90th"
        f" percentile is {p90 / p50:.2f} times the median, the 99th {p99 / p50:.2f} times."
    )
    if not _was_quiet(record):
        said += " **What other work took of the cores is in them.**"
    return f"{_table(rows, header)}\n\n{said}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
