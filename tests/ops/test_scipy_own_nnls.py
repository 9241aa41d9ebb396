"""scipy's own tests of its nnls, from the installed scipy, run on ours."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from numpy.typing import NDArray

from nnmf_cuda import ops

own = pytest.importorskip("scipy.optimize.tests.test_nnls", reason="scipy has no tests installed")

NOT_OURS = {
    "test_maxiter": "ours has no maxiter: it ends by itself",
    "test_atol_deprecation_warning": "an argument of scipy's",
}
ONLY_DISTANCES = {
    "test_nnls_gh21021_ex1": "more variables than rows: other x are as good",
    "test_gh_22791_32bit": "more variables than rows: other x are as good",
    "test_2D_singleton_RHS_input": "wants a distance of 0.0 to the last bit",
}
NAMES = [name for name in vars(own.TestNNLS) if name.startswith("test") and name not in NOT_OURS]
Answer = tuple[NDArray[np.float64], float]


def dense(A: Any, b: Any) -> NDArray[np.float64]:
    return ops.nnls_dense(torch.tensor(A), torch.tensor(b)).numpy()


def gram(A: Any, b: Any) -> NDArray[np.float64]:
    matrix, target = torch.tensor(A), torch.tensor(b)
    return ops.nnls(matrix.mT @ matrix, target @ matrix).numpy()


def projected(A: Any, b: Any) -> NDArray[np.float64]:
    return ops.project(torch.tensor(b), torch.tensor(A).mT.contiguous()).numpy()


@pytest.mark.parametrize("function", [dense, gram, projected])
@pytest.mark.parametrize("name", NAMES)
def test_scipys_own(name: str, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its assertions hold, and on all its problems the distance is scipy's."""
    distances, scipys, scale = [], [], 1.0

    def nnls(A: Any, b: Any, maxiter: int | None = None) -> Answer:
        nonlocal scale
        A, b = np.asarray(A, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if b.ndim == 2 and b.shape[1] == 1:
            b = b[:, 0]
        if b.ndim != 1:
            raise ValueError("Expected a 1D array")
        x = function(A, b)
        assert (x >= 0).all()
        distances.append(float(np.linalg.norm(A @ x - b)))
        scipys.append(scipy.optimize.nnls(A, b, maxiter=100 * A.shape[1])[1])
        scale = max(scale, float(np.linalg.norm(b)))
        return x, distances[-1]

    monkeypatch.setattr(own, "nnls", nnls)
    tests = own.TestNNLS()
    tests.setup_method()
    with suppress(AssertionError) if name in ONLY_DISTANCES else nullcontext():
        getattr(tests, name)()
    assert distances or name == "test_2D_not_singleton_RHS_input_2"
    np.testing.assert_allclose(distances, scipys, rtol=1e-12, atol=1e-12 * scale)
