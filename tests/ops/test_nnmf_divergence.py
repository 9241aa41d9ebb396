from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from sklearn.decomposition._nmf import _beta_divergence

from nnmf_cuda import ops
from tests.helpers import BETA_LOSSES, DEVICES, factorisation


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_nnmf_divergence_equals_scikit_learn(
    device: str, dtype: torch.dtype, beta_loss: float
) -> None:
    X, W, H = factorisation(dtype=dtype, device=device)
    if beta_loss > 0:
        X[::3, ::5] = 0
    W[0] = 0  # a row where W H is zero and X is not
    if beta_loss < 0:
        W[0] = 1e-3  # there (W H)^beta is infinite at zero
    want = _beta_divergence(*(t.double().cpu().numpy() for t in (X, W, H)), beta_loss)
    got = ops.nnmf_divergence(X, W, H, beta_loss=beta_loss)
    assert got.dtype == torch.float64
    # W H is formed in X's dtype by some kernels; the sum is float64 everywhere.
    assert got.item() == pytest.approx(want, rel=1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
@pytest.mark.parametrize("floor", [0.5, 1e-12])
def test_nnmf_divergence_takes_any_floor(
    device: str, dtype: torch.dtype, beta_loss: float, floor: float, monkeypatch
) -> None:
    X, W, H = factorisation(dtype=dtype, device=device)
    X[::3, ::5] = 1e-9  # scikit-learn's zeros, at the lower floor counted as any number
    W[0] = 1e-3
    monkeypatch.setattr("sklearn.decomposition._nmf.EPSILON", floor)
    arrays = [t.double().cpu().numpy() for t in (X, W, H)]
    want = _beta_divergence(*arrays, beta_loss)
    if beta_loss < 0:  # there the power of W H alone has no floor
        WH = arrays[1] @ arrays[2]
        want += (np.maximum(WH, floor) ** beta_loss - WH**beta_loss).sum() / beta_loss
    got = ops.nnmf_divergence(X, W, H, beta_loss=beta_loss, floor=floor)
    assert got.item() == pytest.approx(want, rel=1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", ["dense", "sparse", "weighted", "reference"])
def test_nnmf_divergence_is_finite_where_the_fit_is_zero(device: str, form: str) -> None:
    X, W, H = factorisation(device=device)
    W[0] = 0
    options = {"weights": torch.ones_like(X)} if form == "weighted" else {}
    path = ops.reference_path() if form == "reference" else contextlib.nullcontext()
    with path:
        given = X.to_sparse_csr() if form == "sparse" else X
        got = ops.nnmf_divergence(given, W, H, beta_loss=-0.5, **options).item()
    WH = (W @ H).clamp_min(ops.EPSILON)
    terms = X**-0.5 + 0.5 * X * WH**-1.5 - 1.5 * WH**-0.5
    assert got == pytest.approx((terms / 0.75).sum().item(), rel=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_divergence_closed_forms(device: str) -> None:
    X = torch.tensor([[2.0]], dtype=torch.float64, device=device)
    one = torch.ones(1, 1, dtype=torch.float64, device=device)
    log2 = torch.tensor(2.0).double().log().item()
    for beta_loss, want in ((2.0, 0.5), (1.0, 2 * log2 - 1), (0.0, 2 - log2 - 1)):
        got = ops.nnmf_divergence(X, one, one, beta_loss=beta_loss).item()
        assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_nnmf_divergence_is_zero_at_the_truth(device: str, beta_loss: float) -> None:
    _, W, H = factorisation(device=device)
    got = ops.nnmf_divergence(W @ H, W, H, beta_loss=beta_loss)
    assert abs(got.item()) < 1e-9


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_divergence_of_a_batch_and_of_pixels(device: str) -> None:
    X, W, H = factorisation(batch=2, dtype=torch.float32, device=device)
    pixels = (X * 200).to(torch.uint8)
    got = ops.nnmf_divergence(pixels, W, H)
    assert got.shape == (2,)
    for b in range(2):
        want = ops.nnmf_divergence(pixels.float() / 255, W[b], H[b])
        assert got[b].item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_divergence_opcheck(device: str) -> None:
    X, W, H = factorisation(n=5, f=7, batch=2, device=device)
    for beta_loss in (0.5, 1.0, 2.0):
        torch.library.opcheck(
            torch.ops.nnmf_cuda.nnmf_divergence.default, (X, W, H), {"beta_loss": beta_loss}
        )


def test_nnmf_divergence_backward_raises() -> None:
    X, W, H = factorisation()
    with pytest.raises(RuntimeError, match="nnmf_divergence is not differentiable"):
        ops.nnmf_divergence(X, W.requires_grad_(), H).backward()


def test_nnmf_divergence_compiles_without_graph_breaks() -> None:
    X, W, H = factorisation()
    compiled = torch.compile(ops.nnmf_divergence, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X, W, H), ops.nnmf_divergence(X, W, H))


def test_nnmf_divergence_errors() -> None:
    X, W, H = factorisation()
    with pytest.raises(ValueError, match="H must have shape"):
        ops.nnmf_divergence(X, W, H[:, 1:])
    with pytest.raises(ValueError, match=r"floor must be .* number of float64, .* got -1"):
        ops.nnmf_divergence(X, W, H, floor=-1)
