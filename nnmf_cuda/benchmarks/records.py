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
    "memory": (*_EVERY_RECORD, "x_bytes"),
    "break_even": _EVERY_RECORD,
    "equality": (*_EVERY_RECORD, "differences"),
    "stages": (*_PROBLEM_AND_MACHINE, *_STAGES),
}
"""What tables and figures read of a record, by suite."""


class Recorder:
    """Keep the records of one run, and append each to a file as soon as it is there.

    Parameters
    ----------
    suite : str
        Which benchmark: "kernels", "scaling", "convergence", "memory", "break_even", "equality",
        "stages".
    device : torch.device
        Where it runs.
    smoke : bool
        Whether the sizes are too small to say anything about speed.
    json_path : path, optional
        File of JSON lines.
    run : str, optional
        When the run began, of which these records are a part; now by default.

    Attributes
    ----------
    records : list of dict

    Raises
    ------
    ValueError
        If `json_path` is no place for a file: better now than after minutes of measuring.
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
            append_json_line(self._json_path, record)
        return record


def _require_place(path: Path) -> None:
    """Raise where no line can be appended to a file; its folder is made, the file is not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {path}: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"cannot write records to {path}; name a file that can be written")


def append_json_line(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append a record to a file of JSON lines, making its folder where there is none.

    It is on disk when this returns: whatever becomes of the process, the record stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(paths: Iterable[str | Path]) -> list[Record]:
    """Read the records of `Recorder` from files of JSON lines.

    Blank lines are passed over, and so are records without "suite": those of `gpu_check.sh` itself,
    and of an older layout.

    Raises
    ------
    ValueError
        If a file cannot be read, or a line of it is no JSON object or a record that lacks
        something.
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

    environment = describe_environment(device, data_sha256="")
    return {
        "device": str(device),
        "device_name": environment["device_name"],
        "gpu": describe_gpu(device) if device.type == "cuda" else None,
        "cpu_count": environment["cpu_count"],
        "cpu_isa": environment["cpu_isa"],
        "load_average": environment["load_average"][0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nnmf_cuda": environment["nnmf_cuda"],
        "commit": environment["commit"],
        "uncommitted_changes": environment["uncommitted_changes"],
    }


def describe_gpu(device: torch.device) -> Record:
    """Return what does not change while benchmarks run on a GPU.

    Returns
    -------
    dict
        ``name, compute_capability, sm_count, memory_bytes, l2_bytes, cuda`` (that torch was built
        with), and as the driver tells them ``driver``, ``max_sm_mhz``, ``max_memory_mhz`` and
        ``power_limit_watts``; see `ask_driver`.
    """
    properties = torch.cuda.get_device_properties(device)
    told = ask_driver(
        device,
        {
            "driver": lambda nvml, _: nvml.nvmlSystemGetDriverVersion(),
            "max_sm_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "max_memory_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(
                gpu, nvml.NVML_CLOCK_MEM
            ),
            "power_limit_watts": lambda nvml, gpu: (
                nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1e3
            ),
        },
    )
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **told,
    }


def ask_driver(
    device: torch.device, questions: Mapping[str, Callable[[Any, Any], float | str]]
) -> dict[str, float | str | None]:
    """Ask the driver of a GPU, through nvidia-ml-py.

    Parameters
    ----------
    device : torch.device
    questions : mapping of str to callable
        Each is called with the module ``pynvml`` and its handle of the GPU.

    Returns
    -------
    dict
        The answers by name; None where the driver does not tell, or nvidia-ml-py is not installed.
    """
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


def _versions(records: Sequence[Mapping[str, Any]]) -> str:
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
