"""A network as ONNX and its samples' balls as VNN-LIB, for the verifiers of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.balls import Box
from nnmf_cuda.models.networks import frozen
from nnmf_cuda.robustness.rounding import logit_errors
from nnmf_cuda.robustness.verification_task import checked_ball, network_of, weights_to_verify

_OPSET, _IR_VERSION = 13, 8
"""Old enough for the verifiers that there are."""


def export_onnx(model: nn.Module, path: str | Path, *, n_features: int) -> None:
    """Write a network as ONNX, with one sample (1, n_features) `x` in and `logits` out.

    Parameters
    ----------
    model : nn.Module
        What `verify` takes, in float32.
    path : path
        Of the file to write.
    n_features : int
        Length of a feature vector.

    Raises
    ------
    ImportError
        If onnx is not installed.
    ValueError
        If the model cannot be verified, or does not take that many features.
    RuntimeError
        If what was written does not answer as the network does.

    Notes
    -----
    Convolutions and pool are those of images of one row, as verifiers know no others. The answers
    of what was written are compared with the network's on random features.
    """
    onnx = _onnx()
    weights = weights_to_verify(network_of(model))
    if {w.dtype for w in weights} != {torch.float32}:
        raise ValueError(f"only float32 networks are exported, this one is {weights[0].dtype}")
    if weights[0].dim() == 2 and weights[0].shape[1] != n_features:
        raise ValueError(
            f"n_features must be {weights[0].shape[1]}, as the model has, got {n_features}"
        )
    nodes, constants = _graph(onnx, weights, n_features)
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "classifier",
        [onnx.helper.make_tensor_value_info("x", float32, [1, n_features])],
        [onnx.helper.make_tensor_value_info("logits", float32, [1, len(weights[-1])])],
        constants,
    )
    made = onnx.helper.make_model(
        graph,
        producer_name="nnmf-cuda",
        ir_version=_IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
    )
    onnx.checker.check_model(made, full_check=True)
    _check_answers(made, network_of(model), weights, n_features)
    Path(path).write_bytes(made.SerializeToString())


def export_vnnlib(
    x: Tensor,
    y: Tensor,
    path: str | Path,
    *,
    eps: float | Tensor,
    n_classes: int,
    box: Box = (0.0, 1.0),
) -> list[Path]:
    """Write a VNN-LIB file for each sample, which a verifier finds satisfiable if it is broken.

    Parameters
    ----------
    x : Tensor of shape (n, n_features)
        Features.
    y : Tensor of shape (n,)
        int64 labels.
    path : path
        The directory to write into, which is made where it is missing.
    eps : float or Tensor of shape (n_features,)
        Radius of the Linf ball; VNN-LIB has no other.
    n_classes : int
        Of the network.
    box : pair of float or Tensor of shape (n_features,), default=(0, 1)
        Lowest and highest value of each feature.

    Returns
    -------
    list of Path
        `sample_00000.vnnlib` and so on.

    Raises
    ------
    ValueError
        If shapes or labels do not fit, `eps` is not finite and above 0, or x is outside the box:
        a ball without a point would be unsatisfiable, as a proven one is.
    """
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes}")
    if x.dim() != 2 or y.shape != x.shape[:1]:
        raise ValueError(
            "x must have shape (n, n_features) and y shape (n,), got"
            f" {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < n_classes:
        raise ValueError(f"y must be within 0..{n_classes - 1}, got {y.unique().tolist()}")
    wide = x.detach().double()
    radius, edges = checked_ball(wide, eps=eps, norm="Linf", box=box)
    out = Path(path)
    out.mkdir(parents=True, exist_ok=True)
    lower = torch.maximum(wide - radius, edges[0])
    upper = torch.minimum(wide + radius, edges[1])
    written = []
    for i, label in enumerate(y.tolist()):
        lines = _property(lower[i].tolist(), upper[i].tolist(), label, n_classes)
        written.append(out / f"sample_{i:05d}.vnnlib")
        written[-1].write_text("\n".join(lines) + "\n", encoding="ascii")
    return written


def _property(
    lower: Sequence[float], upper: Sequence[float], label: int, n_classes: int
) -> Iterable[str]:
    """Yield the lines of one file: the ball, and that another class is at least the label."""
    yield f"; label {label}"
    yield from (f"(declare-const X_{i} Real)" for i in range(len(lower)))
    yield from (f"(declare-const Y_{j} Real)" for j in range(n_classes))
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        yield f"(assert (>= X_{i} {_decimal(low)}))"
        yield f"(assert (<= X_{i} {_decimal(high)}))"
    others = [j for j in range(n_classes) if j != label]
    if len(others) == 1:
        yield f"(assert (>= Y_{others[0]} Y_{label}))"
    else:
        choices = " ".join(f"(and (>= Y_{j} Y_{label}))" for j in others)
        yield f"(assert (or {choices}))"


def _decimal(value: float) -> str:
    """Return a float64 with all its digits and without an exponent, which not all readers know."""
    return np.format_float_positional(value, unique=True, trim="0")


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.reference
    except ImportError as error:
        raise ImportError(
            "writing ONNX needs the onnx package: pip install 'nnmf-cuda[export]'"
        ) from error
    return onnx


def _graph(onnx: Any, weights: Sequence[Tensor], n_features: int) -> tuple[list[Any], list[Any]]:
    """Return nodes and constants of a CNN or an MLP."""
    nodes: list[Any] = []
    constants: list[Any] = []
    at = "x"

    def constant(name: str, value: np.ndarray[Any, Any]) -> str:
        constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, *inputs: str, last: bool = False, **settings: Any) -> None:
        nonlocal at
        output = "logits" if last else f"{kind.lower()}_{len(nodes)}"
        nodes.append(onnx.helper.make_node(kind, [at, *inputs], [output], **settings))
        at = output

    layers = list(zip(weights[::2], weights[1::2], strict=True))
    if weights[0].dim() == 3:
        node("Reshape", constant("as_image", np.array([1, 1, 1, n_features], np.int64)))
    for i, (weight, bias) in enumerate(layers):
        w, b = weight.cpu().numpy(), bias.cpu().numpy()
        named = (
            constant(f"weight_{i}", w if w.ndim == 2 else w[:, :, None]),
            constant(f"bias_{i}", b),
        )
        last = i == len(layers) - 1
        if w.ndim == 3:
            node("Conv", *named, kernel_shape=[1, 3], pads=[0, 1, 0, 1], strides=[1, 1])
        else:
            node("Gemm", *named, transB=1, last=last)
        if not last:
            node("Relu")
        if w.ndim == 3 and i == 1:
            node("MaxPool", kernel_shape=[1, 2], strides=[1, 2])
            node("Flatten", axis=1)
    return nodes, constants


def _check_answers(made: Any, model: nn.Module, weights: Sequence[Tensor], n_features: int) -> None:
    """Raise RuntimeError unless the graph answers as the network, up to rounding."""
    evaluator = _onnx().reference.ReferenceEvaluator(made)
    x = torch.rand(20, n_features, generator=torch.Generator().manual_seed(0))
    found = np.concatenate([evaluator.run(None, {"x": row.numpy()[None]})[0] for row in x])
    device = weights[0].device
    with frozen(model), torch.no_grad():
        own = model(x.to(device)).double().cpu()
    wide = x.double().to(device)
    allowed = 2 * logit_errors(weights, wide, wide).cpu()
    off = (torch.from_numpy(found).double() - own).abs()
    if not bool((off <= allowed).all()):
        raise RuntimeError(
            f"the exported network differs from the model by {float(off.max()):.3g}: please report"
        )
