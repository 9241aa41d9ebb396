"""Turn what gpu_check.sh has run into one JSON record and a short table.

Usage: gpu_record.py JUNIT_XML RUN_DIRECTORY FOLDER
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

from nnmf_cuda import _extension, show_config


def count_tests(junit_xml: Path) -> dict[str, int] | None:
    """Return how many tests ran, failed and were skipped; None where they did not end."""
    if not junit_xml.exists():
        return None
    suite = ElementTree.parse(junit_xml).getroot().find("testsuite")
    if suite is None:
        raise SystemExit(f"{junit_xml} holds no test suite")
    names = ("tests", "failures", "errors", "skipped")
    return {name: int(suite.attrib[name]) for name in names}


def read_json(path: Path) -> Any:
    """Return the content of a file, or None where the run did not come that far."""
    return json.loads(path.read_text()) if path.exists() else None


def read_record(junit_xml: Path, run: Path) -> dict[str, Any]:
    """Return everything that is worth keeping of this check."""
    return {
        "kind": "gpu_check",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "build": _extension.build_info(),
        "served_by": {op: by["cuda"] for op, by in show_config()["ops"].items()},
        "environment": read_json(run / "environment.json"),
        "tests": count_tests(junit_xml),
        "metrics": read_json(run / "metrics.json"),
        "timings": read_json(run / "timings.json"),
    }


def tests_line(counts: dict[str, int] | None) -> str:
    """Return the outcome of the tests in words."""
    if counts is None:
        return "did not end"
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return f"{passed} of {counts['tests']} passed"


def print_table(record: dict[str, Any]) -> None:
    """Print the tests, the accuracies and the seconds, one line each."""
    rows = [("device", record["device"]), ("torch", record["torch"])]
    rows += [(f"{op} on cuda", served) for op, served in record["served_by"].items()]
    rows.append(("needs_cuda tests", tests_line(record["tests"])))
    if record["metrics"] is None:
        rows.append(("experiment", "did not end"))
    else:
        for name, metrics in record["metrics"]["rows"].items():
            rows.append((f"{name} accuracy", f"{metrics['accuracy']:.4f}"))
        for row in record["timings"]["rows"]:
            rows.append((f"{row['stage']} seconds", f"{row['seconds']:.2f}"))
    for name, value in rows:
        print(f"{name:40} {value}")


def main(junit_xml: str, run: str, folder: str) -> None:
    """Append the record to the file of this device and print the table."""
    record = read_record(Path(junit_xml), Path(run))
    name = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    path = Path(folder, f"{name}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print_table(record)
    print(f"recorded in {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
