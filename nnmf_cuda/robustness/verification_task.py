"""What is to be verified: a network that answers, and the ball around each of its samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nnmf_cuda._version import __version__
from nnmf_cuda.attacks.balls import BOX_TOLERANCE, Box
from nnmf_cuda.models.networks import FeatureCNN, FeatureMLP, frozen
from nnmf_cuda.robustness.rounding import (
    inward,
    logit_errors,
    outward,
    real_logits,
    within_l2,
    within_linf,
)

ROWS = 8192
"""Points that the network is asked about at once."""


def right_answers(model: nn.Module, x: Tensor, y: Tensor) -> NDArray[np.bool_]:
    """Say which samples (n,) a network answers rightly as they are, as `verify` asks it."""
    with frozen(model), torch.no_grad():
        right: NDArray[np.bool_] = (model(x).argmax(1) == y).cpu().numpy()
    return right


def network_of(model: Any) -> nn.Module:
    """Return the defence of a `TrainedModel`; of a network, itself.

    An attribute of a network that is called `defended` says nothing of what it answers.
    """
    network: nn.Module = (
        model if isinstance(model, nn.Module) else getattr(model, "defended", model)
    )
    return network


def weights_to_verify(model: nn.Module) -> list[Tensor]:
    """Return the weights of a network that can be verified, detached; raise ValueError of others.

    Its answers are those of the weights alone: nothing is hooked to it or overridden, and it is no
    subclass, whatever that says of itself.
    """
    name = type(model).__name__
    why, weights = "it is no FeatureCNN or MLP", list[Tensor]()
    layers = model.layers if type(model) is FeatureMLP else model
    if type(model) is FeatureCNN:
        why, weights = model.why_modules(), model.weights()
    elif isinstance(model, FeatureCNN):
        why = "it is a subclass of FeatureCNN, which may answer otherwise"
    elif type(layers) is nn.Sequential:
        linear, between = list(layers)[::2], list(layers)[1::2]
        if (
            all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
            and all(type(layer) is nn.ReLU for layer in between)
            and len(linear) == len(between) + 1 >= 2
        ):
            why = ""
            # By name: what pruning leaves behind has them in another order.
            weights = [
                t
                for layer in linear
                if isinstance(layer, nn.Linear)
                for t in (layer.weight, layer.bias)
            ]
    if not why and {w.dtype for w in weights} - {torch.float32, torch.float64}:
        why = f"it answers in {weights[0].dtype}"
    if not why:
        watched = [
            m
            for m in model.modules()
            if m._forward_hooks
            or m._forward_pre_hooks
            or "forward" in vars(m)
            or type(m).__call__ is not nn.Module.__call__
        ]
        why = f"{type(watched[0]).__name__} has a hook or another forward" if watched else ""
    if not why and _has_any_global_hook():
        why = "torch has a hook of all modules"
    if why:
        raise ValueError(
            f"a {name} cannot be verified ({why}): give a FeatureCNN or an MLP of linear layers"
            " with ReLU between them, in float32 or float64; a random defence has the certificate"
            " of smoothing instead"
        )
    return [w.detach() for w in weights]


def checked_ball(
    x: Tensor, *, eps: float | Tensor, norm: str, box: Box
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return radius and edges of the box in float64; raise ValueError unless balls hold points.

    Of no points all would be proven.
    """
    n_features = x.shape[1]
    wide = torch.as_tensor(eps, dtype=torch.float64, device=x.device).detach()
    if wide.dim() and (norm == "L2" or tuple(wide.shape) != (n_features,)):
        raise ValueError(
            "eps must be a number, or with norm Linf of shape (n_features,) ="
            f" ({n_features},); got shape {tuple(wide.shape)} with norm {norm}"
        )
    if not bool((wide.isfinite() & (wide >= 0)).all()) or float(wide.max()) == 0:
        raise ValueError(f"eps must be finite and > 0, got {wide.tolist()}")
    low, high = (
        torch.as_tensor(edge, dtype=torch.float64, device=x.device).detach().expand(n_features)
        for edge in box
    )
    exact = x.double()
    inside = (exact >= low) & (exact <= high)
    if not bool(inside.all()):
        raise ValueError(
            f"x must be inside the box, {int((~inside).sum())} of {x.numel()} entries are not:"
            " clamp them, or widen the box"
        )
    return wide, (low, high)


@dataclass(frozen=True)
class Task:
    """What is to be verified: the network, the samples, and the ball around each.

    `lower` and `upper` (n, n_features) are around the ball of the proof, in float64; `inner_lower`
    and `inner_upper` are in the ball and in the network's type.
    """

    model: nn.Module
    weights: list[Tensor]
    x: Tensor
    y: Tensor
    eps: Tensor  # (n_features,), float64
    radius: float  # of the proof's ball
    norm: str
    box: tuple[Tensor, Tensor]
    lower: Tensor
    upper: Tensor
    inner_lower: Tensor
    inner_upper: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        weights: list[Tensor],
        x: Tensor,
        y: Tensor,
        *,
        eps: float | Tensor,
        norm: str,
        box: Box,
    ) -> Task:
        """Make it of what `verify` was given; raise ValueError where that does not fit."""
        if norm not in ("Linf", "L2"):
            raise ValueError(f"norm must be Linf or L2, got {norm!r}")
        first, x = weights[0], x.detach()
        if x.dim() != 2 or x.dtype != first.dtype or x.device != first.device:
            raise ValueError(
                f"x must be {first.dtype} of shape (n, n_features) on {first.device}, as the model"
                f" has it, got {tuple(x.shape)} {x.dtype} on {x.device}"
            )
        n, n_features = x.shape
        n_classes = len(weights[-1])
        if y.shape != (n,) or y.dtype != torch.int64 or y.device != x.device:
            raise ValueError(
                f"y must be int64 of shape ({n},) on {x.device}, got {tuple(y.shape)} {y.dtype} on"
                f" {y.device}"
            )
        if bool(((y < 0) | (y >= n_classes)).any()):
            raise ValueError(f"y must be within 0..{n_classes - 1}, got {y.unique().tolist()}")
        wide, (low, high) = checked_ball(x, eps=eps, norm=norm, box=box)
        exact = x.double()
        reach = (wide + BOX_TOLERANCE) * (1 + 2.0**-50)  # the sum was rounded
        lower, upper = outward(exact - reach, exact + reach)
        inner = inward((exact - wide).clamp(min=low), (exact + wide).clamp(max=high), x.dtype)
        return cls(
            model=model,
            weights=weights,
            x=x,
            y=y,
            eps=wide.expand(n_features),
            radius=float(reach.max()),
            norm=norm,
            box=(low, high),
            lower=torch.maximum(lower, low),
            upper=torch.minimum(upper, high),
            inner_lower=inner[0],
            inner_upper=inner[1],
        )

    @property
    def shown_eps(self) -> float | list[float]:
        """The radius, one number where it is the same for all features."""
        values: list[float] = self.eps.tolist()
        return values[0] if len(set(values)) == 1 else values

    def key(self) -> str:
        """Return what tells this task from others, and from proofs of another version."""
        digest = hashlib.sha256(f"{__version__} {self.norm}".encode())
        for tensor in (*self.weights, self.x, self.y, self.eps, *self.box):
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def answers(self, points: Tensor) -> Tensor:
        """Return the classes (n,) that the network answers."""
        logits = [self.model(part) for part in points.split(ROWS)]
        return torch.cat(logits).argmax(1)

    def into_ball(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return points (k, n_features) near the given ones in the balls of samples `rows` (k,)."""
        if self.norm == "L2":
            center = self.x[rows].double()
            step = points.double() - center
            # Rounding to the network's type moves a point out by that much at most.
            unit = torch.finfo(self.x.dtype).eps
            moved = unit * (center.abs() + step.abs()).norm(dim=1, keepdim=True)
            most = (self.eps.max() - moved).clamp(min=0)
            length = step.norm(dim=1, keepdim=True)
            points = center + step * (most / length.clamp(min=1e-300)).clamp(max=1)
        kept = torch.maximum(points.to(self.x.dtype), self.inner_lower[rows])
        return torch.minimum(kept, self.inner_upper[rows])

    def breaks(self, points: Tensor, rows: Tensor) -> Tensor:
        """Say which points (k, n_features) break the samples `rows` (k,): exactly in the ball."""
        exact = points.double()
        inside = ((exact >= self.box[0]) & (exact <= self.box[1])).all(1)
        if self.norm == "Linf":
            inside &= within_linf(points, self.x[rows], self.eps)
        else:
            inside &= within_l2(points, self.x[rows], self.eps[0])
        wrong = inside & (self.answers(points) != self.y[rows])
        # What rounding decides may be decided otherwise where it is asked about alone.
        for k in wrong.nonzero().flatten().tolist():
            wrong[k] = int(self.model(points[k : k + 1]).argmax(1)) != int(self.y[rows[k]])
        return wrong

    def first_breaking(self, points: Tensor, row: int) -> Tensor | None:
        """Return the first of points (k, n_features), put into the ball, that breaks a sample."""
        rows = torch.full((len(points),), row, device=points.device)
        near = self.into_ball(points, rows)
        wrong = self.answers(near) != self.y[row]
        if not bool(wrong.any()):
            return None
        near = near[wrong]
        broken = self.breaks(near, rows[wrong])
        return near[broken][0] if bool(broken.any()) else None

    def check_answers(self) -> None:
        """Raise ValueError unless the network answers as its weights say, up to rounding."""
        wide = self.x.double()
        answers = self.model(self.x)
        if answers.dtype != self.x.dtype:
            raise ValueError(
                f"the model answers in {answers.dtype}, and its weights are {self.x.dtype}: verify"
                " it outside of torch.autocast"
            )
        off = (answers.double() - real_logits(self.weights, self.x)).abs()
        allowed = logit_errors(self.weights, wide, wide)
        # What is not a number is never proven, and needs no error.
        if bool((off > allowed).any()):
            raise ValueError(
                f"the model's answers differ from those of its weights by {float(off.max()):.3g},"
                " more than rounding can explain: switch off TF32 and other narrow sums"
                " (torch.set_float32_matmul_precision('highest'))"
            )
