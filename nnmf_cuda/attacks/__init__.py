"""Attacks on feature classifiers: how far accuracy falls within a small perturbation."""

from __future__ import annotations

from nnmf_cuda.attacks.autoattack import AttackResult, run_autoattack
from nnmf_cuda.attacks.checks import gradient_report

__all__ = ["AttackResult", "gradient_report", "run_autoattack"]
