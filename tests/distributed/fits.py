"""What the ranks of a team do in tests of fits, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from nnmf_cuda import NNMF
from nnmf_cuda.distributed import Shard
from tests.distributed.team import team_group

SHARES = {1: (37,), 2: (11, 26), 3: (20, 0, 17), 4: (0, 1, 30, 6)}
"""Rows of each rank: uneven, and none."""


@dataclass(frozen=True)
class Fit:
    """What a rank is to do with its rows, and what it had."""

    rows: Any
    parameters: dict[str, Any]
    call: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a rank has found."""

    W: np.ndarray
    H: np.ndarray
    objective: np.ndarray
    iterations: np.ndarray
    error: float
    features: np.ndarray

    @classmethod
    def of(cls, model: NNMF, features: Any) -> Found:
        return cls(
            model.W_,
            model.components_,
            model.objective_history_,
            model.objective_iterations_,
            model.reconstruction_err_,
            np.asarray(features),
        )


def fit_shard(fit: Fit) -> Found:
    model = NNMF(**fit.parameters)
    features = model.fit_transform(Shard(fit.rows, team_group()), **fit.call)
    return Found.of(model, features)


def slices(counts: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum(counts)
    return [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]


def fits_of(X: Any, counts: tuple[int, ...], parameters: dict[str, Any], **call: Any) -> list[Fit]:
    """Deal X and what belongs to its rows; H is given to all."""
    return [
        Fit(X[rows], parameters, {n: v if n == "H" else v[rows] for n, v in call.items()})
        for rows in slices(counts)
    ]


def check_equal(found: list[Found], X: Any, parameters: dict[str, Any], rtol: float, **call: Any):
    model = NNMF(**parameters)
    expected = Found.of(model, model.fit_transform(X, **call))
    scale = np.abs(expected.W).max(), np.abs(expected.H).max(), np.abs(expected.features).max()
    W = np.concatenate([one.W for one in found])
    features = np.concatenate([one.features for one in found])
    np.testing.assert_allclose(W, expected.W, rtol=rtol, atol=rtol * scale[0])
    np.testing.assert_allclose(features, expected.features, rtol=rtol, atol=rtol * scale[2])
    for one in found:
        np.testing.assert_array_equal(one.H, found[0].H)
        np.testing.assert_array_equal(one.objective, found[0].objective)
        np.testing.assert_allclose(one.H, expected.H, rtol=rtol, atol=rtol * scale[1])
        np.testing.assert_allclose(one.objective, expected.objective, rtol=rtol)
        np.testing.assert_array_equal(one.iterations, expected.iterations)
        assert one.error == pytest.approx(expected.error, rel=rtol)
