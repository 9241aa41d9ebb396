"""What is measured on CUDA alone: CUDA graphs of our ops, and NumPy-like formulas in CuPy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from bench.case import Call, Implementation, Inputs, NotApplicableError
from bench.inputs import floats

__all__ = ["captured", "cupy_divergence", "cupy_mu", "memory_is_known"]

_EPSILON = 1e-10
"""What users add to a divisor."""


def _need_cuda(inputs: Inputs) -> torch.device:
    device = next(v for v in inputs.values() if isinstance(v, Tensor)).device
    if device.type != "cuda":
        raise NotApplicableError("runs on CUDA only")
    return device


def memory_is_known(implementation: str) -> bool:
    """Say whether torch can tell what memory a call takes: not CuPy's, nor what a graph keeps."""
    return implementation != "CuPy" and not implementation.endswith("CUDA graph")


# CUDA graphs -----------------------------------------------------------------------------------


def captured(build: Implementation) -> Implementation:
    """Return the implementation with its call captured once, and replayed.

    What the host does in a call (checks, launches) is then done once and for all; a replay
    overwrites the results of the one before.
    """

    def captured_build(inputs: Inputs) -> Call:
        device = _need_cuda(inputs)
        call = build(inputs)
        # What a first call sets up, such as handles of libraries, must not be captured.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    return captured_build


# CuPy ------------------------------------------------------------------------------------------


def cupy_mu(inputs: Inputs) -> Call:
    """Write the updates as one writes them in NumPy, for one problem or a batch."""
    _need_cuda(inputs)
    beta_loss, n_iter = inputs["beta_loss"], inputs["n_iter"]
    steps = {1.0: _kullback_leibler_step, 2.0: _frobenius_step}
    if beta_loss not in steps:
        raise NotApplicableError("written for Kullback-Leibler and Frobenius only")
    step = steps[beta_loss]
    X, start_W, start_H = (_in_cupy(floats(inputs[name])) for name in "XWH")
    batched = inputs["W"].ndim == 3

    def call() -> tuple[Tensor, Tensor]:
        W, H = start_W, start_H
        for _ in range(n_iter):
            W, H = step(X, W, H)
        found = from_dlpack(W), from_dlpack(H)
        # Of a batch the first and the last problem are verified.
        ends = slice(None, None, max(1, len(W) - 1)) if batched else slice(None)
        return found[0][ends], found[1][ends]

    return _on_torchs_stream(call)


def cupy_divergence(inputs: Inputs) -> Call:
    """Write the Kullback-Leibler divergence as one writes it in NumPy."""
    _need_cuda(inputs)
    import cupy

    if inputs["beta_loss"] != 1:
        raise NotApplicableError("written for Kullback-Leibler only")
    X, W, H = (_in_cupy(floats(inputs[name])) for name in "XWH")

    def call() -> Tensor:
        WH = W @ H
        terms = X * cupy.log((X + _EPSILON) / (WH + _EPSILON)) - X + WH
        return from_dlpack(terms.sum(dtype="float64", keepdims=True))[0, 0]

    return _on_torchs_stream(call)


def _kullback_leibler_step(X: Any, W: Any, H: Any) -> tuple[Any, Any]:
    Ht = H.swapaxes(-1, -2)
    W = W * ((X / (W @ H + _EPSILON)) @ Ht) / (H.sum(-1)[..., None, :] + _EPSILON)
    Wt = W.swapaxes(-1, -2)
    H = H * (Wt @ (X / (W @ H + _EPSILON))) / (W.sum(-2)[..., :, None] + _EPSILON)
    return W, H


def _frobenius_step(X: Any, W: Any, H: Any) -> tuple[Any, Any]:
    Ht = H.swapaxes(-1, -2)
    W = W * (X @ Ht) / (W @ (H @ Ht) + _EPSILON)
    Wt = W.swapaxes(-1, -2)
    H = H * (Wt @ X) / ((Wt @ W) @ H + _EPSILON)
    return W, H


def _in_cupy(value: Tensor) -> Any:
    """Return a view of a tensor as a CuPy array."""
    import cupy

    return cupy.from_dlpack(value)


def _on_torchs_stream(call: Call) -> Call:
    """Have CuPy queue its work where torch's events are."""
    import cupy

    def queued() -> Any:
        stream = torch.cuda.current_stream().cuda_stream
        with cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null:
            return call()

    return queued
