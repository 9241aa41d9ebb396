"""Our own cases; importing this registers them, in the order in which they are run."""

from __future__ import annotations

from nnmf_cuda.benchmarks.cases import (
    defence,
    extraction,
    factorization,
    projection,
    purification,
    training,
)
from nnmf_cuda.benchmarks.registry import register

for _module in (factorization, projection, extraction, purification, defence, training):
    for _case in _module.CASES:
        register(_case)
