"""How robust a saved model is: twenty points that an honest evaluation answers.

`saved_run` is what is evaluated and `budgets` what may be spent on it; `diagnostics` measures
whether attacks could have succeeded, `baselines` are compared with, `pixels` attacks images end to
end; `evaluate` does all of it, and `points` puts it into words. `verify` proves what it can of a
`verification_task`, by `branch_and_bound`, with what `rounding` can do counted, and returns a
`verification`; `export` is for the verifiers of others.
"""

from __future__ import annotations

from nnmf_cuda.evaluation.ceiling import Ceiling, ceiling
from nnmf_cuda.robustness.budgets import EVALUATION_BUDGETS, EvaluationBudget
from nnmf_cuda.robustness.evaluate import Robustness, evaluate_robustness
from nnmf_cuda.robustness.export import export_onnx, export_vnnlib
from nnmf_cuda.robustness.saved_run import SavedRun, save_features
from nnmf_cuda.robustness.verification import Status, Verification
from nnmf_cuda.robustness.verification_task import right_answers, weights_to_verify
from nnmf_cuda.robustness.verify import verify

__all__ = [
    "EVALUATION_BUDGETS",
    "Ceiling",
    "EvaluationBudget",
    "Robustness",
    "SavedRun",
    "Status",
    "Verification",
    "ceiling",
    "evaluate_robustness",
    "export_onnx",
    "export_vnnlib",
    "right_answers",
    "save_features",
    "verify",
    "weights_to_verify",
]
