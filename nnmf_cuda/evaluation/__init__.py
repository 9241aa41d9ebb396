"""Metrics, confidence intervals, calibration and the paper's four-row table."""

from __future__ import annotations

from nnmf_cuda.evaluation.calibration import (
    ReliabilityCurve,
    expected_calibration_error,
    reliability_curve,
)
from nnmf_cuda.evaluation.certificates import Certificate, certify
from nnmf_cuda.evaluation.denoising import denoising_error
from nnmf_cuda.evaluation.inference import predict_probabilities
from nnmf_cuda.evaluation.metrics import (
    CONFUSION_METRICS,
    METRIC_NAMES,
    check_every_class,
    classification_metrics,
    majority_class_accuracy,
    metrics_from_confusion,
    wilson_interval,
)
from nnmf_cuda.evaluation.paper import PAPER_METRICS, PAPER_TEST_COUNTS, PAPER_TIMINGS
from nnmf_cuda.evaluation.rows import (
    ROW_NAMES,
    EvaluatedRows,
    evaluate_rows,
)

__all__ = [
    "CONFUSION_METRICS",
    "METRIC_NAMES",
    "PAPER_METRICS",
    "PAPER_TEST_COUNTS",
    "PAPER_TIMINGS",
    "ROW_NAMES",
    "Certificate",
    "EvaluatedRows",
    "ReliabilityCurve",
    "certify",
    "check_every_class",
    "classification_metrics",
    "denoising_error",
    "evaluate_rows",
    "expected_calibration_error",
    "majority_class_accuracy",
    "metrics_from_confusion",
    "predict_probabilities",
    "reliability_curve",
    "wilson_interval",
]
