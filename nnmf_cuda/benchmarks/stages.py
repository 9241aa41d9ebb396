"""The paper's table of seconds a stage, measured here."""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnmf_cuda.benchmarks.records import append_json_line

if TYPE_CHECKING:
    from nnmf_cuda.pipeline.config import ExperimentConfig

__all__ = ["run_stage_benchmarks"]


def run_stage_benchmarks(
    *,
    data: str | None = None,
    device: str = "cpu",
    json_path: str | Path | None = None,
    config: ExperimentConfig | None = None,
    progress: bool = False,
) -> str:
    """Run the experiment in a temporary folder and return its stage table.

    Parameters
    ----------
    data : str, optional
        As for ``nnmf-cuda run``; the phantom by default.
    device : str, default="cpu"
        Where to compute.
    json_path : path, optional
        A record is appended to this file as a line of JSON: ``op`` "stages", ``rows`` (as in
        ``timings.json``), ``source``, ``synthetic``, ``environment``, ``date``.
    config : ExperimentConfig, optional
        Other settings than the preset ``paper``; its data are replaced by ``data``.
    progress : bool, default=False
        Whether to show progress bars, on a terminal.

    Returns
    -------
    str
        The table, with the paper's columns beside ours.
    """
    from dataclasses import replace

    from nnmf_cuda.pipeline.config import PRESETS, DataConfig
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.pipeline.experiment import run_experiment
    from nnmf_cuda.report import timings_table

    config = replace(config or PRESETS["paper"], data=DataConfig(path=data))
    with tempfile.TemporaryDirectory(prefix="nnmf-cuda-bench-") as folder:
        out = Path(folder) / "run"
        experiment = run_experiment(
            config,
            out=out,
            config_yaml="",
            device=resolve_device(device),
            progress=progress,
        )
        environment: dict[str, Any] = json.loads((out / "environment.json").read_text("utf-8"))
    if json_path is not None:
        record = {
            "op": "stages",
            "rows": experiment.timings["rows"],
            "source": experiment.model.info["source"],
            "synthetic": experiment.model.info["synthetic"],
            "environment": environment,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        append_json_line(json_path, record)
    return timings_table(experiment.timings)
