"""Other people's implementations of what we measure; each is imported only when it is asked for.

A peer starts from the same X, W and H and runs the same number of iterations. Where its public
function adds work that is not the iteration (a divergence before the first step, checks of the
input), its own update functions are called instead: the comparison then favours the peer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.case import Call, Implementation, Inputs, NotApplicableError
from bench.inputs import array, floats

__all__ = [
    "compile_for",
    "compiled",
    "hals_truth",
    "nmf_torch_hals",
    "nmf_torch_mu",
    "scipy_nnls",
    "scipy_project",
    "scipy_project_qr",
    "sklearn_cd",
    "sklearn_divergence",
    "sklearn_mu",
    "torchnmf_divergence",
    "torchnmf_mu",
]

Array = np.ndarray[Any, Any]


# torch.compile ---------------------------------------------------------------------------------


def compiled(build: Implementation) -> Implementation:
    """Return the implementation with its call compiled by `torch.compile`."""

    def compiled_build(inputs: Inputs) -> Call:
        device = next(v for v in inputs.values() if isinstance(v, Tensor)).device
        return compile_for(device, build(inputs))

    return compiled_build


def compile_for(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the sizes that `function` is called with first, which is when it happens."""
    _need_compiler(device)
    torch._dynamo.reset()  # sizes seen before would make the code a general one
    found: Callable[..., Any] = torch.compile(function, dynamic=False)
    return found


def _need_compiler(device: torch.device) -> None:
    """Raise NotApplicableError where `torch.compile` has nothing to compile with."""
    if device.type == "cuda":
        import importlib.util

        if importlib.util.find_spec("triton") is None:
            raise NotApplicableError("torch.compile needs Triton")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise NotApplicableError("torch.compile found no C++ compiler") from error


# scikit-learn ----------------------------------------------------------------------------------


def sklearn_mu(inputs: Inputs) -> Call:
    """Run the two update functions of ``NMF(solver="mu")``, without its initial divergence."""
    from sklearn.decomposition import _nmf

    X, start_W, start_H = (array(inputs[name]) for name in "XWH")
    beta_loss, n_iter = inputs["beta_loss"], inputs["n_iter"]
    # Positional: no penalty, and the exponent that is 1 for the divergences measured here.
    if not 1 <= beta_loss <= 2:
        raise NotApplicableError("measured for Kullback-Leibler and Frobenius only")
    options = (beta_loss, 0.0, 0.0, 1.0)

    def call() -> tuple[Array, Array]:
        W, H = start_W.copy(), start_H.copy()  # updated in place
        for _ in range(n_iter):
            W = _nmf._multiplicative_update_w(X, W, H, *options)[0]
            H = _nmf._multiplicative_update_h(X, W, H, *options)
            if beta_loss <= 1:
                H[H < np.finfo(np.float64).eps] = 0.0
        return W, H

    return call


def sklearn_cd(inputs: Inputs) -> Call:
    """Run the loop of ``NMF(solver="cd")``: coordinate descent, for Frobenius only."""
    from sklearn.decomposition import _nmf

    if inputs["beta_loss"] != 2:
        raise NotApplicableError("minimises Frobenius only")
    X, W, H = (array(inputs[name]) for name in "XWH")
    n_iter = inputs["n_iter"]

    def call() -> tuple[Array, Array]:
        new_W, new_H, _ = _nmf._fit_coordinate_descent(
            X, W.copy(), H.copy(), tol=0, max_iter=n_iter
        )
        return new_W, new_H

    return call


def sklearn_divergence(inputs: Inputs) -> Call:
    """Evaluate the divergence of ``NMF(solver="mu")``."""
    from sklearn.decomposition import _nmf

    X, W, H = (array(inputs[name]) for name in "XWH")
    beta_loss = inputs["beta_loss"]
    return lambda: _nmf._beta_divergence(X, W, H, beta_loss)


def hals_truth(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Sweep once over the components of W, then of H, in float64, `n_iter` times.

    w_t <- max(0, w_t + (X h_t - W H h_t) / ||h_t||^2) for one component t after the other
    (Cichocki & Phan 2009, algorithm 2): coordinate descent of scikit-learn and plain HALS alike.
    """
    X, W, H = inputs["X"], inputs["W"].double().clone(), inputs["H"].double().clone()
    X = X.double() / 255 if X.dtype == torch.uint8 else X.double()
    for _ in range(inputs["n_iter"]):
        _sweep(W, X @ H.mT, H @ H.mT)
        _sweep(H.mT, X.mT @ W, W.mT @ W)
    return W, H


def _sweep(factor: Tensor, cross: Tensor, gram: Tensor) -> None:
    for t in range(len(gram)):
        if gram[t, t] > 0:
            step = (cross[:, t] - factor @ gram[:, t]) / gram[t, t]
            factor[:, t] = (factor[:, t] + step).clamp_min(0)


# torchnmf --------------------------------------------------------------------------------------


def torchnmf_mu(inputs: Inputs) -> Call:
    """Run the update function of ``torchnmf.nmf.NMF.fit`` on the transposed problem.

    torchnmf writes V = H W^T and updates W first. With V = X^T (laid out anew, untimed) its W is
    our W and its H our H^T, so the order of the updates is ours.
    """
    from torchnmf.nmf import NMF, _double_backward_update, _get_H_kl_positive, _get_W_kl_positive

    beta_loss, n_iter = inputs["beta_loss"], inputs["n_iter"]
    V = floats(inputs["X"]).T.contiguous()
    start_W, start_H = inputs["W"], inputs["H"].T.contiguous()
    if not 1 <= beta_loss <= 2:
        raise NotApplicableError("measured for Kullback-Leibler and Frobenius only")

    def call() -> tuple[Tensor, Tensor]:
        model = NMF(W=start_W, H=start_H)  # copies both
        W, H = model.W, model.H
        options = (beta_loss, 1.0, 0.0, 0.0)
        for _ in range(n_iter):
            sums = _get_W_kl_positive(H.detach()) if beta_loss == 1 else None
            _double_backward_update(V, model.reconstruct(H.detach(), W), W, *options, sums)
            sums = _get_H_kl_positive(W.detach()) if beta_loss == 1 else None
            _double_backward_update(V, model.reconstruct(H, W.detach()), H, *options, sums)
        return W.detach(), H.detach().T

    return call


def torchnmf_divergence(inputs: Inputs) -> Call:
    """Evaluate ``torchnmf.metrics.beta_div``."""
    from torchnmf.metrics import beta_div

    X, W, H = floats(inputs["X"]), inputs["W"], inputs["H"]
    beta_loss = inputs["beta_loss"]
    return lambda: beta_div(W @ H, X, beta_loss)


# nmf-torch -------------------------------------------------------------------------------------


def nmf_torch_mu(inputs: Inputs) -> Call:
    """Run the update methods of ``nmf.run_nmf(algo="mu")``, which cannot be given a start."""
    from nmf.nmf_models import NMFBatchMU

    return _nmf_torch(NMFBatchMU, inputs)


def nmf_torch_hals(inputs: Inputs) -> Call:
    """Run the update methods of ``nmf.run_nmf(algo="hals")``, which cannot be given a start."""
    from nmf.nmf_models import NMFBatchHALS

    return _nmf_torch(NMFBatchHALS, inputs, hals_max_iter=1)


def _nmf_torch(model_class: Any, inputs: Inputs, **options: Any) -> Call:
    X, start_W, start_H = (floats(inputs[name]) for name in "XWH")
    beta_loss, n_iter = inputs["beta_loss"], inputs["n_iter"]
    penalties = dict.fromkeys(("alpha_W", "l1_ratio_W", "alpha_H", "l1_ratio_H"), 0.0)

    def call() -> tuple[Tensor, Tensor]:
        model = model_class(
            n_components=start_W.shape[1],
            init="random",
            beta_loss=beta_loss,
            tol=0.0,
            random_state=0,
            fp_precision=X.dtype,
            device_type=X.device.type,
            **penalties,
            **options,
        )
        # What `fit` sets up, with our start; H and W are named the other way round there.
        model.X, model.H, model.W = X, start_W.clone(), start_H.clone()
        if beta_loss == 2:
            model._WWT, model._XWT = model.W @ model.W.T, X @ model.W.T
        for _ in range(n_iter):
            model._update_H()
            model._update_W()
        return model.H, model.W

    return call


# SciPy -----------------------------------------------------------------------------------------


def scipy_nnls(inputs: Inputs) -> Call:
    """Solve row by row; h G h - 2 c h is ||L^T h - L^-1 c||^2 less a constant, for G = L L^T."""
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    gram, cross = (array(inputs[name]).astype(np.float64) for name in ("gram", "cross"))

    def call() -> Array:
        lower = np.linalg.cholesky((gram + gram.T) / 2)
        targets = solve_triangular(lower, cross.T, lower=True).T
        return np.stack([nnls(lower.T, target)[0] for target in targets])

    return call


_MOST_ROWS = 512
"""Above this the plain loop takes many seconds a call, and says nothing that fewer rows do not."""


def scipy_project(inputs: Inputs) -> Call:
    """Call `scipy.optimize.nnls` for one image after the other, as one writes it first."""
    from scipy.optimize import nnls

    X, basis, scale = _pixels_and_basis(inputs)
    if len(X) > _MOST_ROWS:
        raise NotApplicableError(f"a loop over {len(X)} rows takes too long; see fewer rows")

    def call() -> Array:
        return np.stack([nnls(basis, x.astype(np.float64) / scale)[0] for x in X])

    return call


def scipy_project_qr(inputs: Inputs) -> Call:
    """Shrink the problems first: ||x - B h|| and ||Q^T x - R h|| have the same solution."""
    from scipy.optimize import nnls

    X, basis, scale = _pixels_and_basis(inputs)

    def call() -> Array:
        Q, R = np.linalg.qr(basis)
        targets = X.astype(np.float64) @ Q / scale
        return np.stack([nnls(R, target)[0] for target in targets])

    return call


def _pixels_and_basis(inputs: Inputs) -> tuple[Array, Array, float]:
    """Return X, the basis (n_features, n_components) in float64, and what X is divided by."""
    basis = array(inputs["H"]).T.astype(np.float64)
    X = inputs["X"].numpy()
    return X, np.ascontiguousarray(basis), 255.0 if X.dtype == np.uint8 else 1.0
