"""How robust a saved model is: twenty points that an honest evaluation answers.

`subject` is what is evaluated and `efforts` what may be spent on it; `curves` and `checks` measure
single things, `baselines` are compared with, `pixels` attacks images end to end; `evaluation` does
all of it and returns `findings`; `points` turns these into the twenty answers, `standing` into the
verdict, and `cautions` says what speaks against believing them.
"""

from __future__ import annotations

from nnmf_cuda.robustness.budgets import EFFORTS, Effort
from nnmf_cuda.robustness.evaluate import Robustness, evaluate_robustness
from nnmf_cuda.robustness.saved_run import Subject, save_features

__all__ = ["EFFORTS", "Effort", "Robustness", "Subject", "evaluate_robustness", "save_features"]
