from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from nnmf_cuda import ops
from tests.helpers import DEVICES, factorisation


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_project_equals_scipy(device: str, dtype: torch.dtype) -> None:
    X, _, H = factorisation(n=20, f=60, k=7, dtype=dtype, device=device)
    h, residual = ops.project(X, H, return_residual=True)
    basis, rows = H.double().cpu().numpy(), X.double().cpu().numpy()
    want = np.stack([scipy.optimize.nnls(basis.T, row)[0] for row in rows])
    assert (want == 0).any()
    np.testing.assert_allclose(
        h.cpu().numpy(), want, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-10
    )
    assert residual.max() < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_project_recovers_weights(device: str) -> None:
    _, W, H = factorisation(device=device)
    torch.testing.assert_close(ops.project(W @ H, H), W, rtol=1e-9, atol=1e-9)


def wide_rows(k: int, f: int, pixels: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw components of both signs, more than features, and rows that they reach exactly."""
    rng = np.random.default_rng([k, f])
    X = torch.tensor(rng.standard_normal((3, f)), dtype=torch.float32)
    if pixels:
        X = torch.tensor(rng.integers(0, 256, (3, f)), dtype=torch.uint8)
    return X, torch.tensor(rng.standard_normal((k, f)), dtype=torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize(("k", "f"), [(100, 30), (140, 40), (280, 60)])
def test_wide_components_of_both_signs_reach_float32_rows(
    device: str, k: int, f: int, pixels: bool
) -> None:
    X, H = wide_rows(k, f, pixels)
    h = ops.project(X.to(device), H.to(device)).cpu().double()
    exact = X.double() / 255 if pixels else X.double()
    error = (h @ H.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_project_reads_uint8_as_pixels_and_batches(device: str) -> None:
    X, _, H = factorisation(batch=2, dtype=torch.float32, device=device)
    pixels = (X * 200).to(torch.uint8)
    shared = ops.project(pixels, H)
    own = ops.project(torch.stack([pixels, pixels]), H)
    torch.testing.assert_close(shared, own, rtol=1e-4, atol=1e-5)
    for b in range(2):
        want = ops.project(pixels.float() / 255, H[b])
        torch.testing.assert_close(shared[b], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [None, 2])
def test_project_residual_is_that_of_every_row(batch: int | None) -> None:
    X, _, H = factorisation(n=600, f=20, k=4, batch=batch, dtype=torch.float32, seed=3)
    h, residual = ops.project(X, H, return_residual=True)
    H = H.double()
    cross = X.double() @ H.mT
    violation = torch.minimum(h, h.double() @ (H @ H.mT) - cross).abs()
    want = violation.amax(-1) / cross.abs().amax(-1)
    assert (want > 0).any()
    torch.testing.assert_close(residual, want, rtol=1e-6, atol=1e-14)
    empty, none = ops.project(X[:0], H.float(), return_residual=True)
    assert (empty.shape[-2], none.shape[-1]) == (0, 0)


def test_project_of_black_images_is_zero() -> None:
    _, _, H = factorisation()
    h, residual = ops.project(torch.zeros(2, 129, dtype=torch.float64), H, return_residual=True)
    assert torch.equal(h, torch.zeros_like(h))
    assert torch.equal(residual, torch.zeros_like(residual))


@pytest.mark.parametrize("batch", [None, 2])
def test_project_gradcheck(batch: int | None) -> None:
    X, _, H = factorisation(n=4, f=6, k=3, batch=batch, seed=4)
    h = ops.project(X, H)
    assert (h == 0).any()
    assert not ((h > 0) & (h < 1e-4)).any()
    assert torch.autograd.gradcheck(ops.project, (X.requires_grad_(), H.requires_grad_()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_project_opcheck(device: str, requires_grad: bool) -> None:
    X, _, H = factorisation(n=4, f=6, batch=2, device=device)
    pixels = (X * 200).to(torch.uint8)
    for image in (pixels, X.requires_grad_(requires_grad)):
        H = H.detach().requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.nnmf_cuda.project.default, (image, H))


def test_project_compiles_without_graph_breaks() -> None:
    X, _, H = factorisation()
    compiled = torch.compile(ops.project, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X, H), ops.project(X, H))


def test_project_errors() -> None:
    X, _, H = factorisation()
    with pytest.raises(ValueError, match="same number of features, got 128 and 129"):
        ops.project(X[:, 1:], H)
    with pytest.raises(TypeError, match="X must be float64 or uint8, got torch.float32"):
        ops.project(X.float(), H)
    with pytest.raises(ValueError, match="X must have 1 or 2 dimensions"):
        ops.project(X[None], H)
    with pytest.raises(ValueError, match="same batch size, got 3 and 2"):
        ops.project(torch.stack([X] * 3), torch.stack([H] * 2))
