"""The timings that say most of a GPU: ours, the reference, ours by each setting, in a graph.

Usage: python -m bench.headlines JOURNAL [--device cuda] [--smoke] [--seconds 0.3] [--run TIME]

Inputs are drawn on the device. Records are those of `bench.kernels`, without ceilings, and in the
journal as soon as a problem is done. A setting is an environment variable that the compiled part
reads once: its problems are timed by a process of their own (``--setting``), as "ours, SETTING".
Graphs come last: a capture that fails can leave the device's queue unusable.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.case import Case, Size
from bench.cases.bounds import CROWN_BOUNDS
from bench.cases.defence import DEFENDED_LOGITS, DEFENDED_LOGITS_GRADIENT
from bench.cases.factorization import NNMF_MU
from bench.cases.projection import NNLS, NNLS_DRIFT, PROJECT
from bench.cases.some_entries import NNMF_SPARSE_CD, NNMF_SPARSE_MU, NNMF_WEIGHTED_MU
from bench.inputs import PAPER
from bench.journal import DEVICE_LOST, Journal, device_answers
from bench.kernels import Problem, run_problems
from bench.predictions import GRAPH, problem_key

__all__ = ["HEADLINES", "SETTINGS", "VARIANTS", "Setting", "problems"]

_SECONDS = 60  # for one problem, before it is given up
_SETTING_SECONDS = 25  # for a process of a setting
_ROOT = Path(__file__).resolve().parents[1]
_PROJECTION = {**PAPER, "n_samples": 2048}

HEADLINES: tuple[tuple[Case, tuple[Size, ...]], ...] = (
    (NNMF_MU, NNMF_MU.cuda_sizes[:3]),
    (NNLS, NNLS.cuda_sizes[:1]),
    (
        PROJECT,
        (
            Size("drawn", _PROJECTION, "uint8"),
            Size("drawn", {**_PROJECTION, "n_samples": 215}, "float32"),
        ),
    ),
    (DEFENDED_LOGITS, DEFENDED_LOGITS.sizes),
    (DEFENDED_LOGITS_GRADIENT, DEFENDED_LOGITS_GRADIENT.sizes),
    (NNMF_MU, NNMF_MU.cuda_sizes[3:4]),
    (NNMF_WEIGHTED_MU, NNMF_WEIGHTED_MU.cuda_sizes),
    (NNMF_SPARSE_MU, NNMF_SPARSE_MU.cuda_sizes),
    (NNMF_SPARSE_CD, NNMF_SPARSE_CD.cuda_sizes),
    (CROWN_BOUNDS, CROWN_BOUNDS.cuda_sizes),
    (NNLS, NNLS.cuda_sizes[2:]),
    (NNLS_DRIFT, NNLS_DRIFT.sizes[:1]),
)
"""Cases and the sizes of each, the most valuable first."""

_IN_A_GRAPH = ("nnmf_mu", "nnls", "project", "defended_logits", "defended_logits_gradient")
"""Ops that are also timed in a CUDA graph."""
VARIANTS: Mapping[str, Mapping[str, int]] = {
    "ours, tf32x3": {"tensor": 1},
    "ours, components made ready": {"ready": 1},
    "ours, warm start": {"warm": 1},
}
"""Other ways of ours, which need no process of their own, and what the planner is told of them."""


@dataclass(frozen=True)
class Setting:
    """A choice that the compiled part offers by an environment variable.

    Attributes
    ----------
    name : str
        Such as "two rows a lane".
    environment : mapping of str to str
    problems : tuple of str
        The headlines that it changes, by `problem_key`.
    """

    name: str
    environment: Mapping[str, str]
    problems: tuple[str, ...]


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "two rows a lane",
        {"NNMF_CUDA_OWN_ROWS": "2"},
        ("nnmf_mu paper float32", "nnmf_mu paper uint8", "nnmf_mu problems float32"),
    ),
    Setting(
        "kernels one after the other",
        {"NNMF_CUDA_OVERLAP": "0"},
        ("nnmf_mu paper float32", "nnmf_mu paper uint8"),
    ),
    Setting(
        "small problems by tiles", {"NNMF_CUDA_RESIDENT": "0"}, ("nnmf_mu small problems float32",)
    ),
)
"""What a visit times beside what is standard; docs/gpu.md describes each variable."""


def problems(*, smoke: bool, setting: Setting | None = None) -> Iterator[tuple[str, Problem]]:
    """Give what is timed, by name: first ours and the reference of all, then the graphs.

    With a setting, ours alone, of the problems that it changes.
    """
    if setting is not None:
        for case, size in _sizes(smoke=smoke):
            key = problem_key(case.op, size.name, size.dtype)
            if key in setting.problems or (smoke and case is NNMF_MU):
                yield f"{key}: {setting.name}", Problem(case, size, only=("ours",), ceilings=False)
        return
    for only in (("reference", "ours", *VARIANTS), ("ours", GRAPH)):
        for case, size in _sizes(smoke=smoke):
            if GRAPH in only and case.op not in _IN_A_GRAPH:
                continue
            here = tuple(name for name in only if name in case.implementations)
            what = f"{problem_key(case.op, size.name, size.dtype)}: {', '.join(here)}"
            yield what, Problem(case, size, only=here, ceilings=False)


def _sizes(*, smoke: bool) -> Iterator[tuple[Case, Size]]:
    seen = set()
    for case, sizes in HEADLINES:
        for size in case.smoke[:1] if smoke else sizes:
            if smoke and case.op in seen:
                continue
            seen.add(case.op)
            yield case, size


def main() -> int:
    """Time what the journal has not tried yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each implementation")
    parser.add_argument("--run", help="what all records of one check have in common: its begin")
    parser.add_argument("--setting", choices=[one.name for one in SETTINGS])
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if options.setting is not None:
        (setting,) = (one for one in SETTINGS if one.name == options.setting)
        return _time(options, problems(smoke=options.smoke, setting=setting), setting)
    worst, settings_done = 0, False
    for what, problem in problems(smoke=options.smoke):
        if not settings_done and GRAPH in (problem.only or ()):
            worst, settings_done = max(worst, _time_settings(options)), True
        code = _time(options, iter([(what, problem)]), None)
        if code == DEVICE_LOST:
            return code
        worst = max(worst, code)
    return worst


def _time_settings(options: argparse.Namespace) -> int:
    """Time each setting that the journal has not tried, in a process that has it from the start."""
    journal, bad = Journal(options.journal), 0
    tried = journal.tried("settings")
    for setting in SETTINGS:
        if setting.name in tried:
            continue
        journal.add("trying", part="settings", what=setting.name)
        command = [sys.executable, "-m", "bench.headlines", *sys.argv[1:]]
        try:
            done = subprocess.run(
                [*command, "--setting", setting.name],
                cwd=_ROOT,
                env={**os.environ, **setting.environment},
                timeout=_SETTING_SECONDS,
            )
        except subprocess.TimeoutExpired:
            print(f"{setting.name}: out of time", flush=True)
            bad = 1
        else:
            bad = max(bad, int(done.returncode != 0))
    return bad


def _time(
    options: argparse.Namespace, chosen: Iterator[tuple[str, Problem]], setting: Setting | None
) -> int:
    journal = Journal(options.journal)
    tried, bad = journal.tried("headlines"), 0
    for what, problem in chosen:
        if what in tried:
            continue
        with journal.trying("headlines", what, seconds=_SECONDS):
            records = run_problems(
                [problem],
                suite="kernels",
                device=torch.device(options.device),
                min_run_seconds=options.seconds,
                smoke=options.smoke,
                json_path=journal.path,
                progress=False,
                run=options.run,
                setting=None if setting is None else setting.name,
            )
        failed = [r for r in records if r["status"] == "failed"]
        for record in records:
            shown = record["reason"] if record["median_ms"] is None else record["median_ms"]
            print(f"{what}: {record['impl']}: {shown}", flush=True)
        bad += len(failed)
        if failed and not device_answers():
            return DEVICE_LOST
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
