"""The five timings that say most of a GPU: ours, the reference, and ours in a CUDA graph.

Usage: python -m bench.headlines JOURNAL [--device cuda] [--smoke] [--seconds 0.3] [--run TIME]

Inputs are drawn on the device. Records are those of `bench.kernels`, without ceilings, and in the
journal as soon as a problem is done. Graphs come last: a capture that fails can leave the device's
queue unusable.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator

import torch

from bench.case import Case, Size
from bench.cases.defence import DEFENDED_LOGITS, DEFENDED_LOGITS_GRADIENT
from bench.cases.factorization import NNMF_MU
from bench.cases.projection import NNLS, PROJECT
from bench.inputs import PAPER
from bench.journal import DEVICE_LOST, Journal, device_answers
from bench.kernels import Problem, run_problems
from bench.predictions import GRAPH, problem_key

__all__ = ["HEADLINES", "problems"]

_SECONDS = 60  # for one problem, before it is given up
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
)
"""Cases and the sizes of each, the most valuable first."""


def problems(*, smoke: bool) -> Iterator[tuple[str, Problem]]:
    """Give what is timed, by name: first ours and the reference of all, then the graphs."""
    for only in (("reference", "ours"), ("ours", GRAPH)):
        for case, sizes in HEADLINES:
            for size in case.smoke[:1] if smoke else sizes:
                what = f"{problem_key(case.op, size.name, size.dtype)}: {', '.join(only)}"
                yield what, Problem(case, size, only=only, ceilings=False)


def main() -> int:
    """Time what the journal has not tried yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each implementation")
    parser.add_argument("--run", help="what all records of one check have in common: its begin")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    journal = Journal(options.journal)
    tried, bad = journal.tried("headlines"), 0
    for what, problem in problems(smoke=options.smoke):
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
