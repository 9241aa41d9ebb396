"""Which problems show how the Kullback-Leibler updates scale."""

from __future__ import annotations

import torch

from nnmf_cuda.benchmarks.inputs import PAPER
from nnmf_cuda.benchmarks.registry import Size, get_cases
from nnmf_cuda.benchmarks.runner import Problem

__all__ = ["AXES", "scaling_problems", "thread_counts"]

AXES = {
    "n_samples": (94, 375, 1500, 3000),
    "n_features": (1024, 4096, 16384, 32768),
    "n_components": (1, 2, 4, 8, 15, 16, 32, 64, 128),
    "n_batch": (1, 4, 16),
}
"""What varies, and its values; the rest is as in the paper."""

_SMOKE = {"n_samples": 33, "n_features": 129, "n_components": 5}
_SMOKE_AXES = {
    "n_samples": (9, 33),
    "n_features": (65, 129),
    "n_components": (1, 5),
    "n_batch": (1, 3),
}


def scaling_problems(*, smoke: bool, threads: bool) -> list[Problem]:
    """Return the problems of every axis; with `threads` also one for each number of threads."""
    (case,) = get_cases(["nnmf_mu"])
    base, axes = (_SMOKE, _SMOKE_AXES) if smoke else (PAPER, AXES)

    def problem(axis: str, value: int | None = None, n_threads: int | None = None) -> Problem:
        shape = {**base, "n_iter": 2}
        if value is not None:
            shape[axis] = value
        size = Size(f"along {axis}", shape, "float32", {"beta_loss": 1.0, "axis": axis})
        return Problem(case, size, only=("ours",), threads=n_threads)

    found = [problem(axis, value) for axis, values in axes.items() for value in values]
    if threads:
        found += [problem("threads", n_threads=n) for n in thread_counts()]
    return found


def thread_counts() -> list[int]:
    """Return the powers of two below the number of threads in use, and that number."""
    most = torch.get_num_threads()
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
