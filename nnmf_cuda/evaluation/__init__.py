"""Metrics, confidence intervals, calibration and the paper's four-row table."""

from __future__ import annotations

from nnmf_cuda.evaluation.bootstrap import (
    BootstrapIntervals,
    Interval,
    NoResampleError,
    ResampledMetrics,
    bootstrap_interval,
    bootstrap_mean,
    paired_bootstrap,
    percentile_intervals,
    resample_metrics,
)
from nnmf_cuda.evaluation.certificates import ABSTAINED, Certificate, certify
from nnmf_cuda.evaluation.comparisons import AUCComparison, McNemarResult, delong, mcnemar
from nnmf_cuda.evaluation.metrics import (
    CONFUSION_METRICS,
    METRIC_NAMES,
    ReliabilityCurve,
    check_every_class,
    classification_metrics,
    expected_calibration_error,
    majority_class_accuracy,
    metrics_from_confusion,
    reliability_curve,
    wilson_interval,
)
from nnmf_cuda.evaluation.paper import PAPER_METRICS, PAPER_TEST_COUNTS, PAPER_TIMINGS
from nnmf_cuda.evaluation.rows import (
    ROW_NAMES,
    EvaluatedRows,
    denoising_error,
    evaluate_rows,
    predict_probabilities,
)

__all__ = [
    "ABSTAINED",
    "CONFUSION_METRICS",
    "METRIC_NAMES",
    "PAPER_METRICS",
    "PAPER_TEST_COUNTS",
    "PAPER_TIMINGS",
    "ROW_NAMES",
    "AUCComparison",
    "BootstrapIntervals",
    "Certificate",
    "EvaluatedRows",
    "Interval",
    "McNemarResult",
    "NoResampleError",
    "ReliabilityCurve",
    "ResampledMetrics",
    "bootstrap_interval",
    "bootstrap_mean",
    "certify",
    "check_every_class",
    "classification_metrics",
    "delong",
    "denoising_error",
    "evaluate_rows",
    "expected_calibration_error",
    "majority_class_accuracy",
    "mcnemar",
    "metrics_from_confusion",
    "paired_bootstrap",
    "percentile_intervals",
    "predict_probabilities",
    "reliability_curve",
    "resample_metrics",
    "wilson_interval",
]
