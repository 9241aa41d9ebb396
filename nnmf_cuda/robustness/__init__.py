"""How robust a saved model is: twenty points that an honest evaluation answers.

`saved_run` is what is evaluated and `budgets` what may be spent on it; `diagnostics` measures
whether attacks could have succeeded, `baselines` are compared with, `pixels` attacks images end to
end; `evaluate` does all of it, and `points` puts it into words.
"""

from __future__ import annotations

from nnmf_cuda.evaluation.ceiling import Ceiling, ceiling
from nnmf_cuda.robustness.budgets import EVALUATION_BUDGETS, EvaluationBudget
from nnmf_cuda.robustness.evaluate import Robustness, evaluate_robustness
from nnmf_cuda.robustness.saved_run import SavedRun, save_features

__all__ = [
    "EVALUATION_BUDGETS",
    "Ceiling",
    "EvaluationBudget",
    "Robustness",
    "SavedRun",
    "ceiling",
    "evaluate_robustness",
    "save_features",
]
