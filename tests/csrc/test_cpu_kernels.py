"""What is particular to the compiled CPU kernels: tiles, panels, threads, their own checks."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import nnmf_cuda.ops  # noqa: F401  (defines the ops)
from nnmf_cuda import _extension, reference
from nnmf_cuda.reference.nnmf import as_float
from tests.helpers import INSTRUCTION_SETS, run_with_instruction_set

pytestmark = pytest.mark.needs_ext

BETA_LOSSES = [2.0, 1.0, 0.0, -1.2, -4.0, 0.5, 1.5, 3.0]


def problem(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, *, pixels: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + f + k)
    X = torch.rand((n, f), generator=generator, dtype=dtype) + 0.1
    if pixels:
        X = torch.randint(1, 256, (n, f), generator=generator, dtype=torch.uint8)
    W = torch.rand((batch, n, k), generator=generator, dtype=dtype) + 0.1
    H = torch.rand((batch, k, f), generator=generator, dtype=dtype) + 0.1
    return X, W, H


# One entry more or less than a panel (8 rows with AVX-512, else 4), what one task updates (16), a
# float64 sum (256 rows, 64 tiles), a tile (48, 24 or 12 columns), a chunk of tiles (8); components
# above and below the groups that registers hold (3 and 8).
@pytest.mark.parametrize(
    ("batch", "n", "f", "k"),
    [
        *((1, n, 49, 7) for n in (1, 7, 8, 9, 15, 17, 33, 255, 257, 519)),
        *((1, 9, f, 5) for f in (1, 11, 12, 13, 23, 25, 47, 48, 95, 97, 383, 385, 1537, 3073)),
        *((1, 18, 50, k) for k in (1, 2, 3, 4, 6, 8, 9, 15, 16, 17, 40, 128, 131)),
        (2, 33, 255, 3),
        (3, 65, 129, 2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, 0.5])
def test_edges_of_tiles(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, beta_loss: float
) -> None:
    X, W, H = problem(batch, n, f, k, dtype, pixels=(n + f) % 2 == 1)
    options = {"beta_loss": beta_loss, "n_iter": 2, "compute_divergence": True}
    got = torch.ops.nnmf_cuda.nnmf_mu(X, W, H, **options)
    exact_X = as_float(X, dtype).double()
    wanted = reference.nnmf_mu(exact_X, W.double(), H.double(), **options)
    # Two iterations of well-conditioned sums of positive numbers: some tens of roundings.
    rtol = 5e-6 if dtype == torch.float32 else 1e-13
    for ours, truth in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=rtol, atol=0)
    exact = reference.nnmf_divergence(
        exact_X, got[0].double(), got[1].double(), beta_loss=beta_loss
    )
    # W H is rounded to the precision of the factors: all that is left of an exact fit.
    atol = (1e-13 if dtype == torch.float32 else 1e-15) * n * f
    torch.testing.assert_close(got[2], exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_any_beta_loss(dtype: torch.dtype, beta_loss: float) -> None:
    test_edges_of_tiles(2, 19, 101, 5, dtype, beta_loss)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_any_beta_loss_with_a_floor_and_held_rows(
    dtype: torch.dtype, beta_loss: float, pixels: bool
) -> None:
    X, W, H = problem(2, 19, 101, 5, dtype, pixels=pixels)
    floor = (W[0] @ H[0]).median().item()  # in the way of half of the entries
    options = {"beta_loss": beta_loss, "floor": floor}
    got = torch.ops.nnmf_cuda.nnmf_mu(X, W, H, n_iter=2, n_fixed=2, **options)
    exact_X = as_float(X, dtype).double()
    wanted = reference.nnmf_mu(exact_X, W.double(), H.double(), n_iter=2, n_fixed=2, **options)
    rtol = 2e-5 if dtype == torch.float32 else 1e-12
    for ours, truth in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=rtol, atol=0)
    assert torch.equal(got[1][:, :2], H[:, :2])
    divergence = torch.ops.nnmf_cuda.nnmf_divergence(X, *got[:2], **options)
    exact = reference.nnmf_divergence(exact_X, got[0].double(), got[1].double(), **options)
    torch.testing.assert_close(divergence, exact, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    if isa == _extension.cpu_isa():
        pytest.skip(f"{isa} is what the other tests run")
    this = "tests/csrc/test_cpu_kernels.py"
    chosen = "test_edges or test_any_beta or zeros or divergence or coordinate or starts"
    options = ("-m", "pytest", "-q", "-p", "no:cacheprovider", this, "-k", chosen)
    done = run_with_instruction_set(isa, *options)
    assert done.returncode == 0, done.stdout[-3000:]


def test_unknown_instruction_set_is_named() -> None:
    command = [sys.executable, "-c", "from nnmf_cuda import _extension; _extension.cpu_isa()"]
    environment = {**os.environ, "NNMF_CUDA_CPU_ISA": "sse9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "NNMF_CUDA_CPU_ISA=sse9 is not an instruction set" in done.stderr


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.5])
def test_zeros_change_nothing_but_the_time(
    dtype: torch.dtype, beta_loss: float, pixels: bool
) -> None:
    """Whole panels, tiles, a row, single entries; tiles of which only the last entry is left."""
    X, W, H = problem(1, 41, 700, 5, dtype)
    if pixels:
        X = (X * 200).to(torch.uint8)
    X[:, 100:290] = 0
    X[8:24, 300:] = 0
    X[33] = 0
    X[::3, ::5] = 0
    X[0, 300:350] = 0
    every_sixth = torch.arange(700) % 6 == 5  # the width of the narrowest tile
    X[:, 500:600] *= every_sixth[500:600]
    options = {"beta_loss": beta_loss, "n_iter": 3}
    got = torch.ops.nnmf_cuda.nnmf_mu(X, W, H, **options)
    wanted = reference.nnmf_mu(as_float(X, W.dtype).double(), W.double(), H.double(), **options)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, truth in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("op", ["nnmf_mu", "nnmf_hals", "nnmf_divergence"])
@pytest.mark.parametrize("pixels", [False, True])
def test_any_strides_give_the_same_bits(op: str, pixels: bool) -> None:
    X, W, H = problem(2, 37, 130, 4, torch.float32, pixels=pixels)
    wide = torch.zeros(2, 74, 200, dtype=X.dtype)
    wide[:, ::2, 30:160] = X
    views = [
        (X, wide[0, ::2, 30:160]),  # rows far apart
        (X, X.T.contiguous().T),  # columns far apart
        (X.expand(2, -1, -1).contiguous(), wide[:, ::2, 30:160]),
        (X.expand(2, -1, -1).contiguous(), X.expand(2, -1, -1)),
    ]
    call = getattr(torch.ops.nnmf_cuda, op)
    options = {"nnmf_hals": {"n_iter": 2}, "nnmf_divergence": {"beta_loss": 1.0}}.get(
        op, {"beta_loss": 1.0, "n_iter": 2}
    )
    for plain, strided in views:
        assert torch.equal(plain, strided)
        want, got = call(plain, W, H, **options), call(strided, W, H, **options)
        pairs = [(want, got)] if op == "nnmf_divergence" else list(zip(want[:2], got[:2]))  # noqa: B905
        assert all(torch.equal(a, b) for a, b in pairs)


def test_small_and_large_problems_of_a_batch_give_the_same_bits_as_alone() -> None:
    for n, f in ((20, 30), (300, 1100)):  # each on one thread; all threads together
        X, W, H = problem(3, n, f, 4, torch.float32)
        X = X.expand(3, -1, -1) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
        options = {"beta_loss": 1.0, "n_iter": 3, "compute_divergence": True}
        for data in (X, X[0]):
            together = torch.ops.nnmf_cuda.nnmf_mu(data, W, H, **options)
            for b in range(3):
                own = X[b] if data.dim() == 3 else data
                alone = torch.ops.nnmf_cuda.nnmf_mu(own, W[b : b + 1], H[b : b + 1], **options)
                assert all(torch.equal(a[b], o[0]) for a, o in zip(together, alone, strict=True))


# Frobenius sums of several starts are made together, from a copy of X: up to 128 / k starts, 64
# rows, 16 tiles at once.
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize(("n", "f", "k"), [(397, 2700, 3), (70, 15_100, 30), (261, 4032, 70)])
@pytest.mark.parametrize("op", ["nnmf_mu", "nnmf_hals"])
def test_starts_that_share_sums_get_the_bits_that_each_gets_alone(
    op: str, n: int, f: int, k: int, pixels: bool
) -> None:
    X, W, H = problem(6, n, f, k, torch.float32, pixels=pixels)
    X[:, 100:290] = 0
    X[8:24, 300:] = 0
    X[33] = 0
    call = getattr(torch.ops.nnmf_cuda, op)
    options = {"n_iter": 2} if op == "nnmf_hals" else {"n_iter": 2, "beta_loss": 2.0}
    for update_H in (True, False):
        together = call(X, W, H, **options, update_H=update_H)
        for b in range(6):
            alone = call(X, W[b : b + 1], H[b : b + 1], **options, update_H=update_H)
            assert torch.equal(together[0][b], alone[0][0])
            assert torch.equal(together[1][b], alone[1][0])
    if op == "nnmf_mu":  # from starts drawn like these coordinate descent is ill-conditioned
        exact = as_float(X, torch.float32).double()
        truth = reference.nnmf_mu(exact, W.double(), H.double(), **options)
        got = call(X, W, H, **options)
        for ours, true in zip(got[:2], truth[:2], strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0])
@pytest.mark.parametrize("misfit", [1e-4, 1e-2, 1.0, 30.0])
def test_divergence_keeps_its_digits_near_a_fit(
    dtype: torch.dtype, beta_loss: float, misfit: float
) -> None:
    """Terms of Kullback-Leibler are differences of numbers 1 / misfit times as large."""
    _, W, H = problem(1, 50, 333, 4, torch.float64)
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(50, 333, generator=generator, dtype=torch.float64) - 0.5
    X = ((W @ H)[0] * torch.exp(misfit * noise)).to(dtype)
    W, H = W.to(dtype), H.to(dtype)
    got = torch.ops.nnmf_cuda.nnmf_divergence(X, W, H, beta_loss=beta_loss)
    x, w, h = (t.numpy().astype(np.longdouble) for t in (X, W[0], H[0]))
    product = w @ h
    excess = (x - product) / product
    terms = {
        2.0: (x - product) ** 2 / 2,
        1.0: x * np.log1p(excess) - x + product,
        0.0: excess - np.log1p(excess),
    }
    want = float(terms[beta_loss].sum())
    # An error of W H of half an eps shifts every term by eps / misfit, with either sign.
    rtol = 4 * torch.finfo(dtype).eps * max(1.0, 1 / misfit)
    assert float(got) == pytest.approx(want, rel=rtol)


def test_denormals_are_zeros() -> None:
    """Not so in torch unless asked for; the thread's own setting is left alone."""
    X, W, H = problem(1, 20, 60, 2, torch.float32)
    tiny = torch.full((4,), 1e-40)
    W[0, :4, 0] = 1e-40
    got = torch.ops.nnmf_cuda.nnmf_mu(X, W, H, beta_loss=1.0, n_iter=1)[0]
    assert (got[0, :4, 0] == 0).all()
    assert (tiny * 0.5 > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "f", "k"), [(9, 47, 1), (33, 97, 8), (17, 390, 17), (300, 50, 3)])
def test_coordinate_descent_edges(dtype: torch.dtype, n: int, f: int, k: int) -> None:
    X, W, H = problem(1, n, f, k, dtype, pixels=n % 2 == 0)
    options = {"n_iter": 2, "n_inner": 2, "l1_reg_W": 0.1, "l2_reg_H": 0.3, "n_fixed": k // 3}
    got = torch.ops.nnmf_cuda.nnmf_hals(X, W, H, **options)
    exact_X = as_float(X, dtype).double()
    wanted = reference.nnmf_hals(exact_X, W.double(), H.double(), **options)
    for ours, truth in zip(got[:2], wanted[:2], strict=True):
        scale = float(truth.abs().max())
        atol = scale * (1e-4 if dtype == torch.float32 else 1e-12)
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(70, 600, 7), (300, 1100, 7)])  # small; starts together
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.5])
def test_number_of_threads_does_not_change_a_bit(
    beta_loss: float, shape: tuple[int, int, int]
) -> None:
    X, W, H = problem(2, *shape, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            options = {"beta_loss": beta_loss, "n_iter": 5, "compute_divergence": True}
            results.append(torch.ops.nnmf_cuda.nnmf_mu(X, W, H, **options))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_long_sums_keep_their_precision() -> None:
    """Numerators over 20 000 samples: no slower growth of the error than float64 sums allow."""
    X, W, H = problem(1, 20_000, 3, 2, torch.float32)
    got = torch.ops.nnmf_cuda.nnmf_mu(X, W, H, beta_loss=1.0, n_iter=1)
    wanted = reference.nnmf_mu(X.double(), W.double(), H.double(), beta_loss=1.0, n_iter=1)
    # 256 rows at a time are summed in float32: a plain float32 sum errs by 4e-6 here.
    torch.testing.assert_close(got[1].double(), wanted[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, W, H: (X, W[0], H), r"W must have 3 dimensions, got shape \(4, 2\)"),
        (lambda X, W, H: (X, W, H.double()), "H must have W's dtype Float, got Double"),
        (lambda X, W, H: (X.double(), W, H), "X must have W's dtype Float, got Double"),
        (lambda X, W, H: (X.half(), W.half(), H.half()), "W must be float32 or float64, got Half"),
        (lambda X, W, H: (X, W, H[:, :1]), r"H must have size 2 \(n_components of W\)"),
        (lambda X, W, H: (X[:3], W, H), r"X must have size 4 \(n_samples of W\)"),
        (lambda X, W, H: (X[:, :5], W, H), r"X must have size 6 \(n_features of H\)"),
        (lambda X, W, H: (torch.stack([X, X, X]), W, H), r"X must have size 1 \(batch of W\)"),
    ],
)
def test_op_names_the_wrong_argument(change, message: str) -> None:
    arguments = change(*problem(1, 4, 6, 2, torch.float32))
    for op, options in (("nnmf_mu", {"n_iter": 1}), ("nnmf_divergence", {})):
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.nnmf_cuda, op)(*arguments, beta_loss=1.0, **options)
