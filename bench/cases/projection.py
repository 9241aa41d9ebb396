"""`nnls` and `project`: images to features."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from bench import cuda_peers, peers
from bench.case import Call, Case, Implementation, Inputs, NotApplicableError, Size, Work
from bench.inputs import PIXELS, doubled, factor_dtype, item_bytes, uniform
from nnmf_cuda import ops, reference

# nnls ------------------------------------------------------------------------------------------


def _nnls_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    n, k = size.shape["n_samples"], size.shape["n_components"]
    dtype = getattr(torch, size.dtype)
    generator = torch.Generator(device).manual_seed(seed)
    float64 = torch.float64
    basis = torch.rand(k, 4 * k, generator=generator, dtype=float64, device=device)
    # About half of the coefficients end at zero.
    cross = torch.randn(n, k, generator=generator, dtype=float64, device=device)
    cross = cross @ (basis @ basis.mT)
    return {"gram": (basis @ basis.mT).to(dtype), "cross": cross.to(dtype)}


def _nnls_ours(inputs: Inputs) -> Call:
    gram, cross = inputs["gram"], inputs["cross"]
    return lambda: ops.nnls(gram, cross)


def _nnls_reference(inputs: Inputs) -> Call:
    gram, cross = inputs["gram"][None], inputs["cross"][None]
    return lambda: reference.nnls(gram, cross)[0][0]


NNLS = Case(
    op="nnls",
    sizes=(
        Size("paper", {"n_samples": 2145, "n_components": 15}),
        Size("wide", {"n_samples": 215, "n_components": 64}),
    ),
    cuda_sizes=(
        Size("many rows", {"n_samples": 100_000, "n_components": 15}),
        Size("paper", {"n_samples": 2145, "n_components": 15}),
        Size("wide", {"n_samples": 2048, "n_components": 64}),
    ),
    smoke=(Size("smoke", {"n_samples": 33, "n_components": 5}),),
    inputs=_nnls_inputs,
    truth=lambda inputs: _nnls_reference(doubled(inputs))(),
    # torch.compile has nothing to offer: how long the loop is depends on the numbers.
    implementations={
        "reference": _nnls_reference,
        "ours": _nnls_ours,
        "scipy nnls": peers.scipy_nnls,
        "ours, CUDA graph": cuda_peers.captured(_nnls_ours),
    },
    # The Gram matrix and its factor are float64 whatever the arguments are.
    tolerance={"float32": 1e-6, "float64": 1e-10},
    work=lambda size: Work(items=size.shape["n_samples"]),
)


# project ---------------------------------------------------------------------------------------


def _project_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Draw X and H, or take images and components fitted to them (option ``images``)."""
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    if size.options.get("images"):
        images, components = phantom_and_components(k, f, seed)
        repeats = -(-n // len(images))
        return {
            "X": images.repeat(repeats, 1)[:n].contiguous().to(device),
            "H": components.to(device),
        }
    return {
        "X": uniform(n, f, dtype=size.dtype, seed=seed, device=device),
        "H": uniform(k, f, dtype=factor_dtype(size), seed=seed + 2, device=device),
    }


@functools.lru_cache(maxsize=1)
def phantom_and_components(
    n_components: int, n_features: int, seed: int, *, n_images: int = 256
) -> tuple[Tensor, Tensor]:
    """Return synthetic images (n_images, n_features) and components fitted to them.

    With uniform numbers nearly every coefficient is positive; with images many are zero, which is
    what the solver has to find out.
    """
    from nnmf_cuda import NNMF
    from nnmf_cuda.data import phantom

    side = int(n_features**0.5)
    images = phantom((n_images, 2, 2), seed, image_shape=(side, side)).matrix("train")
    model = NNMF(n_components, max_iter=40, tol=0, random_state=seed).fit(images)
    return torch.from_numpy(images), torch.from_numpy(model.components_)


def _project_ours(inputs: Inputs) -> Call:
    X, H = inputs["X"], inputs["H"]
    return lambda: ops.project(X, H)


def _project_ready(inputs: Inputs) -> Call:
    X, ready = inputs["X"], ops.prepare_components(inputs["H"])
    return lambda: ops.project(X, ready)


def _project_reference(inputs: Inputs) -> Call:
    X, H = inputs["X"], inputs["H"][None]
    return lambda: reference.project(X, H)[0][0]


def project_work(size: Size) -> Work:
    """Count X H^T and H H^T in one pass over X; the small systems depend on the data."""
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    traffic = n * f * item_bytes(size.dtype) + (f + n) * k * item_bytes(factor_dtype(size))
    return Work(flops=2.0 * n * f * k + 2.0 * f * k * k, bytes=float(traffic), items=n)


_TEST_SPLIT = {"n_samples": 215, "n_features": PIXELS, "n_components": 15}
_IMAGES = {"images": "phantom"}

PROJECT = Case(
    op="project",
    sizes=(
        Size("paper", _TEST_SPLIT),
        Size("paper", _TEST_SPLIT, "uint8"),
        Size("images", {**_TEST_SPLIT, "n_samples": 256}, "uint8", _IMAGES),
        Size("images", {**_TEST_SPLIT, "n_samples": 2048}, "uint8", _IMAGES),
    ),
    cuda_sizes=(
        Size("images", {**_TEST_SPLIT, "n_samples": 2048}, "uint8", _IMAGES),
        Size("images", {**_TEST_SPLIT, "n_samples": 256}, "uint8", _IMAGES),
        Size("paper", _TEST_SPLIT),
    ),
    smoke=(
        Size("smoke", {"n_samples": 9, "n_features": 129, "n_components": 5}),
        Size(
            "smoke images",
            {"n_samples": 9, "n_features": 256, "n_components": 5},
            "uint8",
            _IMAGES,
        ),
    ),
    inputs=_project_inputs,
    truth=lambda inputs: _project_reference(doubled(inputs))(),
    implementations={
        "reference": _project_reference,
        "ours": _project_ours,
        "ours, components made ready": _project_ready,
        "scipy nnls": peers.scipy_project,
        "scipy nnls after QR": peers.scipy_project_qr,
        "ours, CUDA graph": cuda_peers.captured(_project_ours),
    },
    # X H^T in float32, amplified by the condition of the Gram matrix (about 60 here).
    tolerance={"float32": 1e-4, "float64": 1e-10},
    work=project_work,
)

# Many components --------------------------------------------------------------------------------


def _drifting_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Draw a problem that has moved a little, and the free variables of the one before."""
    n, k = size.shape["n_samples"], size.shape["n_components"]
    generator = torch.Generator(device).manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": device}
    basis = torch.randn(k, 2 * k, **options)
    targets = torch.randn(n, k, **options) @ basis + 0.1 * torch.randn(n, 2 * k, **options)
    moved = targets + 0.03 * k**0.5 * torch.randn(n, 2 * k, **options)
    gram = basis @ basis.mT
    _, before = ops.nnls(gram, targets @ basis.mT, return_info=True)
    return {"gram": gram, "cross": moved @ basis.mT, "passive": before.passive}


def _few(implementation: Implementation, most: int) -> Implementation:
    """Refuse more numbers of rows than `most`: a call would take minutes."""

    def limited(inputs: Inputs) -> Call:
        rows = inputs["cross"] if "cross" in inputs else inputs["X"]
        if rows.numel() > most:
            raise NotApplicableError(f"{len(rows)} rows take minutes; see fewer rows")
        return implementation(inputs)

    return limited


def _nnls_warm(inputs: Inputs) -> Call:
    gram, cross, passive = inputs["gram"], inputs["cross"], inputs["passive"]
    return lambda: ops.nnls(gram, cross, passive=passive)


_MOST_NUMBERS = 3000

NNLS_DRIFT = Case(
    op="nnls_drift",
    sizes=(
        Size("many components", {"n_samples": 64, "n_components": 1285}, "float64"),
        Size("many components", {"n_samples": 2, "n_components": 1285}, "float64"),
    ),
    smoke=(Size("smoke", {"n_samples": 9, "n_components": 20}, "float64"),),
    inputs=_drifting_inputs,
    truth=lambda inputs: _nnls_reference(inputs)(),
    implementations={
        "reference": _few(_nnls_reference, _MOST_NUMBERS),
        "ours": _nnls_ours,
        "ours, warm start": _nnls_warm,
        "scipy nnls": _few(peers.scipy_nnls, _MOST_NUMBERS),
    },
    tolerance={"float64": 1e-9},
    work=lambda size: Work(items=size.shape["n_samples"]),
)


def _cone_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Draw rows inside the cone of more components than features: each is reached exactly."""
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    H = uniform(k, f, dtype=size.dtype, seed=seed, device=device)
    return {"X": uniform(n, k, dtype=size.dtype, seed=seed + 1, device=device) @ H, "H": H}


def _fitted(implementation: Implementation) -> Implementation:
    """Return h H, as there are many h."""

    def build(inputs: Inputs) -> Call:
        call, H = implementation(inputs), inputs["H"]
        return lambda: torch.as_tensor(call(), device=H.device) @ H

    return build


PROJECT_WIDE = Case(
    op="project_wide",
    sizes=(
        Size("cone", {"n_samples": 64, "n_features": 384, "n_components": 465}, "float64"),
        Size("cone", {"n_samples": 64, "n_features": 80, "n_components": 100}, "float64"),
    ),
    smoke=(Size("smoke", {"n_samples": 5, "n_features": 12, "n_components": 15}, "float64"),),
    inputs=_cone_inputs,
    truth=lambda inputs: inputs["X"],
    implementations={
        "reference": _fitted(_few(_project_reference, _MOST_NUMBERS)),
        "ours": _fitted(_project_ours),
        "scipy nnls": _fitted(peers.scipy_project),
    },
    tolerance={"float64": 1e-10},
    work=lambda size: Work(items=size.shape["n_samples"]),
)

CASES = (
    NNLS,
    NNLS_DRIFT,
    PROJECT,
    PROJECT_WIDE,
)
