"""Metrics, confidence intervals, calibration and the paper's four-row table."""

from __future__ import annotations

from nnmf_cuda.evaluation.calibration import (
    ReliabilityCurve,
    expected_calibration_error,
    reliability_curve,
)
from nnmf_cuda.evaluation.certificates import ABSTAINED, Certificate, certify
from nnmf_cuda.evaluation.comparisons import AUCComparison, McNemarResult, delong, mcnemar
from nnmf_cuda.evaluation.denoising import denoising_error
from nnmf_cuda.evaluation.inference import predict_probabilities
from nnmf_cuda.evaluation.intervals import (
    BootstrapIntervals,
    Interval,
    bootstrap_interval,
    bootstrap_mean,
    paired_bootstrap,
    percentile_intervals,
)
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
from nnmf_cuda.evaluation.resampling import NoResampleError, ResampledMetrics, resample_metrics
from nnmf_cuda.evaluation.rows import (
    ROW_NAMES,
    EvaluatedRows,
    evaluate_rows,
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
