"""Attacks on feature classifiers: how far accuracy falls within a small perturbation."""

from __future__ import annotations

from nnmf_cuda.attacks.autoattack.run import (
    AttackComparison,
    AttackResult,
    compare_attacks,
    run_autoattack,
)
from nnmf_cuda.attacks.balls import Threat
from nnmf_cuda.attacks.checks import GradientReport, gradient_report
from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.attacks.random_search import vector_square
from nnmf_cuda.attacks.suite import (
    BUDGETS,
    Attack,
    AttackKind,
    AttackOutcome,
    Budget,
    SuiteResult,
    run_suite,
)

__all__ = [
    "BUDGETS",
    "Attack",
    "AttackComparison",
    "AttackKind",
    "AttackOutcome",
    "AttackResult",
    "Budget",
    "GradientReport",
    "SuiteResult",
    "Threat",
    "compare_attacks",
    "gradient_report",
    "run_autoattack",
    "run_suite",
    "vector_apgd",
    "vector_square",
]
