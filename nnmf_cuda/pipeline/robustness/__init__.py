"""How robust a saved model is: twenty points that an honest evaluation answers.

`subject` is what is evaluated, `curves` and `checks` measure single things, `pixels` attacks images
end to end, `points` turns what was found into the twenty answers, `evaluation` does all of it.
"""

from __future__ import annotations

from nnmf_cuda.pipeline.robustness.evaluation import (
    EFFORTS,
    Effort,
    Robustness,
    evaluate_robustness,
)
from nnmf_cuda.pipeline.robustness.subject import Subject, save_features

__all__ = [
    "EFFORTS",
    "Effort",
    "Robustness",
    "Subject",
    "evaluate_robustness",
    "save_features",
]
