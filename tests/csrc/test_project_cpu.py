"""What is particular to the compiled kernel of project: chunks, panels, strides, long sums."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops
from tests.helpers import INSTRUCTION_SETS, run_with_instruction_set

pytestmark = pytest.mark.needs_ext


def problem(
    n: int, f: int, k: int, *, batch: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Draw pixels (n, f) and components (batch, k, f)."""
    generator = torch.Generator().manual_seed(n + 7 * f + 13 * k)
    H = torch.rand((batch, k, f), generator=generator, dtype=dtype) ** 4
    W = torch.rand((n, k), generator=generator, dtype=dtype) - 0.3
    X = W @ H[0] + 0.1 * torch.rand((n, f), generator=generator, dtype=dtype)
    pixels = X.clamp_min(0) * 255 / X.max().clamp_min(1e-6)
    return pixels.to(torch.uint8), H


def exact(X: Tensor, H: Tensor) -> Tensor:
    X = X.double() / 255 if X.dtype == torch.uint8 else X.double()
    H = H.double()
    cross = X @ H.mT
    return ops.nnls(H @ H.mT, cross if cross.dim() == 3 else cross[None].expand(len(H), -1, -1))


# A chunk is 512 columns of float32 or 256 of float64, a panel 4 or 8 rows, a task 64; components
# come in threes.
@pytest.mark.parametrize(
    ("batch", "n", "f", "k"),
    [(1, 1, 1, 1), (2, 7, 255, 2), (1, 8, 256, 3), (3, 9, 257, 4), (1, 63, 511, 5), (1, 64, 512, 6)]
    + [(2, 65, 513, 7), (1, 129, 1030, 8), (1, 20, 4000, 33), (1, 3, 3, 1), (2, 17, 100, 64)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixels", [True, False])
def test_edges_of_chunks(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, pixels: bool
) -> None:
    X, H = problem(n, f, k, batch=batch, dtype=dtype)
    X = X if pixels else X.to(dtype) / 255
    got, want = torch.ops.nnmf_cuda.project(X, H)[0], exact(X, H)
    assert got.dtype == dtype
    # An ill-conditioned H H^T enlarges the rounding of the products.
    rtol = (1e-6 if dtype == torch.float32 else 1e-13) * (1 + 30 * (k > 5))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=rtol * float(want.max()))


def test_pixels_are_what_their_floats_are() -> None:
    X, H = problem(40, 2000, 6, dtype=torch.float64)
    floats = torch.ops.nnmf_cuda.project(X.double() / 255, H)[0]
    pixels = torch.ops.nnmf_cuda.project(X, H)[0]
    assert (floats == 0).any()
    torch.testing.assert_close(pixels, floats, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_sums_keep_their_precision(dtype: torch.dtype) -> None:
    """Products over 200 000 features: plain float32 sums in each lane err by 5e-7 here."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand((8, 200_000), generator=generator, dtype=dtype)
    H = torch.zeros((1, 2, 200_000), dtype=dtype)
    H[0, 0, :100_000] = 0.7
    H[0, 1, 100_000:] = 0.3
    got, want = torch.ops.nnmf_cuda.project(X, H)[0], exact(X, H)
    rtol = 2e-7 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=0)


def test_rows_may_lie_anywhere() -> None:
    X, H = problem(30, 600, 5)
    want = torch.ops.nnmf_cuda.project(X, H)[0]
    wide = torch.zeros(30, 1000, dtype=torch.uint8)
    wide[:, 37:637] = X
    apart = wide[:, 37:637]
    backwards = X.flip(1).contiguous().flip(1)
    transposed = X.T.contiguous().T
    batched = torch.stack([X, X.flip(0)], 1).transpose(0, 1)
    assert not apart.is_contiguous()
    assert not transposed.is_contiguous()
    for rows in (apart, backwards, transposed):
        assert torch.equal(torch.ops.nnmf_cuda.project(rows, H)[0], want)
    two = torch.ops.nnmf_cuda.project(batched, H.expand(2, -1, -1))[0]
    assert torch.equal(two[0], want[0])
    assert torch.equal(two[1], want[0].flip(0))
    same = torch.ops.nnmf_cuda.project(X[:1].expand(20, -1), H)[0]
    assert torch.equal(same, want[:, :1].expand(-1, 20, -1))


def test_pixels_are_not_copied() -> None:
    """Neither as floats nor side by side: 64 MB of pixels in a frame, answered within 16 MB."""
    code = """
import resource, torch
from nnmf_cuda import ops
X = torch.ones(4096, 20_000, dtype=torch.uint8)[:, 100:16484]
H = torch.rand(2, 16384)
ops.project(X[:100], H)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.project(X, H)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 16_000


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_number_of_threads_and_neighbours_do_not_change_a_bit(dtype: torch.dtype) -> None:
    X, H = problem(200, 1500, 7, batch=2)
    X = X.to(dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(torch.ops.nnmf_cuda.project(X, H)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.ops.nnmf_cuda.project(X[order], H)[0], results[0][:, order])
    for row in range(0, 200, 17):
        alone = torch.ops.nnmf_cuda.project(X[row : row + 1], H)[0]
        assert torch.equal(alone, results[0][:, row : row + 1])


def test_what_is_not_finite_stays_in_its_row() -> None:
    X, H = problem(20, 700, 4, dtype=torch.float64)
    X = X.double() / 255
    want = torch.ops.nnmf_cuda.project(X, H)[0]
    X[3, 699], X[11, 0] = torch.nan, torch.inf
    got = torch.ops.nnmf_cuda.project(X, H)[0]
    bad = torch.zeros(20, dtype=torch.bool)
    bad[[3, 11]] = True
    assert got[:, bad].isnan().all()
    assert torch.equal(got[:, ~bad], want[:, ~bad])
    H[0, 0, 0] = torch.nan
    assert torch.ops.nnmf_cuda.project(X, H)[0].isnan().all()


@pytest.mark.parametrize(("n", "f", "k", "batch"), [(0, 5, 2, 1), (5, 0, 2, 1), (5, 4, 0, 1)])
def test_empty(n: int, f: int, k: int, batch: int) -> None:
    got = torch.ops.nnmf_cuda.project(torch.ones(n, f), torch.ones(batch, k, f))[0]
    assert torch.equal(got, torch.zeros(batch, n, k))


VARIANT = """
import torch
from nnmf_cuda import ops
worst = 0.0
for f, k in ((1, 1), (255, 2), (513, 4), (3000, 15)):
    generator = torch.Generator().manual_seed(f)
    H = torch.rand(k, f, generator=generator) ** 4
    X = torch.randint(0, 256, (21, f), generator=generator, dtype=torch.uint8)
    for x in (X, X.float() / 255):
        wide = X.double() / 255
        want = ops.nnls(H.double() @ H.double().mT, wide @ H.double().mT)
        worst = max(worst, float((ops.project(x, H) - want).abs().max() / want.max()))
print(worst)
"""


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_gives_the_answer(isa: str) -> None:
    result = run_with_instruction_set(isa, "-c", VARIANT)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 5e-6


@pytest.mark.parametrize(
    ("X", "H", "message"),
    [
        (torch.ones(3, 4), torch.ones(2, 4), r"H must have 3 dimensions, got shape \(2, 4\)"),
        (torch.ones(3, 5), torch.ones(1, 2, 4), r"X must have size 4 \(n_features of H\)"),
        (torch.ones(2, 3, 4), torch.ones(1, 2, 4), r"X must have size 1 \(batch of H\)"),
        (torch.ones(3, 4).double(), torch.ones(1, 2, 4), "X must have H's dtype Float, got Double"),
        (torch.ones(3, 4).half(), torch.ones(1, 2, 4).half(), "H must be float32 or float64"),
        (torch.ones(4), torch.ones(1, 2, 4), "X must have 3 dimensions"),
    ],
)
def test_op_names_the_wrong_argument(X: Tensor, H: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.nnmf_cuda.project(X, H)[0]
