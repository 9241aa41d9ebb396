"""Turn what gpu_check.sh has run into one JSON record and a short table.

Usage: gpu_record.py WORK_FOLDER RESULTS_FOLDER

Reads from the work folder what is there: parts.jsonl, tests/*.jsonl, sanitizer.jsonl, bench.jsonl
and run/. A part that did not come so far leaves a gap, never an error.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

NEEDED = {
    "tests and benchmarks": ("numpy", "scipy", "sklearn", "pytest", "tqdm", "PIL", "pandas"),
    "command line": ("jsonargparse", "yaml", "docstring_parser"),
    "experiment": ("jsonargparse", "safetensors", "matplotlib", "jinja2", "pyautoattack"),
    "peers": ("triton", "torchnmf", "nmf", "cupy"),
}
"""By what they are for: modules whose absence explains a gap."""


def read_lines(paths: Iterable[Path]) -> list[Record]:
    """Return the objects of files of JSON lines; a last line that was cut off is left out."""
    found = []
    for path in paths:
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
    return found


def read_json(path: Path) -> Any:
    """Return the content of a file, or None where the run did not come that far."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


# Tests -----------------------------------------------------------------------------------------


def count_tests(folder: Path) -> Record:
    """Return how the tests ended, and those that did not pass, from the logs of gpu_test_log.py.

    A test that started and has no end took its process with it: "died". So did one after which
    the device was lost, whatever its own outcome.
    """
    outcomes: dict[str, Record] = {}
    for line in read_lines(sorted(folder.glob("*.jsonl"))):
        known = outcomes.setdefault(line["test"], {"outcome": "died", "message": ""})
        if line["outcome"] == "started":
            continue
        worse = line["outcome"] in ("failed", "device lost", "too long")
        if worse or known["outcome"] in ("died", "passed"):
            message = line.get("message") or known["message"]
            known.update(outcome=line["outcome"], message=message)
    counts = Counter(found["outcome"] for found in outcomes.values())
    bad = ("failed", "died", "device lost", "too long")
    failures = [{"test": t, **found} for t, found in outcomes.items() if found["outcome"] in bad]
    return {"counts": dict(counts), "failures": failures}


def tests_line(tests: Record) -> str:
    """Return the outcome of the tests in words."""
    counts = tests["counts"]
    if not counts:
        return "none ran"
    order = ("passed", "failed", "died", "device lost", "too long", "skipped")
    return ", ".join(f"{counts[name]} {name}" for name in order if name in counts)


# Benchmarks ------------------------------------------------------------------------------------


def problems(records: Iterable[Record]) -> dict[str, dict[str, Record]]:
    """Return the records of the ops on the device, by problem and implementation."""
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        if record.get("suite") == "kernels":
            name = f"{record['op']} {record['size']} {record['dtype']}"
            found.setdefault(name, {})[record["impl"]] = record
    return found


def time_of(record: Record | None) -> float | None:
    """Return milliseconds an iteration, or a call where there are none."""
    if record is None or record["status"] != "ok":
        return None
    each = record.get("iteration_ms")
    return float(record["median_ms"] if each is None else each)


TARGETS = (
    # problem, most milliseconds, least speed against the reference
    ("nnmf_mu paper float32", 0.120, 5.0),
    ("nnmf_mu problems float32", 1.4, None),
    ("nnls many rows float32", None, 20.0),
    ("defended_logits_gradient paper float32", None, 5.0),
    ("defended_logits_gradient draws float32", None, 5.0),
)


def targets(records: Iterable[Record]) -> list[Record]:
    """Return for each target what was measured and whether it is met; None where it was not."""
    found = problems(records)
    rows = []
    for name, most_ms, least_speed in TARGETS:
        impls = found.get(name, {})
        ours, reference = (time_of(impls.get(i)) for i in ("ours", "reference"))
        speed = None if ours is None or reference is None else reference / ours
        known = [
            *([ours <= most_ms] if most_ms is not None and ours is not None else []),
            *([speed >= least_speed] if least_speed is not None and speed is not None else []),
        ]
        wanted = (most_ms is not None) + (least_speed is not None)
        met = None if ours is None else False if not all(known) else len(known) == wanted or None
        rows.append(
            {
                "problem": name,
                "ms": ours,
                "most_ms": most_ms,
                "speed": speed,
                "least_speed": least_speed,
                "met": met,
            }
        )
    return rows


def benchmark_lines(records: list[Record]) -> list[str]:
    """Return a line a problem: our time, and how many times as long each of the others takes."""
    lines = []
    for name, impls in problems(records).items():
        ours = impls.get("ours")
        mine = time_of(ours)
        if ours is None or mine is None:
            reason = "not measured" if ours is None else f"{ours['status']}: {ours['reason']}"
            lines.append(f"{name:36} {reason}"[:150])
            continue
        share = (ours["rates"] or {}).get("gemm_share")
        parts = [f"{mine:9.4f} ms", f"{100 * share:3.0f} % sgemm" if share else "           "]
        for impl, record in impls.items():
            other = time_of(record)
            if impl != "ours" and other is not None:
                parts.append(f"{impl.removeprefix('ours, ')} {other / mine:.2f}x")
            elif record["status"] == "failed":
                parts.append(f"{impl} FAILED")
        lines.append(f"{name:36} {'  '.join(parts)}")
    return lines


def other_lines(records: list[Record]) -> list[str]:
    """Return lines on equality with scikit-learn, the break-even sizes and the stages."""
    lines = []
    for record in records:
        if record.get("suite") == "stages":
            lines += stage_lines(record)
    equality = [r for r in records if r.get("suite") == "equality"]
    if equality:
        ok = sum(r["status"] == "ok" for r in equality)
        lines.append(f"equal to scikit-learn: {ok} of {len(equality)} problems")
    points = [r for r in records if r.get("suite") == "break_even"]
    if any(r["impl"].endswith("cuda") and r["status"] == "ok" for r in points):
        from nnmf_cuda.benchmarks import break_even_size

        for op in dict.fromkeys(r["op"] for r in points):
            for copies in (False, True):
                first = break_even_size(points, op, copies=copies)
                size = "none" if first is None else f"from {first['size']}"
                lines.append(f"break-even of {op}{', copies counted' * copies}: {size}")
    return lines


def stage_lines(record: Record) -> list[str]:
    """Return a line a stage of the stage benchmark: seconds by path; then what attacks decide."""
    paths = record["paths"]
    lines = ["seconds".ljust(28) + "".join(f"{name:>16}" for name in paths)]
    for stage in next(iter(paths.values()))["stages"]:
        cells = [f"{path['stages'][stage]['median_s']:16.2f}" for path in paths.values()]
        lines.append(f"{stage:28}{''.join(cells)}")
    for device, models in record.get("attacks", {}).items():
        shares = [f"{m} {found['differing_decisions']:.1%}" for m, found in models.items()]
        lines.append(f"decisions that differ from the reference's, {device}: {', '.join(shares)}")
    return lines


# The record and its table ----------------------------------------------------------------------


def describe_machine() -> Record:
    """Return device, torch and build; what cannot be told is missing."""
    found: Record = {"device": "none", "torch": None}
    try:
        import torch

        from nnmf_cuda import _extension, show_config

        found["torch"] = torch.__version__
        found["build"] = _extension.build_info()
        found["served_by"] = {op: by["cuda"] for op, by in show_config()["ops"].items()}
        if torch.cuda.is_available():
            from nnmf_cuda.benchmarks.gpu import describe_gpu

            found["device"] = torch.cuda.get_device_name()
            found["gpu"] = describe_gpu(torch.device("cuda"))
    except Exception as error:  # the record is worth more than what describes the machine
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def missing_modules() -> dict[str, list[str]]:
    """Return by what they are for the modules that are not installed."""
    missing = {
        use: [name for name in names if importlib.util.find_spec(name) is None]
        for use, names in NEEDED.items()
    }
    return {use: names for use, names in missing.items() if names}


def read_record(work: Path) -> Record:
    """Return everything that is worth keeping of this check."""
    bench = read_lines([work / "bench.jsonl"])
    return {
        "kind": "gpu_check",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **describe_machine(),
        "missing": missing_modules(),
        "parts": read_lines([work / "parts.jsonl"]),
        "tests": count_tests(work / "tests"),
        "sanitizer": read_lines([work / "sanitizer.jsonl"]),
        "targets": targets(bench),
        "environment": read_json(work / "run/environment.json"),
        "metrics": read_json(work / "run/metrics.json"),
        "timings": read_json(work / "run/timings.json"),
    }


def table(record: Record, bench: list[Record]) -> str:
    """Return the check in some forty lines."""
    lines = [f"{record['device']}, torch {record['torch']}"]
    lines += [f"missing for {use}: {', '.join(m)}" for use, m in record["missing"].items()]
    lines += [
        f"{part['part']:28} {part['outcome']:16} {part['seconds']:>4} s of {part['limit']}"
        for part in record["parts"]
    ]
    lines.append(f"{'tests':28} {tests_line(record['tests'])}")
    lines += [
        f"  {f['outcome']}: {f['test'].removeprefix('tests/')}: {f['message']}"[:150]
        for f in record["tests"]["failures"][:10]
    ]
    lines += [
        f"{s['tool']:28} {s['outcome']:10} {s.get('calls', 0)} calls  {s['message']}"[:150]
        for s in record["sanitizer"]
    ]
    lines += benchmark_lines(bench)
    lines += other_lines(bench)
    lines += [target_line(target) for target in record["targets"]]
    lines += experiment_lines(record)
    return "\n".join(lines)


def target_line(target: Record) -> str:
    """Return a target, what was measured, and whether it is met."""
    met = {None: "not measured", True: "MET", False: "MISSED"}[target["met"]]
    texts = []
    if target["most_ms"] is not None:
        value = "-" if target["ms"] is None else f"{target['ms']:.4f}"
        texts.append(f"{value} ms (at most {target['most_ms']:g})")
    if target["least_speed"] is not None:
        value = "-" if target["speed"] is None else f"{target['speed']:.1f}"
        texts.append(f"{value} x the reference (at least {target['least_speed']:g})")
    return f"target {target['problem']:28} {met}: {', '.join(texts)}"


def experiment_lines(record: Record) -> list[str]:
    """Return the accuracies and the seconds of the experiment."""
    if record["metrics"] is None:
        return [f"{'experiment':28} did not end"]
    rows = [
        f"{name} {metrics['accuracy']:.4f}" for name, metrics in record["metrics"]["rows"].items()
    ]
    timed = (record["timings"] or {"rows": []})["rows"]
    stages = [f"{row['stage']} {row['seconds']:.2f}" for row in timed]
    return ["accuracy: " + ", ".join(rows), "seconds: " + ", ".join(stages)]


def main(work: str, results: str) -> int:
    """Append the record and the benchmarks' records to the device's file; print the table."""
    folder = Path(work)
    record = read_record(folder)
    bench = read_lines([folder / "bench.jsonl"])
    name = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    path = Path(results, f"{name}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in (record, *bench))
    print(f"\nrecorded in {path}")
    print(table(record, bench))
    bad = [p for p in record["parts"] if p["outcome"] not in ("ok", "left out")]
    return int(bool(bad or record["tests"]["failures"]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
