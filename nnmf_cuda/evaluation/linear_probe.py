"""What is surely possible: the exact robust accuracy of a linear classifier trained for it.

The worst point of a ball is known in closed form for a linear classifier, so that its training is
convex, takes a second, and its robust accuracy is no estimate: where it beats the constant answer,
something is to be gained, and where the ceiling ends, nothing is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nnmf_cuda.attacks.objectives import margin_loss
from nnmf_cuda.evaluation.ceiling import largest_below

_N_STEPS, _LR = 200, 0.3


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features, in float64: logits ``x @ weight.T + bias``."""

    weight: Tensor  # (n_classes, n_features)
    bias: Tensor  # (n_classes,)
    norm: str  # of the balls it was trained in

    def proven(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """Return who (n,) of features (n, n_features) is right in the whole ball, no box cut off.

        What ends in a tie is not proven. In float64, rounding not counted.
        """
        worst = _worst_logits(self.weight, self.bias, x.double(), y, eps, self.norm)
        return margin_loss(worst, y) < 0

    def accuracy(self, x: Tensor, y: Tensor, eps: float) -> float:
        """Return the share of samples that are proven."""
        return float(self.proven(x, y, eps).double().mean())


def fit_linear_probe(
    x: Tensor, y: Tensor, eps: float, *, n_classes: int, norm: str = "Linf"
) -> LinearProbe:
    """Train a linear classifier on the worst points of balls around its samples.

    Parameters
    ----------
    x : Tensor of shape (n, n_features)
        Features.
    y : Tensor of shape (n,)
        Classes, below `n_classes`.
    eps : float
        Radius of the balls; 0 is a plain support vector machine without a penalty.
    n_classes : int
        2 or more.
    norm : {"Linf", "L2"}, default="Linf"
        Of the balls.

    Returns
    -------
    LinearProbe
        That of the lowest loss in 200 steps of Adam on all samples, from zero: never worse, by its
        loss, than answers that do not look at the features.

    Notes
    -----
    The hinge loss of the margin z_y - max_j (z_j + eps |w_j - w_y|_*) over wrong classes j, with
    the dual norm: the margin at the worst point of the ball, convex in the weights. Cross-entropy
    in its place ends more often in the constant answer.
    """
    points, centre = x.double(), x.double().mean(0)
    weight = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, device=x.device)
    bias = torch.zeros(n_classes, dtype=torch.float64, device=x.device)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimiser = torch.optim.Adam(parameters, lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _N_STEPS)
    lowest, best = torch.inf, (weight.detach().clone(), bias.detach().clone())
    with torch.enable_grad():
        for _ in range(_N_STEPS):
            worst = _worst_logits(weight, bias, points - centre, y, eps, norm)
            loss = functional.relu(1 + margin_loss(worst, y)).mean()
            value = loss.item()
            if value < lowest:
                lowest, best = value, (weight.detach().clone(), bias.detach().clone())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    found, offset = best
    return LinearProbe(found, offset - found @ centre, norm)


def largest_gaining_eps(
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    *,
    accuracy: float,
    up_to: float,
    n_classes: int,
    norm: str = "Linf",
) -> float | None:
    """Return the largest radius at which a linear classifier is proven right so often.

    Parameters
    ----------
    train, valid : pair of Tensor
        Features (n, n_features) and classes (n,): what it is trained, and judged, on.
    accuracy : float
        Wanted share of proven validation samples.
    up_to : float
        The largest radius that is tried.
    n_classes, norm
        As for `fit_linear_probe`.

    Returns
    -------
    float or None
        To 5 % of itself, from below; None where no radius above `up_to` / 100 is small enough.
    """

    def is_enough(eps: float) -> bool:
        probe = fit_linear_probe(*train, eps, n_classes=n_classes, norm=norm)
        return probe.accuracy(*valid, eps) >= accuracy

    if is_enough(up_to):
        return up_to
    low = up_to / 100
    if not is_enough(low):
        return None
    return largest_below(is_enough, low, up_to, relative=0.05)


def _worst_logits(
    weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, eps: float, norm: str
) -> Tensor:
    """Return logits (n, n_classes), each wrong class's as far above the right one's as can be."""
    apart = weight[None] - weight[:, None]
    if norm == "Linf":
        lengths = apart.abs().sum(2)
    else:  # differentiable at 0, where the root is not
        lengths = (apart.square().sum(2) + 1e-30).sqrt() * (1 - torch.eye(len(bias)).to(bias))
    return x @ weight.T + bias + eps * lengths[y]
