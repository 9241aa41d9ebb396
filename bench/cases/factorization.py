"""`nnmf_mu`, `nnmf_hals` and `nnmf_divergence` against reference, compiler and peers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench import cuda_peers, peers
from bench.case import (
    Call,
    Case,
    Implementation,
    Inputs,
    NotApplicableError,
    Size,
    Work,
)
from bench.inputs import (
    PAPER,
    doubled,
    factor_dtype,
    item_bytes,
    low_rank,
    uniform,
)
from nnmf_cuda import ops, reference

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

KL, FROBENIUS = {"beta_loss": 1.0}, {"beta_loss": 2.0}


def _inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Draw X, of low rank under noise, and a start; with ``n_batch``, that many starts for one X.

    With the option ``own_X`` each start has an X of its own. The start has the mean of X, as usual
    starts have. From a larger one, coordinate descent empties whole components, and what becomes of
    those differs between libraries.
    """
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    batch = (size.shape["n_batch"],) if "n_batch" in size.shape else ()
    own = batch if size.options.get("own_X") else ()
    X = low_rank(n, f, k, dtype=size.dtype, seed=seed, device=device, batch=own)
    mean = float(X.mean(dtype=torch.float64)) / (255 if size.dtype == "uint8" else 1)
    scale = 2 * (mean / k) ** 0.5
    dtype = factor_dtype(size)
    return {
        "X": X,
        "W": scale * uniform(*batch, n, k, dtype=dtype, seed=seed + 1, device=device),
        "H": scale * uniform(*batch, k, f, dtype=dtype, seed=seed + 2, device=device),
        "beta_loss": float(size.options.get("beta_loss", 2.0)),
        "n_iter": size.shape.get("n_iter", 0),
    }


def _ends(factor: Tensor) -> Tensor:
    """Return a view of the first and the last problem of a batch: what is verified of it."""
    return factor[:: max(1, len(factor) - 1)] if factor.ndim == 3 else factor


def _compiled_iterations(step: Step, inputs: Inputs) -> Call:
    """Compile one iteration, and call that: unrolled, several take minutes to compile."""
    compiled = peers.compile_for(inputs["X"].device, step)
    W, H, batched = _with_batch(inputs)

    def call() -> tuple[Tensor, Tensor]:
        new_W, new_H = W, H
        for _ in range(inputs["n_iter"]):
            new_W, new_H = compiled(new_W, new_H)
        return _verified(new_W, new_H, batched)

    return call


def _with_batch(inputs: Inputs) -> tuple[Tensor, Tensor, bool]:
    """Return W and H with a batch dimension, and whether they had one."""
    W, H = inputs["W"], inputs["H"]
    return (W, H, True) if W.ndim == 3 else (W[None], H[None], False)


def _verified(W: Tensor, H: Tensor, batched: bool) -> tuple[Tensor, Tensor]:
    """Return what is verified of a batch, or its only problem."""
    return (_ends(W), _ends(H)) if batched else (W[0], H[0])


# nnmf_mu ---------------------------------------------------------------------------------------


def _mu_ours(inputs: Inputs) -> Call:
    X, W, H = inputs["X"], inputs["W"], inputs["H"]
    options = {"beta_loss": inputs["beta_loss"], "n_iter": inputs["n_iter"]}

    def call() -> tuple[Tensor, Tensor]:
        new_W, new_H, _ = ops.nnmf_mu(X, W, H, **options)
        return _ends(new_W), _ends(new_H)

    return call


def _mu_tensor(inputs: Inputs) -> Call:
    X, W, H, n_iter = (inputs[name] for name in ("X", "W", "H", "n_iter"))
    if inputs["beta_loss"] != 1 or W.dtype != torch.float32:
        raise NotApplicableError("for Kullback-Leibler in float32 only")

    def call() -> tuple[Tensor, Tensor]:
        new_W, new_H, _ = ops.nnmf_mu(X, W, H, beta_loss=1.0, n_iter=n_iter, precision="tf32x3")
        return _ends(new_W), _ends(new_H)

    return call


def _mu_reference(inputs: Inputs) -> Call:
    X = inputs["X"]
    W, H, batched = _with_batch(inputs)
    options = {"beta_loss": inputs["beta_loss"], "n_iter": inputs["n_iter"]}

    def call() -> tuple[Tensor, Tensor]:
        new_W, new_H, _ = reference.nnmf_mu(X, W, H, **options)
        return _verified(new_W, new_H, batched)

    return call


def _mu_compiled(inputs: Inputs) -> Call:
    X, beta_loss = inputs["X"], inputs["beta_loss"]
    return _compiled_iterations(
        lambda W, H: reference.nnmf_mu(X, W, H, beta_loss=beta_loss, n_iter=1)[:2], inputs
    )


def _one_by_one(build: Implementation) -> Implementation:
    """Return a peer that knows no batch as one that takes its problems one after the other."""

    def build_all(inputs: Inputs) -> Call:
        X, W, H = (inputs[name] for name in "XWH")
        if W.ndim == 2:
            return build(inputs)
        if len(W) > _MOST_PROBLEMS:
            raise NotApplicableError(f"knows no batch; {len(W)} problems one by one take too long")
        calls = [
            build({**inputs, "X": X if X.ndim == 2 else X[b], "W": W[b], "H": H[b]})
            for b in range(len(W))
        ]

        def call() -> tuple[Tensor, Tensor]:
            found = [call() for call in calls]
            ends = found[:: max(1, len(found) - 1)]
            Ws, Hs = ([torch.as_tensor(pair[i]) for pair in ends] for i in (0, 1))
            return torch.stack(Ws), torch.stack(Hs)

        return call

    return build_all


def _mu_truth(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return _of_ends(inputs, lambda problem: _mu_reference(doubled(problem))())


def _hals_truth(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return _of_ends(inputs, peers.hals_truth)


def _of_ends(
    inputs: Inputs, truth: Callable[[Inputs], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """One problem after the other: a batch of X-sized intermediates would not fit."""
    if inputs["W"].ndim == 2:
        return truth(inputs)
    X, W, H = (_ends(inputs[name]) for name in "XWH")
    found = [
        truth({**inputs, "X": X if X.ndim == 2 else X[b], "W": W[b], "H": H[b]})
        for b in range(len(W))
    ]
    return torch.stack([W for W, _ in found]), torch.stack([H for _, H in found])


def _mu_work(size: Size) -> Work:
    """Count the arithmetic and the memory traffic of `n_iter` multiplicative updates.

    Any divergence but Frobenius: W H and a product with the quotient, 4 n f k for each of the two
    factors; and as much as half of that again where the denominator is a product too.
    Frobenius: two products with X, the two Gram matrices and the products with them. X is read
    once for each factor.
    """
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    beta_loss = size.options["beta_loss"]
    if beta_loss == 2:
        flops = 4 * n * f * k + 4 * (n + f) * k * k
    else:
        flops = (8 if beta_loss == 1 else 12) * n * f * k
    batch, n_iter = size.shape.get("n_batch", 1), size.shape["n_iter"]
    factors = 2 * (n + f) * k * item_bytes(factor_dtype(size))
    # Starts on one X may share their passes over it.
    passes = 2 * (batch if size.options.get("own_X") else 1)
    traffic = passes * n * f * item_bytes(size.dtype) + 2 * batch * factors
    return Work(flops=float(flops * n_iter * batch), bytes=float(traffic * n_iter))


_MOST_PROBLEMS = 64
"""Above this a loop over problems takes seconds a call, and says nothing that fewer do not."""
_PROBLEMS = {"n_samples": 1500, "n_features": 4096, "n_components": 15, "n_batch": 64}
_SMALL = {"n_samples": 64, "n_features": 64, "n_components": 8, "n_batch": 4096}
_SMOKE = {"n_samples": 33, "n_features": 129, "n_components": 5, "n_iter": 3}

NNMF_MU = Case(
    op="nnmf_mu",
    sizes=(
        Size("paper", {**PAPER, "n_iter": 2}, "float32", KL),
        Size("paper", {**PAPER, "n_iter": 2}, "uint8", KL),
        Size("frobenius", {**PAPER, "n_iter": 2}, "float32", FROBENIUS),
        Size("starts", {**PAPER, "n_batch": 16, "n_iter": 2}, "float32", FROBENIUS),
    ),
    # Ten iterations a call, as between two tests of convergence.
    cuda_sizes=(
        Size("paper", {**PAPER, "n_iter": 10}, "float32", KL),
        Size("paper", {**PAPER, "n_iter": 10}, "uint8", KL),
        Size("problems", {**_PROBLEMS, "n_iter": 10}, "float32", {**KL, "own_X": True}),
        Size("small problems", {**_SMALL, "n_iter": 10}, "float32", {**KL, "own_X": True}),
        Size("frobenius", {**PAPER, "n_iter": 10}, "float32", FROBENIUS),
        Size("starts", {**PAPER, "n_batch": 16, "n_iter": 10}, "float32", KL),
    ),
    smoke=(
        Size("smoke", _SMOKE, "float32", KL),
        Size("smoke frobenius", _SMOKE, "float32", FROBENIUS),
        Size("smoke problems", {**_SMOKE, "n_batch": 3}, "float32", {**KL, "own_X": True}),
        Size("smoke starts", {**_SMOKE, "n_batch": 3}, "float32", KL),
    ),
    inputs=_inputs,
    truth=_mu_truth,
    implementations={
        "reference": _mu_reference,
        "torch.compile": _mu_compiled,
        "ours": _mu_ours,
        "ours, tf32x3": _mu_tensor,
        "scikit-learn mu": _one_by_one(peers.sklearn_mu),
        "scikit-learn cd": _one_by_one(peers.sklearn_cd),
        "torchnmf": _one_by_one(peers.torchnmf_mu),
        "nmf-torch": _one_by_one(peers.nmf_torch_mu),
        "CuPy": cuda_peers.cupy_mu,
        # The last: a capture that fails can leave the device's queue unusable.
        "ours, CUDA graph": cuda_peers.captured(_mu_ours),
    },
    # Coordinate descent stands beside the Frobenius update for its time an iteration.
    truths={"scikit-learn cd": _hals_truth},
    # Sums over 16384 features in float32, in any order.
    tolerance={"float32": 1e-4, "float64": 1e-10},
    work=_mu_work,
)


# nnmf_hals -------------------------------------------------------------------------------------


def _hals_ours(inputs: Inputs) -> Call:
    X, W, H, n_iter = (inputs[name] for name in ("X", "W", "H", "n_iter"))
    return lambda: ops.nnmf_hals(X, W, H, n_iter=n_iter)[:2]


def _hals_reference(inputs: Inputs) -> Call:
    X, W, H, n_iter = (inputs[name] for name in ("X", "W", "H", "n_iter"))

    def call() -> tuple[Tensor, Tensor]:
        new_W, new_H, _ = reference.nnmf_hals(X, W[None], H[None], n_iter=n_iter)
        return new_W[0], new_H[0]

    return call


def _hals_compiled(inputs: Inputs) -> Call:
    X = inputs["X"]
    if X.dtype == torch.uint8:
        raise NotApplicableError("takes a minute to compile; see float32")
    return _compiled_iterations(lambda W, H: reference.nnmf_hals(X, W, H, n_iter=1)[:2], inputs)


def _hals_work(size: Size) -> Work:
    """Two products with X, two Gram matrices, and one sweep over the components of each factor."""
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    flops = 4 * n * f * k + 4 * (n + f) * k * k
    factors = 2 * (n + f) * k * item_bytes(factor_dtype(size))
    traffic = 2 * n * f * item_bytes(size.dtype) + 2 * factors
    n_iter = size.shape["n_iter"]
    return Work(flops=float(flops * n_iter), bytes=float(traffic * n_iter))


NNMF_HALS = Case(
    op="nnmf_hals",
    sizes=(
        Size("paper", {**PAPER, "n_iter": 2}),
        Size("paper", {**PAPER, "n_iter": 2}, "uint8"),
    ),
    smoke=(Size("smoke", {"n_samples": 33, "n_features": 129, "n_components": 5, "n_iter": 3}),),
    inputs=_inputs,
    truth=peers.hals_truth,
    implementations={
        "reference": _hals_reference,
        "torch.compile": _hals_compiled,
        "ours": _hals_ours,
        "scikit-learn cd": peers.sklearn_cd,
        "nmf-torch": peers.nmf_torch_hals,
        "ours, CUDA graph": cuda_peers.captured(_hals_ours),
    },
    tolerance={"float32": 1e-4, "float64": 1e-10},
    work=_hals_work,
)


# nnmf_divergence -------------------------------------------------------------------------------


def _divergence_ours(inputs: Inputs) -> Call:
    X, W, H, beta_loss = (inputs[name] for name in ("X", "W", "H", "beta_loss"))
    return lambda: ops.nnmf_divergence(X, W, H, beta_loss=beta_loss)


def _divergence_reference(inputs: Inputs) -> Call:
    X, W, H, beta_loss = (inputs[name] for name in ("X", "W", "H", "beta_loss"))
    return lambda: reference.nnmf_divergence(X, W[None], H[None], beta_loss=beta_loss)[0]


def _divergence_work(size: Size) -> Work:
    """Count W H, in one pass over X; the logarithms are not counted."""
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    factors = (n + f) * k * item_bytes(factor_dtype(size))
    return Work(flops=2.0 * n * f * k, bytes=float(n * f * item_bytes(size.dtype) + factors))


NNMF_DIVERGENCE = Case(
    op="nnmf_divergence",
    sizes=(Size("paper", PAPER, "float32", KL), Size("paper", PAPER, "uint8", KL)),
    smoke=(Size("smoke", {"n_samples": 33, "n_features": 129, "n_components": 5}, "float32", KL),),
    inputs=_inputs,
    truth=lambda inputs: _divergence_reference(doubled(inputs))(),
    implementations={
        "reference": _divergence_reference,
        "torch.compile": peers.compiled(_divergence_reference),
        "ours": _divergence_ours,
        "scikit-learn mu": peers.sklearn_divergence,
        "torchnmf": peers.torchnmf_divergence,
        "CuPy": cuda_peers.cupy_divergence,
        "ours, CUDA graph": cuda_peers.captured(_divergence_ours),
    },
    tolerance={"float32": 1e-5, "float64": 1e-10},
    work=_divergence_work,
)

CASES = (
    NNMF_MU,
    NNMF_HALS,
    NNMF_DIVERGENCE,
)
