"""Compare every op on a device with the same op on the CPU, on small awkward shapes.

Usage: python -m bench.parity JOURNAL [--device cuda]

What is right is the same call in float64 on the CPU. A result on the device may be four times as
far from it as that of the CPU in the same type, and a few roundings: `SLACK`.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from bench.journal import DEVICE_LOST, Journal, device_answers
from bench.op_calls import OpCall, op_calls

__all__ = ["SLACK", "compare", "output_errors"]

SLACK = {torch.float32: 2e-6, torch.float64: 1e-12}
"""By type: what an error may be whatever that of the CPU is, as a share of the largest value."""
_AS_ACCURATE = 4.0
_SECONDS = 30  # for one call, before it is given up


def compare(call: OpCall, device: str) -> tuple[float, float]:
    """Return the error of a call on a device, and what it may be, of its worst output.

    Both are largest differences from the call in float64, as shares of its largest value.
    """
    truth = call.in_float64()()
    on_cpu, on_device = (output_errors(found, truth) for found in (call(), call.on(device)()))
    allowed = [_AS_ACCURATE * error + SLACK[call.dtype] for error in on_cpu]
    worst = max(zip(on_device, allowed, strict=True), key=lambda pair: pair[0] / pair[1])
    return worst


def output_errors(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> list[float]:
    """Return the error of each output; infinite where its shape differs or a value is NaN."""
    errors = []
    for output, exact in zip(found, truth, strict=True):
        if output.shape != exact.shape or not bool(output.isfinite().all()):
            errors.append(float("inf"))
            continue
        expected = exact.detach().double()
        scale = float(expected.abs().max()) or 1.0
        errors.append(float((output.detach().cpu().double() - expected).abs().max()) / scale)
    return errors


def main() -> int:
    """Compare what the journal has not tried yet; each comparison is a line of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    journal = Journal(options.journal)
    tried, bad = journal.tried("parity"), 0
    for call in op_calls():
        if call.name in tried:
            continue
        error: float | None = None
        allowed: float | None = None
        message = ""
        with journal.trying("parity", call.name, seconds=_SECONDS):
            try:
                error, allowed = compare(call, options.device)
                outcome = "passed" if error <= allowed else "failed"
                message = "" if outcome == "passed" else f"error {error:.2g} above {allowed:.2g}"
            except Exception as failure:  # the others may be right
                outcome = "failed"
                message = f"{type(failure).__name__}: {failure}".splitlines()[0][:300]
        # JSON knows no infinity.
        error = None if error == float("inf") else error
        fields = {"op": call.ops[0], "what": call.name, "outcome": outcome, "message": message}
        journal.add("parity", **fields, error=error, allowed=allowed)
        bad += outcome == "failed"
        print(f"{outcome} {call.name} {message}", flush=True)
        if outcome == "failed" and not device_answers():
            return DEVICE_LOST
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
