"""The figures printed in the paper, for reading beside ours.

Al-kharsan & Rajkó, "Diffusion-Based Feature Denoising and Using NNMF for Robust Brain Tumor
Classification", Mach. Learn. Knowl. Extr. 2026, 8(4), 105, doi 10.3390/make8040105.
"""

from __future__ import annotations

from nnmf_cuda.evaluation.metrics import METRIC_NAMES
from nnmf_cuda.evaluation.rows import ROW_NAMES

PAPER_TEST_COUNTS = (97, 118)
"""Test images of the negative and of the positive class behind `PAPER_METRICS`."""

PAPER_METRICS: dict[str, dict[str, float]] = {
    row: dict(zip(METRIC_NAMES, values, strict=True))
    for row, values in zip(
        ROW_NAMES,
        (
            (0.8605, 0.8548, 0.8983, 0.8760, 0.7178, 0.8564, 0.9105, 0.1461, 0.4751),
            (0.8512, 0.8525, 0.8814, 0.8667, 0.6988, 0.8479, 0.8967, 0.1555, 0.4963),
            (0.0047, 0.0000, 0.0000, 0.0000, -0.9906, 0.0052, 0.0075, 0.4702, 1.1629),
            (0.5953, 0.6115, 0.7203, 0.6615, 0.1703, 0.5818, 0.7485, 0.2150, 0.6182),
        ),
        strict=True,
    )
}
"""The paper's table on its 215 test images: nine of our metrics, by name."""

PAPER_TIMINGS: dict[str, dict[str, float]] = {
    "nnmf_feature_extraction": {"cpu": 17.03, "gpu": 9.11},
    "cnn_training": {"cpu": 12.60, "gpu": 17.22},
    "denoiser_training": {"cpu": 8.42, "gpu": 9.24},
    "autoattack_baseline": {"cpu": 8.42, "gpu": 10.73},
    "autoattack_defended": {"cpu": 155.00, "gpu": 70.30},
    "total": {"cpu": 201.47, "gpu": 116.60},
}
"""The paper's seconds a stage, on its own hardware (MATLAB, then ONNX into PyTorch)."""
