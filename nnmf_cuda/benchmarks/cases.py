"""Our own cases: the five ops, against the reference and against scikit-learn and SciPy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda import ops, reference
from nnmf_cuda.benchmarks.registry import Call, Case, Inputs, NotApplicableError, Size, register

_PIXELS = 128 * 128
_PAPER = {"n_samples": 1501, "n_features": _PIXELS, "n_components": 15}


def _uniform(*shape: int, size: Size, seed: int, device: torch.device) -> Tensor:
    """Draw on the CPU, so that every device gets the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    if size.dtype == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    dtype = getattr(torch, size.dtype)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.01).to(device, dtype)


def _doubled(inputs: Inputs) -> dict[str, Any]:
    """Return the inputs in float64; integers (pixels, timesteps) stay."""

    def doubled(value: Any) -> Any:
        if isinstance(value, list):
            return [doubled(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return value

    return {name: doubled(value) for name, value in inputs.items()}


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    """Return a CPU tensor as an array, for a library that knows no other."""
    if value.device.type != "cpu":
        raise NotApplicableError("runs on the CPU only")
    return value.numpy()


def _float_array(value: Tensor) -> np.ndarray[Any, Any]:
    if value.dtype == torch.uint8:
        raise NotApplicableError("takes floating point only")
    return _array(value)


# nnmf_mu and nnmf_divergence -------------------------------------------------------------------


def _factor_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    factors = Size(size.name, size.shape, "float32" if size.dtype == "uint8" else size.dtype)
    return {
        "X": _uniform(n, f, size=size, seed=seed, device=device),
        "W": _uniform(n, k, size=factors, seed=seed + 1, device=device),
        "H": _uniform(k, f, size=factors, seed=seed + 2, device=device),
        "beta_loss": float(size.options["beta_loss"]),
        "n_iter": size.shape.get("n_iter", 0),
    }


def _nnmf_mu_ours(inputs: Inputs) -> Call:
    X, W, H = inputs["X"], inputs["W"], inputs["H"]
    options = {"beta_loss": inputs["beta_loss"], "n_iter": inputs["n_iter"]}
    return lambda: ops.nnmf_mu(X, W, H, **options)[:2]


def _nnmf_mu_reference(inputs: Inputs) -> Call:
    X, W, H = inputs["X"], inputs["W"][None], inputs["H"][None]
    options = {"beta_loss": inputs["beta_loss"], "n_iter": inputs["n_iter"]}

    def call() -> tuple[Tensor, Tensor]:
        new_W, new_H, _ = reference.nnmf_mu(X, W, H, **options)
        return new_W[0], new_H[0]

    return call


def _nnmf_mu_sklearn(inputs: Inputs) -> Call:
    from sklearn.decomposition import non_negative_factorization
    from sklearn.exceptions import ConvergenceWarning

    X, W, H = (_float_array(inputs[name]) for name in "XWH")
    options = {
        "n_components": W.shape[1],
        "init": "custom",
        "solver": "mu",
        "beta_loss": inputs["beta_loss"],
        "max_iter": inputs["n_iter"],
        "tol": 0,
    }

    def call() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # It updates W and H in place: copies keep the start the same.
            return non_negative_factorization(X, W=W.copy(), H=H.copy(), **options)[:2]

    return call


def _divergence_ours(inputs: Inputs) -> Call:
    X, W, H, beta_loss = (inputs[name] for name in ("X", "W", "H", "beta_loss"))
    return lambda: ops.nnmf_divergence(X, W, H, beta_loss=beta_loss)


def _divergence_reference(inputs: Inputs) -> Call:
    X, W, H, beta_loss = (inputs[name] for name in ("X", "W", "H", "beta_loss"))
    return lambda: reference.nnmf_divergence(X, W[None], H[None], beta_loss=beta_loss)[0]


KL, FROBENIUS = {"beta_loss": 1.0}, {"beta_loss": 2.0}

register(
    Case(
        op="nnmf_mu",
        sizes=(
            Size("paper", {**_PAPER, "n_iter": 2}, "float32", KL),
            Size("paper", {**_PAPER, "n_iter": 2}, "uint8", KL),
            Size("frobenius", {**_PAPER, "n_iter": 2}, "float32", FROBENIUS),
        ),
        smoke=Size(
            "smoke",
            {"n_samples": 33, "n_features": 129, "n_components": 5, "n_iter": 3},
            "float32",
            KL,
        ),
        inputs=_factor_inputs,
        truth=lambda inputs: _nnmf_mu_reference(_doubled(inputs))(),
        implementations={
            "reference": _nnmf_mu_reference,
            "ours": _nnmf_mu_ours,
            "scikit-learn": _nnmf_mu_sklearn,
        },
        # Sums over 16384 features in float32, in any order.
        tolerance={"float32": 1e-4, "float64": 1e-10},
    )
)

register(
    Case(
        op="nnmf_divergence",
        sizes=(Size("paper", _PAPER, "float32", KL), Size("paper", _PAPER, "uint8", KL)),
        smoke=Size("smoke", {"n_samples": 33, "n_features": 129, "n_components": 5}, "float32", KL),
        inputs=_factor_inputs,
        truth=lambda inputs: _divergence_reference(_doubled(inputs))(),
        implementations={"reference": _divergence_reference, "ours": _divergence_ours},
        tolerance={"float32": 1e-5, "float64": 1e-10},
    )
)


# nnls and project ------------------------------------------------------------------------------


def _nnls_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    n, k = size.shape["n_samples"], size.shape["n_components"]
    dtype = getattr(torch, size.dtype)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.rand(k, 4 * k, generator=generator, dtype=torch.float64)
    # About half of the coefficients end at zero.
    cross = torch.randn(n, k, generator=generator, dtype=torch.float64) @ (basis @ basis.mT)
    return {"gram": (basis @ basis.mT).to(device, dtype), "cross": cross.to(device, dtype)}


def _nnls_ours(inputs: Inputs) -> Call:
    gram, cross = inputs["gram"], inputs["cross"]
    return lambda: ops.nnls(gram, cross)


def _nnls_reference(inputs: Inputs) -> Call:
    gram, cross = inputs["gram"][None], inputs["cross"][None]
    return lambda: reference.nnls(gram, cross)[0]


def _nnls_scipy(inputs: Inputs) -> Call:
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    gram = _float_array(inputs["gram"]).astype(np.float64)
    cross = _float_array(inputs["cross"]).astype(np.float64)

    def call() -> np.ndarray[Any, Any]:
        # ||L^T h - L^-1 c||^2 = h G h - 2 c h + constant, with G = L L^T.
        lower = np.linalg.cholesky((gram + gram.T) / 2)
        targets = solve_triangular(lower, cross.T, lower=True).T
        return np.stack([nnls(lower.T, target)[0] for target in targets])

    return call


def _project_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    shared = _factor_inputs(Size(size.name, size.shape, size.dtype, KL), seed=seed, device=device)
    return {"X": shared["X"], "H": shared["H"]}


def _project_ours(inputs: Inputs) -> Call:
    X, H = inputs["X"], inputs["H"]
    return lambda: ops.project(X, H)


def _project_reference(inputs: Inputs) -> Call:
    X, H = inputs["X"], inputs["H"][None]
    return lambda: reference.project(X, H)[0]


def _project_scipy(inputs: Inputs) -> Call:
    from scipy.optimize import nnls

    X, basis = _float_array(inputs["X"]), _float_array(inputs["H"]).T.astype(np.float64)

    def call() -> np.ndarray[Any, Any]:
        # ||x - B h|| and ||Q^T x - R h|| have the same solution, and R is small.
        Q, R = np.linalg.qr(basis)
        return np.stack([nnls(R, target)[0] for target in X.astype(np.float64) @ Q])

    return call


register(
    Case(
        op="nnls",
        sizes=(
            Size("paper", {"n_samples": 2145, "n_components": 15}),
            Size("wide", {"n_samples": 215, "n_components": 64}),
        ),
        smoke=Size("smoke", {"n_samples": 33, "n_components": 5}),
        inputs=_nnls_inputs,
        truth=lambda inputs: _nnls_reference(_doubled(inputs))(),
        implementations={
            "reference": _nnls_reference,
            "ours": _nnls_ours,
            "scipy": _nnls_scipy,
        },
        # The Gram matrix and its factor are float64 whatever the arguments are.
        tolerance={"float32": 1e-6, "float64": 1e-10},
    )
)

_TEST_SPLIT = {"n_samples": 215, "n_features": _PIXELS, "n_components": 15}

register(
    Case(
        op="project",
        sizes=(Size("paper", _TEST_SPLIT), Size("paper", _TEST_SPLIT, "uint8")),
        smoke=Size("smoke", {"n_samples": 9, "n_features": 129, "n_components": 5}),
        inputs=_project_inputs,
        truth=lambda inputs: _project_reference(_doubled(inputs))(),
        implementations={
            "reference": _project_reference,
            "ours": _project_ours,
            "scipy": _project_scipy,
        },
        # X H^T in float32, amplified by the condition of the Gram matrix (about 60 here).
        tolerance={"float32": 1e-4, "float64": 1e-10},
    )
)


# purify ----------------------------------------------------------------------------------------


def _purify_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    n, m, draws, hidden = (
        size.shape[name] for name in ("n_samples", "n_features", "n_draws", "hidden")
    )
    dtype = getattr(torch, size.dtype)
    generator = torch.Generator().manual_seed(seed)
    widths = (m + 32, hidden, hidden, m)
    weights = []
    for before, after in zip(widths, widths[1:], strict=False):
        scale = before**-0.5
        weights.append(scale * torch.randn(after, before, generator=generator))
        weights.append(scale * torch.randn(after, generator=generator))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return {
        "x": torch.rand(n, m, generator=generator).to(device, dtype),
        "noise": torch.randn(1, n, draws, m, generator=generator).to(device, dtype),
        "timesteps": torch.tensor([41], device=device),
        "alphas_cumprod": torch.cumprod(1 - betas, 0).to(device),
        "weights": [w.to(device, dtype) for w in weights],
    }


def _purify_ours(inputs: Inputs) -> Call:
    arguments = tuple(inputs.values())
    return lambda: ops.purify(*arguments)


def _purify_reference(inputs: Inputs) -> Call:
    arguments = tuple(inputs.values())
    return lambda: reference.purify(*arguments)


register(
    Case(
        op="purify",
        sizes=(
            Size("paper", {"n_samples": 215, "n_features": 15, "n_draws": 8, "hidden": 128}),
            Size("draws", {"n_samples": 2145, "n_features": 15, "n_draws": 64, "hidden": 128}),
        ),
        smoke=Size("smoke", {"n_samples": 9, "n_features": 5, "n_draws": 3, "hidden": 16}),
        inputs=_purify_inputs,
        truth=lambda inputs: _purify_reference(_doubled(inputs))(),
        implementations={"reference": _purify_reference, "ours": _purify_ours},
        tolerance={"float32": 1e-5, "float64": 1e-10},
    )
)
