"""Benchmark records: what each of them holds about the machine, and their files."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
Question = Callable[[Any, Any], float | str]
"""Asked of the module ``pynvml`` and its handle of a GPU."""

_MEASURED = (
    *("status", "reason", "median_ms", "p25", "p75", "n", "timer", "peak_bytes"),
    *("max_err", "tolerance", "flops", "bytes", "items", "ceilings", "rates"),
)
MEASURED: Mapping[str, Any] = dict.fromkeys((*_MEASURED, "iteration_ms", "l2", "clocks"))
"""What a measurement fills in; None where it was not measured."""

_PROBLEM_AND_MACHINE = (
    *("suite", "run", "op", "size", "shape", "dtype", "options", "smoke"),
    *("device", "device_name", "cpu_isa", "threads", "torch", "commit", "uncommitted_changes"),
    "date",
)
_EVERY_RECORD = (
    *_PROBLEM_AND_MACHINE,
    *("impl", "served_by"),
    *_MEASURED,  # the others of MEASURED came later: older records lack them
)
_STAGES = (
    *("paths", "quality", "attacks", "repeats", "reference_repeats", "environments"),
    *("synthetic", "data_sha256"),
)
_KEYS = {
    "kernels": _EVERY_RECORD,
    "scaling": _EVERY_RECORD,
    "convergence": (*_EVERY_RECORD, "iterations", "goal", "objective"),
    "consensus": (*_EVERY_RECORD, "correlation"),
    "memory": (*_EVERY_RECORD, "x_bytes"),
    "sparse": (*_EVERY_RECORD, "iterations", "goal", "objective", "x_bytes"),
    "out_of_core": (
        *(*_EVERY_RECORD, "x_bytes", "resident_bytes", "group_bytes"),
        *("limit_bytes", "limited_by"),
    ),
    "two_ranks": (*_EVERY_RECORD, "x_bytes", "resident_bytes", "cpu_s", "waiting_share"),
    "missing": (*_EVERY_RECORD, "times_as_long", "cosine", "hidden_error"),
    "digits": (*_EVERY_RECORD, "valid_accuracy", "accuracy", "beside_pcanet"),
    "break_even": _EVERY_RECORD,
    "equality": (*_EVERY_RECORD, "differences"),
    "tf32": (*_EVERY_RECORD, "errors", "bounds"),
    "stages": (*_PROBLEM_AND_MACHINE, *_STAGES),
}
"""What tables and figures read of a record, by suite."""
_MACHINE = (
    *("device", "device_name", "gpu", "cpu_count", "cpu_isa", "load_average"),
    *("torch", "cuda", "nnmf_cuda", "commit", "uncommitted_changes"),
)


class Recorder:
    """Keep the `records` of one run of a suite, and append each to a file of JSON lines at once.

    `run` says when the run began of which they are a part, now by default. Raises ValueError if
    `json_path` is no place for a file: better now than after minutes of measuring.
    """

    def __init__(
        self,
        suite: str,
        *,
        device: torch.device,
        smoke: bool,
        json_path: str | Path | None,
        run: str | None = None,
    ) -> None:
        if json_path is not None:
            _require_place(Path(json_path))
        self.records: list[Record] = []
        self._suite = suite
        self._run = run or _now()
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
            # On disk when this returns: whatever becomes of the process, the record stays.
            with Path(self._json_path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return record


def _require_place(path: Path) -> None:
    """Raise where no line can be appended to a file; its folder is made, the file is not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {path}: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"cannot write records to {path}; name a file that can be written")


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """Read the records of `Recorder` from files of JSON lines.

    Blank lines are passed over, and so are records without "suite": those of `gpu_check.sh` itself,
    and of an older layout. Raises ValueError where a line is damaged or lacks something.
    """
    records: list[Record] = []
    for path in paths:
        try:
            lines = Path(path).read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
        for number, line in enumerate(lines, start=1):
            record = _parse(line, f"{path}, line {number}") if line.strip() else {}
            if "suite" in record:
                records.append(record)
    return records


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line.decode("utf-8"))
    except ValueError as error:  # of the encoding, or of JSON
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not a record: {line[:60].decode('utf-8', 'replace')}")
    if "suite" not in record:
        return record
    keys = _KEYS.get(str(record["suite"]))
    if keys is None:
        raise ValueError(f"{where} is of no known suite: {record['suite']!r}")
    missing = [key for key in keys if key not in record]
    if missing:
        raise ValueError(f"{where} is a record of {record['suite']} without {', '.join(missing)}")
    return record


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _machine(device: torch.device) -> Record:
    """Return what a time depends on."""
    from nnmf_cuda.pipeline.environment import describe_environment

    told = describe_environment(device, data_sha256="")
    told |= {
        "gpu": describe_gpu(device) if device.type == "cuda" else None,
        "load_average": told["load_average"][0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    return {name: told[name] for name in _MACHINE}


def describe_gpu(device: torch.device) -> Record:
    """Return what does not change while benchmarks run on a GPU, from torch and the driver."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **ask_driver(device, _OF_DRIVER),
    }


_OF_DRIVER: Mapping[str, Question] = {
    "driver": lambda nvml, _: nvml.nvmlSystemGetDriverVersion(),
    "max_sm_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "max_memory_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "power_limit_watts": lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1e3,
}


def ask_driver(
    device: torch.device, questions: Mapping[str, Question]
) -> dict[str, float | str | None]:
    """Ask the driver of a GPU; None is what it does not tell, or nvidia-ml-py is not there for."""
    found: dict[str, float | str | None] = dict.fromkeys(questions)
    try:
        import pynvml
    except ImportError:
        return found
    try:
        pynvml.nvmlInit()
        # The driver counts all devices, torch those that it may use: their numbers can differ.
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        if uuid is not None:
            gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        else:
            gpu = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
    except pynvml.NVMLError:
        return found
    for name, ask in questions.items():
        with contextlib.suppress(pynvml.NVMLError):
            found[name] = ask(pynvml, gpu)
    return found


def where(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the machine of the records and the versions, commits and days of all, in a sentence.

    The records may come from several runs on one machine.
    """
    record, dated = records[-1], sorted(records, key=lambda r: str(r["date"]))
    isa = f", {record['cpu_isa']}" if record["cpu_isa"] else ""
    threads = sorted({r["threads"] for r in records})
    versions = dict.fromkeys(r["torch"] for r in dated)
    commits = dict.fromkeys(
        (r["commit"][:10] or "unknown") + (" with changes" if r["uncommitted_changes"] else "")
        for r in dated
    )
    days = dict.fromkeys((dated[0]["date"][:10], dated[-1]["date"][:10]))
    text = (
        f"{record['device_name']} ({record['device']}{isa}), {', '.join(map(str, threads))}"
        f" thread{'' if threads == [1] else 's'}, torch {', '.join(versions)},"
        f" commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}, {' to '.join(days)}."
    )
    if record["smoke"]:
        text += " Smoke run: sizes too small to say anything about speed."
    return text
