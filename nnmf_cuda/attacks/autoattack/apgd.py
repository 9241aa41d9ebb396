"""APGD on feature vectors: gradient ascent that halves its step where it gets stuck."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.attacks.balls import BALLS
from nnmf_cuda.attacks.gradient_ascent import Ascent
from nnmf_cuda.attacks.objectives import LogitsOf, LossOf, loss_named


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
    """Climb a loss in a ball around features x (n, n_features) in [0, 1], from random starts.

    Returns (n, n_features): of each sample that was broken the last wrong point, the others as they
    are in x. `logits_of` maps features to float32 logits, differentiably; each start is for the
    samples that no earlier one broke; a step averages `eot_iter` gradients. Croce & Hein (2020),
    Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks, ICML, algorithm 1.

    `seed` is set after the first look at who is right, and random numbers are drawn from torch's
    global CPU generator in the order and shapes of the authors' implementation, between the calls
    of the model. So a model that draws its noise from the global generators sees the same noise
    there and here, and the points are equal bit for bit; the tests compare them. On a GPU, no step
    waits for the device, and of models that `why_not_replayed` knows a step is a CUDA graph.
    """
    with torch.no_grad():
        x_adv = x.clone()
        robust = logits_of(x).argmax(1) == y
        torch.manual_seed(seed)
        for _ in range(n_restarts):
            rows = robust.nonzero().squeeze(1)
            if len(rows) == 0:
                break
            model = _Differentiable(logits_of, loss_named(loss), x[rows], y[rows], eot_iter)
            ball = BALLS[norm](x[rows], attack_eps)
            ascent = Ascent(model.evaluate, ball, n_iter=n_iter, asked=logits_of)
            ascent.climb(ball.random_start())
            robust[rows] = model.held.squeeze(1)
            x_adv[rows] = torch.where(model.held, x_adv[rows], model.x_wrong)
    return x_adv


@dataclass
class _Differentiable:
    """The model with its loss, on the samples of one start; remembers where it was wrong.

    `held` (n, 1) says who was never wrong; `x_wrong` (n, M) are the others' last wrong points.
    """

    logits_of: LogitsOf
    loss_of: LossOf
    x: Tensor
    y: Tensor
    eot_iter: int

    def __post_init__(self) -> None:
        self.held = torch.ones_like(self.y, dtype=torch.bool).unsqueeze(1)
        self.x_wrong = self.x.clone()

    def evaluate(self, leaf: Tensor, gradient: Tensor) -> Tensor:
        """Write the mean gradient (n, M); return the losses (n, 1) of the last pass."""
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
        right = (logits.detach().argmax(1) == self.y).unsqueeze(1)
        self.held &= right
        torch.where(right, self.x_wrong, leaf.detach(), out=self.x_wrong)
        return losses.detach().unsqueeze(1)
