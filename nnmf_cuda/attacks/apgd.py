"""APGD on feature vectors: gradient ascent that halves its step where it gets stuck."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LOSSES", "apgd_attack"]

LogitsOf = Callable[[Tensor], Tensor]
LossOf = Callable[[Tensor, Tensor], Tensor]

# Share of the last step that the momentum replaces, from the second step on.
_OWN_STEP = 0.75
# A step is halved unless the loss rose in more than this share of a window's steps.
_RISING_SHARE = 0.75
# Keeps the direction of a zero vector finite.
_TINY = 1e-12


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, reduction="none")


LOSSES: Mapping[str, LossOf] = {"ce": _cross_entropy}
"""What can be climbed: logits (n, n_classes) and labels (n,) to losses (n,), differentiably."""


def apgd_attack(
    logits_of: LogitsOf,
    x: Tensor,
    y: Tensor,
    *,
    attack_eps: float,
    norm: str = "Linf",
    loss: str = "ce",
    n_iter: int = 100,
    n_restarts: int = 1,
    eot_iter: int = 1,
    seed: int = 0,
) -> Tensor:
    """Climb a loss within a ball around each sample, from random starts.

    Parameters
    ----------
    logits_of : callable
        Maps features (n, n_features) to float32 logits (n, n_classes), differentiably.
    x : Tensor of shape (n_samples, n_features)
        float32 in [0, 1]; not modified.
    y : Tensor of shape (n_samples,)
        int64 labels, on the device of x.
    attack_eps : float
        Radius of the ball.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball.
    loss : {"ce"}, default="ce"
        Of `LOSSES`.
    n_iter, n_restarts : int, default=100, 1
        Steps from a start, and starts; each start is for the samples that no earlier one broke.
    eot_iter : int, default=1
        Gradients averaged at each step, for a random model.
    seed : int, default=0
        Seeds torch's global generators, after the first look at which samples are right.

    Returns
    -------
    Tensor of shape (n_samples, n_features)
        The last misclassified point of each sample that was broken; the others as they are in x.

    Notes
    -----
    Random numbers are drawn from torch's global CPU generator in the order and shapes of the
    authors' implementation, between the calls of the model. So a model that draws its noise from
    the global generators sees the same noise there and here, and the points are equal bit for
    bit; the tests compare them. On a GPU, no step waits for the device.

    References
    ----------
    .. [1] Croce & Hein (2020), Reliable evaluation of adversarial robustness with an ensemble of
       diverse parameter-free attacks, ICML, algorithm 1.
    """
    with torch.no_grad():
        x_adv = x.clone()
        robust = logits_of(x).argmax(1) == y
        torch.manual_seed(seed)
        for _ in range(n_restarts):
            rows = robust.nonzero().squeeze(1)
            if len(rows) == 0:
                break
            model = _Differentiable(logits_of, LOSSES[loss], y[rows], eot_iter)
            ball = _BALLS[norm](x[rows], attack_eps)
            points, held = _climb(model, ball, 2 * attack_eps, n_iter)
            robust[rows] = held.squeeze(1)
            x_adv[rows] = torch.where(held, x_adv[rows], points)
    return x_adv


def _climb(
    model: _Differentiable, ball: _Ball, first_step: float, n_iter: int
) -> tuple[Tensor, Tensor]:
    """Run one start; returns the last wrong points (n, M), and who was never wrong (n, 1)."""
    x_adv = ball.random_start()
    leaf = x_adv.detach().requires_grad_()  # the same memory, for the model
    gradient = torch.empty_like(x_adv)
    losses, held = model.evaluate(leaf, gradient)
    x_wrong = x_adv.clone()
    best = _Best(x_adv.clone(), gradient.clone(), losses)
    # Row i + 1 is of step i; row 0 stays 0. So the authors' implementation judges the first step:
    # against 0, not against the loss at the start.
    history = losses.new_zeros((n_iter + 1, *losses.shape))
    steps = _StepSizes(first_step, losses)
    checkpoints = _checkpoints(n_iter)
    previous, change, proposed = x_adv.clone(), torch.empty_like(x_adv), torch.empty_like(x_adv)

    for i in range(n_iter):
        own = _OWN_STEP if i > 0 else 1.0
        torch.sub(x_adv, previous, out=change)
        previous.copy_(x_adv)
        ball.step(x_adv, gradient, steps.size, out=proposed)
        proposed.sub_(x_adv).mul_(own).add_(x_adv).add_(change.mul_(1 - own))
        ball.project_(proposed)
        x_adv.copy_(proposed)

        losses, right = model.evaluate(leaf, gradient)
        held &= right
        torch.where(right, x_wrong, x_adv, out=x_wrong)
        history[i + 1] = losses
        best.update(x_adv, gradient, losses)
        if i in checkpoints:
            stuck = steps.halve_where_stuck(history[i + 1 - checkpoints[i] : i + 2], best.losses)
            torch.where(stuck, best.points, x_adv, out=x_adv)
            torch.where(stuck, best.gradient, gradient, out=gradient)
    return x_wrong, held


def _checkpoints(n_iter: int) -> dict[int, int]:
    """Return the steps after which progress is judged, each with the length of its window.

    Windows of 22 % of the steps, each 3 % shorter than the one before, down to 6 %.
    """
    length, shorter, shortest = (max(int(share * n_iter), 1) for share in (0.22, 0.03, 0.06))
    checkpoints = {}
    step = length - 1
    while step < n_iter:
        checkpoints[step] = length
        length = max(length - shorter, shortest)
        step += length
    return checkpoints


@dataclass
class _Differentiable:
    """The model with its loss, on the samples of one start."""

    logits_of: LogitsOf
    loss_of: LossOf
    y: Tensor
    eot_iter: int

    def evaluate(self, leaf: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Write the mean gradient (n, M); return losses and who is right, both (n, 1).

        The last two are of the last of the `eot_iter` passes.
        """
        for i in range(self.eot_iter):
            with torch.enable_grad():
                logits = self.logits_of(leaf)
                losses = self.loss_of(logits, self.y)
                (passed,) = torch.autograd.grad(losses.sum(), leaf)
            if i == 0:
                gradient.copy_(passed)
            else:
                gradient.add_(passed)
        if self.eot_iter > 1:
            gradient.div_(self.eot_iter)
        right = logits.detach().argmax(1) == self.y
        return losses.detach().unsqueeze(1), right.unsqueeze(1)


@dataclass
class _Best:
    """Of each sample the point of highest loss so far, with gradient and loss (n, 1) there."""

    points: Tensor
    gradient: Tensor
    losses: Tensor

    def update(self, points: Tensor, gradient: Tensor, losses: Tensor) -> None:
        """Take over what is better."""
        better = losses > self.losses
        torch.where(better, points, self.points, out=self.points)
        torch.where(better, gradient, self.gradient, out=self.gradient)
        self.losses = torch.where(better, losses, self.losses)


class _StepSizes:
    """A step size for each sample (n, 1), halved at the checkpoints where it stopped helping."""

    def __init__(self, first_step: float, losses: Tensor) -> None:
        self.size = torch.full_like(losses, first_step)
        self._last_best = losses
        self._last_stuck = torch.ones_like(losses, dtype=torch.bool)

    def halve_where_stuck(self, window: Tensor, best: Tensor) -> Tensor:
        """Return where (n, 1) the loss hardly rose, or its best has not moved at a kept size.

        `window` holds the losses (steps + 1, n, 1) since the last checkpoint, and the one before.
        """
        n_steps = len(window) - 1
        n_rises = (window[1:] > window[:-1]).sum(0)
        stuck = n_rises <= _RISING_SHARE * n_steps
        stuck |= ~self._last_stuck & (self._last_best >= best)
        self._last_stuck, self._last_best = stuck, best
        self.size = torch.where(stuck, self.size / 2, self.size)
        return stuck


class _Ball(ABC):
    """Points of the box [0, 1] at most `radius` from the centers (n, M)."""

    def __init__(self, centers: Tensor, radius: float) -> None:
        self.centers = centers
        self.radius = radius

    def random_start(self) -> Tensor:
        """Draw a point on the ball's surface, put into the box."""
        # Drawn on the CPU, whatever the device: the same numbers everywhere.
        directions = self._direction(self._draw(self.centers.shape).to(self.centers.device))
        return (self.centers + self.radius * directions).clamp_(0, 1)

    def step(self, points: Tensor, gradient: Tensor, size: Tensor, *, out: Tensor) -> None:
        """Go up by steps of `size` (n, 1), then back into the ball."""
        self._steepest(gradient, out=out)
        out.mul_(size).add_(points)
        self.project_(out)

    @abstractmethod
    def project_(self, points: Tensor) -> None:
        """Put points back into ball and box, in place."""

    @abstractmethod
    def _draw(self, shape: torch.Size) -> Tensor:
        """Draw from torch's global CPU generator what makes a random direction."""

    @abstractmethod
    def _direction(self, vectors: Tensor) -> Tensor:
        """Scale to length 1."""

    @abstractmethod
    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        """Write the direction of length 1 in which the loss grows most."""


class _LinfBall(_Ball):
    def __init__(self, centers: Tensor, radius: float) -> None:
        super().__init__(centers, radius)
        # Ball and box are both boxes: so is what they share.
        self._lower = (centers - radius).clamp_(min=0)
        self._upper = (centers + radius).clamp_(max=1)

    def project_(self, points: Tensor) -> None:
        torch.clamp(points, self._lower, self._upper, out=points)

    def _draw(self, shape: torch.Size) -> Tensor:
        return 2 * torch.rand(shape) - 1

    def _direction(self, vectors: Tensor) -> Tensor:
        return vectors / (vectors.abs().amax(1, keepdim=True) + _TINY)

    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        torch.sign(gradient, out=out)


class _L2Ball(_Ball):
    def project_(self, points: Tensor) -> None:
        points.sub_(self.centers)
        length = _length(points)
        points.div_(length + _TINY).mul_(length.clamp_(max=self.radius))
        points.add_(self.centers).clamp_(0, 1)

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape)

    def _direction(self, vectors: Tensor) -> Tensor:
        return vectors / (_length(vectors) + _TINY)

    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        torch.div(gradient, _length(gradient) + _TINY, out=out)


def _length(vectors: Tensor) -> Tensor:
    """Return the L2 norms (n, 1), rounded as the authors' implementation rounds them."""
    return vectors.square().sum(1, keepdim=True).sqrt_()


_BALLS: Mapping[str, type[_Ball]] = {"Linf": _LinfBall, "L2": _L2Ball}
