"""Attacks on feature classifiers: how far accuracy falls within a small perturbation."""

from __future__ import annotations

from nnmf_cuda.attacks.autoattack import AttackResult, run_autoattack
from nnmf_cuda.attacks.checks import gradient_report
from nnmf_cuda.attacks.comparison import AttackComparison, compare_attacks
from nnmf_cuda.attacks.outcomes import AttackOutcome, SuiteResult
from nnmf_cuda.attacks.suite import BUDGETS, Budget, run_suite
from nnmf_cuda.attacks.vector_apgd import vector_apgd
from nnmf_cuda.attacks.vector_square import vector_square

__all__ = [
    "BUDGETS",
    "AttackComparison",
    "AttackOutcome",
    "AttackResult",
    "Budget",
    "SuiteResult",
    "compare_attacks",
    "gradient_report",
    "run_autoattack",
    "run_suite",
    "vector_apgd",
    "vector_square",
]
