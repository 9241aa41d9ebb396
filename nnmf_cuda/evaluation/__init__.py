"""Metrics, confidence intervals, calibration and the paper's four-row table."""

from __future__ import annotations

from nnmf_cuda.evaluation.bootstrap import (
    Interval,
    NoResampleError,
    ResampledMetrics,
    bootstrap_mean,
    resample_metrics,
)
from nnmf_cuda.evaluation.certificates import ABSTAINED, Certificate, certify
from nnmf_cuda.evaluation.comparisons import AUCComparison, McNemarResult, delong, mcnemar
from nnmf_cuda.evaluation.metrics import (
    METRIC_NAMES,
    METRICS,
    Metric,
    Metrics,
    ReliabilityCurve,
    classification_metrics,
    expected_calibration_error,
    majority_class_accuracy,
    reliability_curve,
    wilson_interval,
)
from nnmf_cuda.evaluation.paper import PAPER_METRICS, PAPER_TEST_COUNTS, PAPER_TIMINGS
from nnmf_cuda.evaluation.pixel_radius import PixelCertificate, certify_pixels
from nnmf_cuda.evaluation.rows import (
    ROW_NAMES,
    DenoisingError,
    EvaluatedRows,
    denoising_error,
    evaluate_rows,
    predict_probabilities,
)
from nnmf_cuda.evaluation.uncertainty import (
    Comparison,
    RowIntervals,
    Uncertainty,
    measure_uncertainty,
)

__all__ = [
    "ABSTAINED",
    "METRICS",
    "METRIC_NAMES",
    "PAPER_METRICS",
    "PAPER_TEST_COUNTS",
    "PAPER_TIMINGS",
    "ROW_NAMES",
    "AUCComparison",
    "Certificate",
    "Comparison",
    "DenoisingError",
    "EvaluatedRows",
    "Interval",
    "McNemarResult",
    "Metric",
    "Metrics",
    "NoResampleError",
    "PixelCertificate",
    "ReliabilityCurve",
    "ResampledMetrics",
    "RowIntervals",
    "Uncertainty",
    "bootstrap_mean",
    "certify",
    "certify_pixels",
    "classification_metrics",
    "delong",
    "denoising_error",
    "evaluate_rows",
    "expected_calibration_error",
    "majority_class_accuracy",
    "mcnemar",
    "measure_uncertainty",
    "predict_probabilities",
    "reliability_curve",
    "resample_metrics",
    "wilson_interval",
]
