"""Reliability curves on predictions whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest

from nnmf_cuda.evaluation import expected_calibration_error, reliability_curve


def _two_columns(p1):
    return np.stack([1 - np.asarray(p1), p1], axis=1)


def test_reliability_curve_by_hand():
    curve = reliability_curve([0, 1, 0, 1, 1], _two_columns([0.1, 0.15, 0.62, 0.68, 1.0]), n_bins=5)
    np.testing.assert_allclose(curve.predicted, [0.125, 0.65, 1.0])
    np.testing.assert_allclose(curve.observed, [0.5, 0.5, 1.0])
    np.testing.assert_array_equal(curve.counts, [2, 2, 1])
    error = expected_calibration_error(
        [0, 1, 0, 1, 1], _two_columns([0.1, 0.15, 0.62, 0.68, 1.0]), n_bins=5
    )
    assert error == pytest.approx((0.375 * 2 + 0.15 * 2) / 5)


def test_calibrated_predictions_have_small_error_and_overconfident_ones_large(rng):
    p1 = rng.uniform(size=20000)
    labels = (rng.uniform(size=20000) < p1).astype(int)
    assert expected_calibration_error(labels, _two_columns(p1)) < 0.02
    overconfident = np.where(p1 > 0.5, 0.999, 0.001)
    # The true shares are 0.75 and 0.25.
    assert expected_calibration_error(labels, _two_columns(overconfident)) == pytest.approx(
        0.249, abs=0.02
    )


def test_multiclass_uses_the_predicted_class():
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    curve = reliability_curve([0, 1, 2, 1], p)
    np.testing.assert_allclose(curve.predicted, [0.8])
    np.testing.assert_allclose(curve.observed, [0.75])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="n_bins=0"):
        reliability_curve([0, 1], _two_columns([0.1, 0.9]), n_bins=0)
    with pytest.raises(ValueError, match="no sample of class"):
        reliability_curve([1, 1], _two_columns([0.1, 0.9]))
