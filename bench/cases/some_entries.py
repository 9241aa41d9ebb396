"""Updates of X of which only some entries count: sparse counts, and a mask."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from bench.case import Call, Case, Inputs, Size, Work
from bench.cases.factorization import KL
from bench.inputs import PAPER, doubled, low_rank, uniform
from nnmf_cuda import ops, reference

# Sparse counts ------------------------------------------------------------------------------------


def _counts(size: Size, seed: int, device: torch.device) -> Inputs:
    """Draw counts of a few places of each row, as many in every row, in torch's CSR."""
    n, f, k, nonzeros = (
        size.shape[name] for name in ("n_samples", "n_features", "n_components", "n_nonzeros")
    )
    generator = torch.Generator(device).manual_seed(seed)
    of_row = nonzeros // n
    places = torch.rand(n, f, generator=generator, device=device).topk(of_row, dim=1).indices
    col = places.sort(dim=1).values.flatten().int()
    counts = torch.randint(1, 6, col.shape, generator=generator, device=device)
    crow = torch.arange(0, n * of_row + 1, of_row, dtype=torch.int32, device=device)
    scale = 2 * (3 * of_row / f / k) ** 0.5
    return {
        "crow": crow,
        "col": col,
        "counts": counts.float(),
        "W": scale * uniform(n, k, dtype=size.dtype, seed=seed + 1, device=device),
        "H": scale * uniform(k, f, dtype=size.dtype, seed=seed + 2, device=device),
        "n_iter": size.shape["n_iter"],
    }


def _sparse(inputs: Inputs) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            inputs["crow"],
            inputs["col"],
            inputs["counts"],
            size=(len(inputs["W"]), inputs["H"].shape[1]),
            check_invariants=False,
        )


def _mu(inputs: Inputs) -> Call:
    X, W, H, n_iter = _sparse(inputs), inputs["W"], inputs["H"], inputs["n_iter"]
    return lambda: ops.nnmf_mu(X, W, H, beta_loss=1.0, n_iter=n_iter)[:2]


def _cd(inputs: Inputs) -> Call:
    X, W, H, n_iter = _sparse(inputs), inputs["W"], inputs["H"], inputs["n_iter"]
    return lambda: ops.nnmf_cd(X, W, H, n_iter=n_iter)[:2]


def _plainly(call: Call) -> Call:
    def inside() -> Any:
        with ops.reference_path():
            return call()

    return inside


_COUNTS = {"n_samples": 8192, "n_features": 8192, "n_components": 20, "n_nonzeros": 80 * 8192}
_FEW = {"n_samples": 512, "n_features": 1024, "n_components": 20, "n_nonzeros": 32 * 512}
_SMOKE = {"n_samples": 33, "n_features": 65, "n_components": 5, "n_nonzeros": 8 * 33, "n_iter": 2}


def _sparse_work(size: Size) -> Work:
    """Count W H and a product at the non-zeros, for each factor, in one pass over them."""
    k, nonzeros, n_iter = (size.shape[name] for name in ("n_components", "n_nonzeros", "n_iter"))
    return Work(flops=8.0 * nonzeros * k * n_iter, bytes=16.0 * nonzeros * n_iter)


NNMF_SPARSE_MU = Case(
    op="nnmf_sparse_mu",
    sizes=(Size("counts", {**_FEW, "n_iter": 10}, "float32", KL),),
    cuda_sizes=(Size("counts", {**_COUNTS, "n_iter": 10}, "float32", KL),),
    smoke=(Size("smoke counts", _SMOKE, "float32", KL),),
    inputs=_counts,
    truth=lambda inputs: _plainly(_mu(doubled(inputs)))(),
    implementations={"reference": lambda inputs: _plainly(_mu(inputs)), "ours": _mu},
    tolerance={"float32": 1e-4, "float64": 1e-10},
    work=_sparse_work,
)

NNMF_SPARSE_CD = Case(
    op="nnmf_sparse_cd",
    sizes=(Size("counts", {**_FEW, "n_iter": 4}, "float32", KL),),
    cuda_sizes=(Size("counts", {**_COUNTS, "n_iter": 4}, "float32", KL),),
    smoke=(Size("smoke counts", _SMOKE, "float32", KL),),
    inputs=_counts,
    truth=lambda inputs: _plainly(_cd(doubled(inputs)))(),
    implementations={"reference": lambda inputs: _plainly(_cd(inputs)), "ours": _cd},
    # As for the multiplicative update; 2e-6 on the CPU.
    tolerance={"float32": 1e-4, "float64": 1e-8},
    work=_sparse_work,
)

# A mask -------------------------------------------------------------------------------------------

_HIDDEN = 0.3


def _masked(size: Size, seed: int, device: torch.device) -> Inputs:
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    generator = torch.Generator(device).manual_seed(seed + 3)
    X = low_rank(n, f, k, dtype=size.dtype, seed=seed, device=device)
    scale = 2 * (float(X.mean()) / k) ** 0.5
    seen = torch.rand(n, f, generator=generator, device=device) >= _HIDDEN
    return {
        "X": X,
        "W": scale * uniform(n, k, dtype=size.dtype, seed=seed + 1, device=device),
        "H": scale * uniform(k, f, dtype=size.dtype, seed=seed + 2, device=device),
        "weights": ops.pack_mask(seen),
        "n_iter": size.shape["n_iter"],
    }


def _masked_ours(inputs: Inputs) -> Call:
    X, W, H, n_iter = (inputs[name] for name in ("X", "W", "H", "n_iter"))
    weights = inputs["weights"]
    return lambda: ops.nnmf_mu(X, W, H, weights=weights, beta_loss=1.0, n_iter=n_iter)[:2]


def _masked_reference(inputs: Inputs) -> Call:
    X, W, H, n_iter = (inputs[name] for name in ("X", "W", "H", "n_iter"))
    options = {"weights": inputs["weights"], "beta_loss": 1.0, "n_iter": n_iter}

    def call() -> tuple[Tensor, Tensor]:
        new_W, new_H, _ = reference.nnmf_mu(X, W[None], H[None], **options)
        return new_W[0], new_H[0]

    return call


def _masked_work(size: Size) -> Work:
    """Count W H and two products for each factor, over all entries, and X twice with its bits."""
    n, f, k, n_iter = (
        size.shape[name] for name in ("n_samples", "n_features", "n_components", "n_iter")
    )
    return Work(flops=12.0 * n * f * k * n_iter, bytes=2 * (4 + 1 / 8) * n * f * n_iter)


NNMF_WEIGHTED_MU = Case(
    op="nnmf_weighted_mu",
    sizes=(Size("mask", {**PAPER, "n_features": 2048, "n_iter": 2}, "float32", KL),),
    cuda_sizes=(Size("mask", {**PAPER, "n_iter": 10}, "float32", KL),),
    smoke=(
        Size(
            "smoke mask",
            {"n_samples": 33, "n_features": 129, "n_components": 5, "n_iter": 3},
            "float32",
            KL,
        ),
    ),
    inputs=_masked,
    truth=lambda inputs: _masked_reference(doubled(inputs))(),
    implementations={"reference": _masked_reference, "ours": _masked_ours},
    tolerance={"float32": 1e-4, "float64": 1e-10},
    work=_masked_work,
)

CASES = (NNMF_SPARSE_MU, NNMF_SPARSE_CD, NNMF_WEIGHTED_MU)
