"""Coordinate descent on the CPU: threads, instruction sets, very long rows, and damaged X."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops, reference
from nnmf_cuda.ops.nnmf_sparse import csr_tensor
from tests.helpers import INSTRUCTION_SETS, run_with_instruction_set

pytestmark = [
    pytest.mark.needs_ext,
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
]

SIZES = [(300, 200, 20), (150, 90, 1), (150, 90, 37)]


def drawn(n: int, f: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Draw counts, dense, in rows of all lengths from none to full, and a start with zeros."""
    generator = torch.Generator().manual_seed(k)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    X = (draw(n, f) * 5).ceil() * (draw(n, f) < draw(n, 1) ** 2)
    X[3], X[5] = 1, 0
    W, H = draw(n, k), draw(k, f) + 0.1
    W[draw(n, k) < 0.2] = 0
    return X.to(dtype), W.to(dtype), H.to(dtype)


def reference_of(X: Tensor, W: Tensor, H: Tensor, n_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the reference makes in float64."""
    parts = [t.double().contiguous().to_sparse_csr() for t in (X, X.mT)]
    parts = [t for p in parts for t in (p.crow_indices(), p.col_indices(), p.values())]
    factors = W.double()[None], H.double()[None]
    return reference.nnmf_sparse_cd(*parts, *factors, n_iter=n_iter, compute_divergence=True)


CALLS = """
import sys, torch
from nnmf_cuda import ops
from tests.csrc.test_sparse_cd_cpu import SIZES, drawn
found = []
for size in SIZES:
    for dtype in (torch.float32, torch.float64):
        X, W, H = drawn(*size, dtype)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.nnmf_cd(X.to_sparse_csr(), W, H, n_iter=2, compute_divergence=True))
torch.save(found, sys.argv[1])
"""


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_threads_and_instruction_sets(name: str, tmp_path: Path) -> None:
    """The same bits for any number of threads; the same factors by any instruction set."""
    path = tmp_path / "factors.pt"
    done = run_with_instruction_set(name, "-c", CALLS, str(path))
    assert done.returncode == 0, done.stderr
    found = iter(torch.load(path))
    for size in SIZES:
        for dtype in (torch.float32, torch.float64):
            got = [next(found) for _ in range(3)]
            for other in got[1:]:
                assert all(torch.equal(a, b) for a, b in zip(got[0], other, strict=True))
            want = reference_of(*drawn(*size, dtype), n_iter=2)
            rtol = 1e-3 if dtype == torch.float32 else 1e-10
            torch.testing.assert_close(got[0][2], want[2][0], rtol=rtol, atol=0)
            if dtype == torch.float64:  # else rounding turns one decision or another
                for one, true in zip(got[0][:2], want[:2], strict=True):
                    atol = 1e-8 * float(true.max())
                    torch.testing.assert_close(one, true[0], rtol=0, atol=atol)


@pytest.mark.parametrize("n_inner", [1, 2])
def test_rows_longer_than_what_is_gathered_at_once(n_inner: int) -> None:
    n, f, k = 2, 8300, 127
    assert f * k > 2**20
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, f, generator=generator, dtype=torch.float64).mul(9).ceil()
    X[1, 100:] = 0
    W = torch.rand(n, k, generator=generator, dtype=torch.float64)
    H = torch.rand(k, f, generator=generator, dtype=torch.float64)
    options = {"n_iter": 1, "n_inner": n_inner, "update_H": False, "l2_reg_W": 50.0}
    got = ops.nnmf_cd(X.to_sparse_csr(), W, H, **options)[0]
    with ops.reference_path():
        want = ops.nnmf_cd(X.to_sparse_csr(), W, H, **options)[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.max()))


@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("crow", 3, 7, "crow_indices must go from 0 to the number of values"),
        ("col", 5, 4, "col_indices of row 2 must ascend, each there once, from 0 to below 4"),
        ("ccol", 4, 7, "crow_indices must go from 0 to the number of values"),
        ("ccol", 1, 3, "crow_indices must not fall, got 3, then 2"),
        ("row", 5, 3, "col_indices of row 3 must ascend, each there once, from 0 to below 3"),
        ("row", 2, -1, "must ascend"),
    ],
)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_damaged_indices_are_refused(
    part: str, place: int, value: int, message: str, index: torch.dtype
) -> None:
    X = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 1, 1]])
    parts = {}
    for names, matrix in ((("crow", "col"), X), (("ccol", "row"), X.mT.contiguous())):
        sparse = matrix.to_sparse_csr()
        found = sparse.crow_indices(), sparse.col_indices()
        parts |= {name: t.to(index).clone() for name, t in zip(names, found, strict=True)}

    def call(*, alone: bool = False) -> None:
        rows = csr_tensor(parts["crow"], parts["col"], torch.ones(6), (3, 4))
        if alone:
            ops.nnmf_cd(rows, torch.ones(3, 2), torch.ones(2, 4), n_iter=1)
        columns = csr_tensor(parts["ccol"], parts["row"], torch.ones(6), (4, 3))
        ops.nnmf_cd(rows, torch.ones(3, 2), torch.ones(2, 4), n_iter=1, transposed=columns)

    call()
    parts[part][place] = value
    with pytest.raises(RuntimeError, match=message):
        call()
    if part in ("crow", "col"):  # of which X by columns is made
        with pytest.raises((RuntimeError, ValueError), match="ind(ices|ex)"):
            call(alone=True)
