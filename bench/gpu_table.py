"""The table of a visit of bench/gpu_check.sh, from what it has left: all, or whatever came so far.

A part that did not come so far leaves a gap, never an error.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.diagnosis import Compared, Suspect, compare, suspects
from bench.gpu_tests import Outcomes, count_tests
from bench.journal import read_lines
from bench.predictions import GRAPH, TARGETS, Target, predictions, problem_key
from bench.time_model import DEVICES

__all__ = ["VisitLines", "measured_targets", "read_visit", "table", "time_of"]

Record = dict[str, Any]
_NONE = "-"


@dataclass(frozen=True)
class VisitLines:
    """What a visit has left.

    Attributes
    ----------
    lines : list of dict
        Of its journal: those of the check have a "kind", those of benchmarks a "suite".
    tests : Outcomes
        From the report log beside it.
    """

    lines: list[Record]
    tests: Outcomes

    def of_kind(self, kind: str) -> list[Record]:
        """Return the lines of the check of a kind."""
        return [line for line in self.lines if line.get("kind") == kind]

    def of_suite(self, suite: str) -> list[Record]:
        """Return the records of a benchmark."""
        return [line for line in self.lines if line.get("suite") == suite]

    def by_problem(self) -> dict[str, dict[str, Record]]:
        """Return the records of the ops, by problem and implementation; one that failed counts."""
        found: dict[str, dict[str, Record]] = {}
        for record in self.of_suite("kernels"):
            key = problem_key(record["op"], record["size"], record["dtype"])
            found.setdefault(key, {})[record["impl"]] = record
        return found


def read_visit(journal: Path) -> VisitLines:
    """Read what a visit has left beside its journal."""
    log = journal.with_name(journal.stem + "-tests.jsonl")
    return VisitLines(lines=read_lines([journal]), tests=count_tests(log))


def measured_targets(visit: VisitLines) -> list[tuple[Target, float | None, float | None]]:
    """Return each target with our milliseconds, and how many times as fast as the reference."""
    found = visit.by_problem()
    rows = []
    for target in TARGETS:
        impls = found.get(target.problem, {})
        ours, reference = (time_of(impls.get(impl)) for impl in ("ours", "reference"))
        speed = None if ours is None or reference is None else reference / ours
        rows.append((target, ours, speed))
    return rows


def time_of(record: Record | None) -> float | None:
    """Return milliseconds of an iteration, or of a call where there are none."""
    if record is None or record["status"] != "ok":
        return None
    each = record.get("iteration_ms")
    return float(record["median_ms"] if each is None else each)


# The table -------------------------------------------------------------------------------------


def table(visit: VisitLines) -> str:
    """Return the visit in some fifty lines."""
    sections = (
        _head(visit),
        _parts(visit),
        _parity(visit),
        _timings(visit),
        _predicted(visit),
        _targets(visit),
        _sanitizer(visit),
        _tests(visit),
        _equality_and_break_even(visit),
        _stages(visit),
        _experiment(visit),
    )
    return "\n\n".join(section for section in sections if section)


def _set(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    try:
        from tabulate import tabulate
    except ImportError:  # a table worth less than what it shows
        return "\n".join("  ".join(row) for row in ([*header], *rows))
    return tabulate(rows, header, disable_numparse=True)


def _head(visit: VisitLines) -> str:
    objects = visit.of_kind("object")
    if not objects:
        return "no extension yet"
    found = objects[-1]
    lines = [
        f"{found.get('device')}, torch {found.get('torch')}, Python {found.get('python')};"
        f" extension {found['source']}"
        + (f", not serving: {found['error']}" if "error" in found else "")
    ]
    return "\n".join([*lines, *(f"  {note}" for note in found["notes"])])


def _parts(visit: VisitLines) -> str:
    ended = {line["part"]: line for line in visit.of_kind("part")}
    rows = [
        [p["part"], p["outcome"], f"{p['seconds']:.0f}", str(p["limit"])] for p in ended.values()
    ]
    begun = [line for line in visit.of_kind("begin") if line["part"] not in ended]
    rows += [[line["part"], "has not ended", _NONE, str(line["limit"])] for line in begun]
    return _set(["part", "outcome", "seconds", "of"], rows)


def _parity(visit: VisitLines) -> str:
    found = {line["what"]: line for line in visit.of_kind("parity")}
    tried = [r["what"] for r in visit.of_kind("trying") if r["part"] == "parity"]
    lost = [what for what in tried if what not in found]
    if not tried:
        return ""
    bad = [line for line in found.values() if line["outcome"] != "passed"]
    lines = [f"parity with the CPU: {len(found) - len(bad)} of {len(tried)} calls"]
    lines += [f"  failed: {line['what']}: {line['message']}"[:150] for line in bad[:10]]
    lines += [f"  died or hung: {what}" for what in lost[:10]]
    return "\n".join(lines)


def _timings(visit: VisitLines) -> str:
    """Return predicted and measured side by side, and every other problem and implementation."""
    predicted = {(one.problem, one.impl): one for one in predictions(_device(visit))}
    rows = []
    for problem, impls in visit.by_problem().items():
        given = predicted.get((problem, "ours"))
        span = _NONE if given is None else f"{given.low_ms:g}-{given.high_ms:g}"
        ours, reference = impls.get("ours"), impls.get("reference")
        mine, theirs = time_of(ours), time_of(reference)
        if mine is None:
            reason = "not measured" if ours is None else f"{ours['status']}: {ours['reason']}"
            rows.append([problem, span, reason[:60], "", "", "", ""])
            continue
        others = [
            f"{impl} {other / mine:.2f}x"
            for impl, record in impls.items()
            if impl not in ("ours", "reference", GRAPH) and (other := time_of(record)) is not None
        ]
        others += [f"{impl} FAILED" for impl, r in impls.items() if r["status"] == "failed"]
        graph = time_of(impls.get(GRAPH))
        rows.append(
            [
                problem,
                span,
                f"{mine:.4f}",
                _NONE if graph is None else f"{graph:.4f}",
                _NONE if theirs is None else f"{theirs:.4f}",
                _NONE if theirs is None else f"{theirs / mine:.2f}x",
                "  ".join(others),
            ]
        )
    header = ["problem", "predicted, ms", "ours", "in a graph", "reference", "speed", "others take"]
    return _set(header, rows)


def _device(visit: VisitLines) -> str:
    """Return the device whose predictions are meant: an H200's where it is none that has any."""
    objects = visit.of_kind("object")
    name = str(objects[-1].get("device", "")) if objects else ""
    return next((key for key, one in DEVICES.items() if one.name == name), "h200")


def _predicted(visit: VisitLines) -> str:
    """Return what was predicted beside what was measured, and which assumption was wrong."""
    device, measured = _device(visit), {}
    for problem, impls in visit.by_problem().items():
        for impl, record in impls.items():
            ms = time_of(record)
            if ms is not None and not record.get("smoke"):
                measured[problem, impl] = ms
            # In a graph no host can be late: where it was measured, it is what was predicted.
            if impl == GRAPH and ms is not None and not record.get("smoke"):
                measured[problem, "ours"] = min(ms, measured.get((problem, "ours"), ms))
    compared = compare(predictions(device), measured)
    rows = [
        [
            one.predicted.problem,
            one.predicted.impl,
            f"{one.predicted.ms:g} ({one.predicted.low_ms:g}-{one.predicted.high_ms:g})",
            f"{one.ms:.4f}",
            f"{one.ratio:.2f}{'' if one.within else ' !'}",
            one.predicted.binds,
        ]
        for one in compared
    ]
    header = ["problem", "", "predicted, ms", "measured", "ratio", "bound by"]
    blamed = _blamed(compared, suspects(compared, device))
    return "\n".join(part for part in (_set(header, rows), blamed) if part)


def _blamed(compared: Sequence[Compared], found: Sequence[Suspect]) -> str:
    if not compared:
        return ""
    by_bound: dict[str, list[float]] = {}
    for one in compared:
        by_bound.setdefault(one.predicted.binds, []).append(one.ratio)
    shares = [
        f"{bound} {statistics.median(ratios):.2f} ({len(ratios)})"
        for bound, ratios in sorted(by_bound.items())
    ]
    lines = [f"measured over predicted, median by bound: {', '.join(shares)}"]
    if len(compared) < 3:
        return "\n".join([*lines, "too few measurements to say which assumption was wrong"])
    if not found:
        return "\n".join([*lines, "as predicted, within 10 %: no assumption was wrong"])
    best = found[0]
    for suspect in found[:2]:
        verb = "explains" if suspect.explains else "alone does not explain"
        lines.append(
            f"{suspect.name} {verb} it: {suspect.found:.3g} instead of {suspect.assumed:.3g} leaves"
            f" {suspect.left:.0%} of a spread of {suspect.before:.0%}"
        )
    if not best.explains:
        lines.append("no single assumption explains it: look at the counts, or at several of them")
    return "\n".join(lines)


def _targets(visit: VisitLines) -> str:
    rows = []
    for target, ms, speed in measured_targets(visit):
        met = {None: "not measured", True: "MET", False: "MISSED"}[target.is_met(ms, speed)]
        wanted = []
        if target.most_ms is not None:
            shown = _NONE if ms is None else f"{ms:.4f}"
            wanted.append(f"{shown} ms (at most {target.most_ms:g})")
        if target.least_speed is not None:
            shown = _NONE if speed is None else f"{speed:.1f}"
            wanted.append(f"{shown} x the reference (at least {target.least_speed:g})")
        rows.append([target.problem, met, ", ".join(wanted)])
    return _set(["target", "", ""], rows)


def _sanitizer(visit: VisitLines) -> str:
    rows = [
        [line["tool"], line["outcome"], str(line["calls"]), str(line["message"])[:90]]
        for line in visit.of_kind("sanitizer")
    ]
    return _set(["sanitizer", "outcome", "calls", "its summary"], rows)


def _tests(visit: VisitLines) -> str:
    if not visit.tests.counts:
        return ""
    lines = [f"tests: {visit.tests}"]
    lines += [f"  failed: {f['test']}: {f['message']}"[:150] for f in visit.tests.failures[:10]]
    return "\n".join(lines)


def _equality_and_break_even(visit: VisitLines) -> str:
    lines = []
    equality, points = visit.of_suite("equality"), visit.of_suite("break_even")
    if equality:
        ok = sum(record["status"] == "ok" for record in equality)
        lines.append(f"equal to scikit-learn: {ok} of {len(equality)} problems")
    if any(r["impl"].endswith("cuda") and r["status"] == "ok" for r in points):
        from bench.break_even import break_even_size

        for op in dict.fromkeys(r["op"] for r in points):
            for copies in (False, True):
                first = break_even_size(points, op, copies=copies)
                size = "none" if first is None else f"from {first['size']}"
                lines.append(f"break-even of {op}{', copies counted' * copies}: {size}")
    return "\n".join(lines)


def _stages(visit: VisitLines) -> str:
    """Return a line a stage of the stage benchmark, by path; then what attacks decide."""
    texts = []
    for record in visit.of_suite("stages"):
        paths = record["paths"]
        rows = [
            [stage, *(f"{path['stages'][stage]['median_s']:.2f}" for path in paths.values())]
            for stage in next(iter(paths.values()))["stages"]
        ]
        texts.append(_set(["seconds", *paths], rows))
        for device, models in record.get("attacks", {}).items():
            shares = [f"{m} {found['differing_decisions']:.1%}" for m, found in models.items()]
            texts.append(f"decisions unlike the reference's, {device}: {', '.join(shares)}")
    return "\n".join(texts)


def _experiment(visit: VisitLines) -> str:
    """Return the accuracies and the seconds of the experiment."""
    lines = []
    for found in visit.of_kind("experiment"):
        rows = found.get("metrics", {}).get("rows", {})
        accuracies = [f"{name} {row['accuracy']:.4f}" for name, row in rows.items()]
        timed = found.get("timings", {}).get("rows", [])
        stages = [f"{row['stage']} {row['seconds']:.2f}" for row in timed]
        lines += [f"accuracy: {', '.join(accuracies)}", f"seconds: {', '.join(stages)}"]
    return "\n".join(lines)
