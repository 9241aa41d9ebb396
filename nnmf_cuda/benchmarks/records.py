"""Benchmark records: what each of them holds about the machine, and their files."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["MEASURED", "Record", "Recorder", "append_json_line", "latest_records", "read_records"]

Record = dict[str, Any]

MEASURED: Mapping[str, Any] = dict.fromkeys(
    (
        *("status", "reason", "median_ms", "p25", "p75", "n", "timer", "peak_bytes"),
        *("max_err", "tolerance", "flops", "bytes", "items", "ceilings", "rates"),
    )
)
"""What a measurement fills in; None where it was not measured."""


class Recorder:
    """Keep the records of one run, and append each to a file as soon as it is there.

    Parameters
    ----------
    suite : str
        Which benchmark: "kernels", "scaling", "convergence" or "memory".
    device : torch.device
        Where it runs.
    smoke : bool
        Whether the sizes are too small to say anything about speed.
    json_path : path, optional
        File of JSON lines.

    Attributes
    ----------
    records : list of dict
    """

    def __init__(
        self, suite: str, *, device: torch.device, smoke: bool, json_path: str | Path | None
    ) -> None:
        self.records: list[Record] = []
        self._suite = suite
        self._run = _now()
        self._smoke = smoke
        self._json_path = json_path
        self._machine = _machine(device)

    def add(self, **fields: Any) -> Record:
        """Complete a record with the machine, the threads in use and the date, and keep it."""
        record = {
            "suite": self._suite,
            "run": self._run,
            **fields,
            "smoke": self._smoke,
            **self._machine,
            "threads": torch.get_num_threads(),
            "date": _now(),
        }
        self.records.append(record)
        if self._json_path is not None:
            append_json_line(self._json_path, record)
        return record


def append_json_line(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append a record to a file of JSON lines, making its folder where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """Read the records of `Recorder` from files of JSON lines; other lines are passed over.

    Raises
    ------
    ValueError
        If a file is not made of JSON lines.
    """
    records: list[Record] = []
    for path in paths:
        for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            if "suite" in record:  # not a stage table, and not of an older layout
                records.append(record)
    return records


def latest_records(records: Iterable[Record]) -> list[Record]:
    """Keep of each machine and problem the records of the last run that measured it."""
    records = list(records)
    last: dict[tuple[str, ...], str] = {}
    for record in records:
        problem = _problem(record)
        last[problem] = max(last.get(problem, ""), record["run"])
    return [record for record in records if record["run"] == last[_problem(record)]]


def _problem(record: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("suite", "device_name", "op", "size", "dtype", "shape", "options", "smoke")
    return tuple(json.dumps(record[name], sort_keys=True) for name in names)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _machine(device: torch.device) -> Record:
    """Return what a time depends on."""
    from nnmf_cuda.pipeline.environment import describe_environment

    environment = describe_environment(device, data_sha256="")
    return {
        "device": str(device),
        "device_name": environment["device_name"],
        "cpu_count": environment["cpu_count"],
        "cpu_isa": environment["cpu_isa"],
        "load_average": environment["load_average"][0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nnmf_cuda": environment["nnmf_cuda"],
        "commit": environment["commit"],
        "uncommitted_changes": environment["uncommitted_changes"],
    }
