"""Sparse updates on the CPU: threads, instruction sets, several chunks of rows, and damaged X."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import INSTRUCTION_SETS, run_with_instruction_set

pytestmark = [
    pytest.mark.needs_ext,
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
]

SIZES = [(700, 300, 20), (700, 300, 5), (700, 300, 70)]


def large(n: int, f: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Draw X of more non-zeros than are summed at a time, dense; some rows are longer by far."""
    generator = torch.Generator().manual_seed(k)
    X = torch.rand(n, f, generator=generator) * 5
    X *= torch.rand(n, f, generator=generator) < torch.rand(n, 1, generator=generator)
    factors = (torch.rand(size, generator=generator) + 0.1 for size in ((n, k), (k, f)))
    X, W, H = (t.to(dtype) for t in (X, *factors))
    return X, W, H


CALLS = """
import sys, torch
from nnmf_cuda import ops
from tests.csrc.test_sparse_cpu import SIZES, large
found = []
for size in SIZES:
    for dtype in (torch.float32, torch.float64):
        X, W, H = large(*size, dtype)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sparse = X.to_sparse_csr()
            for beta_loss in (1.0, 2.0, 0.5):
                found.append(ops.nnmf_mu(sparse, W, H, beta_loss=beta_loss, n_iter=2,
                                         compute_divergence=True))
            found.append(ops.nnmf_hals(sparse, W, H, n_iter=2, l2_reg_W=50.0, l2_reg_H=50.0,
                                       compute_divergence=True))
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
            X, W, H = (t.double() for t in large(*size, dtype))
            assert (X > 0).sum() > 2 * 2**15
            got = [[next(found) for _ in range(4)] for _ in range(3)]
            for other in got[1:]:
                for one, same in zip(got[0], other, strict=True):
                    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
            want = [
                *(
                    reference.nnmf_mu(X, W[None], H[None], beta_loss=beta_loss, n_iter=2)
                    for beta_loss in (1.0, 2.0, 0.5)
                ),
                reference.nnmf_hals(X, W[None], H[None], n_iter=2, l2_reg_W=50.0, l2_reg_H=50.0),
            ]
            rtol = 2e-5 if dtype == torch.float32 else 1e-10
            for one, true in zip(got[0], want, strict=True):
                for found_one, true_one in zip(one[:2], true[:2], strict=True):
                    atol = rtol * float(true_one.max())
                    torch.testing.assert_close(found_one.double(), true_one[0], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("crow", 0, 1, "crow_indices must go from 0 to the number of values"),
        ("crow", 3, 7, "crow_indices must go from 0 to the number of values"),
        ("crow", 1, 6, "crow_indices must not fall, got 6, then 3"),
        ("col", 5, 4, "col_indices of row 2 must ascend, each there once, from 0 to below 4"),
        ("col", 0, -1, "col_indices of row 0 must ascend"),
        ("col", 4, 1, "col_indices of row 2 must ascend"),
        ("col", 4, 0, "col_indices of row 2 must ascend"),
    ],
)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_damaged_indices_are_refused(
    part: str, place: int, value: int, message: str, index: torch.dtype
) -> None:
    parts = {
        "crow": torch.tensor([0, 2, 3, 6], dtype=index),
        "col": torch.tensor([0, 3, 2, 1, 2, 3], dtype=index),
    }
    values, W, H = torch.ones(6), torch.ones(3, 2), torch.ones(2, 4)

    def calls() -> list[str]:
        X = torch.sparse_csr_tensor(
            parts["crow"], parts["col"], values, size=(3, 4), check_invariants=False
        )
        said = []
        for call in (
            lambda: ops.nnmf_mu(X, W, H, n_iter=1),
            lambda: ops.nnmf_hals(X, W, H, n_iter=1),
            lambda: ops.nnmf_divergence(X, W, H),
        ):
            try:
                call()
            except RuntimeError as error:
                said.append(str(error))
        return said

    assert calls() == []
    parts[part][place] = value
    said = calls()
    assert len(said) == 3
    assert all(re.search(re.escape(message), text) for text in said)
