"""What is particular to the compiled kernel of nnls: lanes, blocks of rows, threads, rounding."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import INSTRUCTION_SETS, hard_bases, run_with_instruction_set

pytestmark = pytest.mark.needs_ext


def problem(n: int, k: int, *, signed: bool = True, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a basis (2 k + 1, k) and targets; every fourth variable is hardly ever free."""
    rng = np.random.default_rng([seed, n, k])
    shape = (2 * k + 1, k)
    A = rng.standard_normal(shape) if signed else rng.random(shape) ** 3
    weights = rng.standard_normal((n, k)) + 0.3 - 2.0 * (np.arange(k) % 4 == 3)
    return A, weights @ A.T + 0.1 * rng.standard_normal((n, len(A)))


def solve(A: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gram, cross = torch.tensor(A.T @ A), torch.tensor(targets @ A)
    h, residual = ops.nnls(gram, cross, return_residual=True)
    return h.numpy(), residual.numpy()


# Lanes are 2, 4 or 8 rows, tiles 2 or 4 variables, tasks 128 rows.
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 128])
@pytest.mark.parametrize("signed", [True, False])
def test_equals_scipy_at_the_edges_of_tiles(k: int, signed: bool) -> None:
    for n in (1, 7, 8, 9) if k > 20 else (1, 2, 7, 8, 9, 17, 127, 128, 129):
        A, targets = problem(n, k, signed=signed)
        h, residual = solve(A, targets)
        want = np.stack([scipy.optimize.nnls(A, target)[0] for target in targets])
        np.testing.assert_allclose(h, want, rtol=1e-6, atol=1e-9 * max(1.0, want.max()))
        assert residual.max() < 1e-12


@pytest.mark.parametrize("k", [4, 15, 40])
@pytest.mark.parametrize("name", list(hard_bases(4)))
def test_hard_problems_end_at_an_optimum(name: str, k: int) -> None:
    A = hard_bases(k)[name]
    rng = np.random.default_rng(1)
    # Where the Gram matrix is singular but for rounding, it says no more.
    rounding = 1e-11 if name == "condition 1e12" else 1e-13
    for targets in (rng.standard_normal((40, len(A))), rng.random((40, k)) @ A.T):
        h, residual = solve(A, targets)
        assert np.isfinite(h).all()
        assert (h >= 0).all()
        # Rounding moves G h by eps |G| |h|, which is what an ill-conditioned problem can ask for.
        scale = np.abs(A.T @ A).max() * h.sum(1) / np.maximum(np.abs(targets @ A).max(1), 1e-300)
        assert (residual <= rounding * k * np.maximum(scale, 1)).all()
        if "condition" not in name:
            got = np.linalg.norm(targets - h @ A.T, axis=1)
            want = [scipy.optimize.nnls(A, target)[1] for target in targets]
            # A Gram matrix knows a distance only up to the root of rounding.
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-6 * np.abs(targets).max())


def test_unbounded_and_indefinite_problems_end() -> None:
    gram = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[-1.0, 0], [0, -1]]])
    h = ops.nnls(gram, torch.ones(3, 5, 2))
    assert h.isfinite().all()
    assert (h >= 0).all()
    assert (h[0, :, 1] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_of_rows_and_variables_do_not_matter(dtype: torch.dtype) -> None:
    A, targets = problem(50, 7)
    gram, cross = torch.tensor(A.T @ A, dtype=dtype), torch.tensor(targets @ A, dtype=dtype)
    want = ops.nnls(gram, cross)
    # Powers of two round nothing, so the answer is the same to the last bit.
    units = 2.0 ** torch.arange(-12, 16, 4, dtype=dtype)
    got = ops.nnls(gram * units * units[:, None], cross * units * 2.0**20)
    assert torch.equal(got * units * 2.0**-20, want)


def gram_and_cross(batch: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    problems = [problem(n, k, seed=seed) for seed in range(batch)]
    gram = torch.tensor(np.stack([A.T @ A for A, _ in problems]))
    return gram, torch.tensor(np.stack([targets @ A for A, targets in problems]))


@pytest.mark.parametrize("k", [6, 15])
def test_number_of_threads_does_not_change_a_bit(k: int) -> None:
    gram, cross = gram_and_cross(3, 300, k)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            h = torch.ops.nnmf_cuda.nnls(gram, cross)[0]
            results.append((h, torch.ops.nnmf_cuda.nnls_backward(gram, h, cross)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("k", [1, 5, 15, 33])
def test_neighbours_do_not_change_a_bit_of_a_row(k: int) -> None:
    gram, cross = gram_and_cross(1, 150, k)
    cross[0, 20, 0] = torch.nan
    together = torch.ops.nnmf_cuda.nnls(gram, cross)[0]
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    shuffled = torch.ops.nnmf_cuda.nnls(gram, cross[:, order])[0]
    torch.testing.assert_close(shuffled, together[:, order], rtol=0, atol=0, equal_nan=True)
    for row in range(30):
        alone = torch.ops.nnmf_cuda.nnls(gram, cross[:, row : row + 1])[0]
        torch.testing.assert_close(
            alone, together[:, row : row + 1], rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("k", [1, 4, 9, 33])
def test_backward_equals_reference(k: int) -> None:
    gram, cross = gram_and_cross(2, 21, k)
    gram[1, :, 0] = gram[1, 0, :] = 0  # singular where that variable is free
    h = cross.clamp_min(0)
    got = torch.ops.nnmf_cuda.nnls_backward(gram, h, cross)
    want = reference.nnls_backward(gram, h, cross)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


VARIANT = """
import sys, numpy as np, scipy.optimize, torch
from nnmf_cuda import ops
worst = 0.0
for k in (1, 2, 3, 5, 8, 15, 18, 33):
    rng = np.random.default_rng(k)
    A, targets = rng.standard_normal((k + 3, k)), rng.standard_normal((37, k + 3))
    h = ops.nnls(torch.tensor(A.T @ A), torch.tensor(targets @ A)).numpy()
    want = np.stack([scipy.optimize.nnls(A, target)[0] for target in targets])
    worst = max(worst, np.abs(h - want).max() / want.max())
print(worst)
"""


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_gives_the_answer(isa: str) -> None:
    result = run_with_instruction_set(isa, "-c", VARIANT)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-9


@pytest.mark.parametrize(
    ("gram", "cross", "message"),
    [
        (
            torch.ones(1, 2, 2),
            torch.ones(3, 2),
            r"cross must have 3 dimensions, got shape \(3, 2\)",
        ),
        (torch.ones(2, 2, 2), torch.ones(1, 3, 2), r"gram must have size 1 \(batch\)"),
        (torch.ones(1, 2, 3), torch.ones(1, 3, 2), r"gram must have size 2 \(n_components\)"),
        (torch.ones(1, 2, 2).half(), torch.ones(1, 3, 2), "gram must be float32 or float64"),
    ],
)
def test_op_names_the_wrong_argument(gram: Tensor, cross: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.nnmf_cuda.nnls(gram, cross)[0]
    with pytest.raises(RuntimeError, match=message.replace("cross", "grad")):
        torch.ops.nnmf_cuda.nnls_backward(gram, cross, cross)
