"""Attacks on feature classifiers: how far accuracy falls within a small perturbation."""

from __future__ import annotations

from nnmf_cuda.attacks.autoattack import AttackResult, run_autoattack
from nnmf_cuda.attacks.checks import gradient_report
from nnmf_cuda.attacks.comparison import AttackComparison, compare_attacks

__all__ = [
    "AttackComparison",
    "AttackResult",
    "compare_attacks",
    "gradient_report",
    "run_autoattack",
]
