"""What an adaptive attack climbs, and how points are judged: losses and decisions of each sample.

An attack climbs the mean loss of a random model's answers and keeps the points that answers of
other draws get most wrong (`wrongness`); who is right at last is told by fresh decisions, which no
attack has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.models.networks import frozen, isolated

N_DECISIONS = 20
"""R: fresh decisions of a random model on a point, of which a majority decides."""

N_ROUNDS = 10
"""How often these are taken anew: what is reported is the mean over rounds."""

LossOf = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, n_classes) and labels (n,) to losses (n,), larger where the answer is worse."""

LogitsOf = Callable[[Tensor], Tensor]
"""Features (n, n_features) to logits (n, n_classes)."""

Objective = Callable[[Tensor], Tensor]
"""Points (n, n_features) to losses (n,); sample i is always in row i."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy; its gradient dies out where a right answer is confident."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest other logit minus the label's: positive where the answer is wrong.

    Carlini & Wagner (2017), Towards evaluating the robustness of neural networks, f_6. Unlike the
    cross-entropy it does not saturate.
    """
    labels = y.unsqueeze(1)
    others = logits.scatter(1, labels, float("-inf")).amax(1)
    return others - logits.gather(1, labels).squeeze(1)


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margin over the gap between largest and third largest logit.

    Croce & Hein (2020), equation 6: the difference of logits ratio, which no scaling of the logits
    changes. For three classes and more.
    """
    top = logits.topk(3, dim=1).values
    return margin_loss(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES: Mapping[str, LossOf] = {"ce": cross_entropy, "margin": margin_loss, "dlr": dlr_loss}


def loss_named(name: str, n_classes: int | None = None) -> LossOf:
    """Return a loss by its name; raise ValueError where there is none for so many classes."""
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {name!r}")
    if name == "dlr" and n_classes is not None and n_classes < 3:
        raise ValueError(
            f"loss 'dlr' divides by the gap to the third largest logit, the model has {n_classes}"
            " classes: use 'margin'"
        )
    return LOSSES[name]


def sampled_logits(model: nn.Module, x: Tensor, n_samples: int) -> Tensor:
    """Return n_samples answers (n_samples, n, n_classes) of a random model, from one pass.

    Its noise must be drawn anew for each row of x (n, n_features).
    """
    logits: Tensor = model(x.repeat(n_samples, 1))
    return logits.reshape(n_samples, len(x), -1)


@dataclass(frozen=True)
class ExpectedLoss:
    """Mean loss of a model over `eot_iter` of its answers: expectation over transformation.

    Athalye, Carlini & Wagner (2018), Obfuscated gradients give a false sense of security. The
    answers are one axis of one pass, so an average costs one call.

    Of the answers only a share counts, those nearest to being wrong. A defence that decides by
    majority falls with a little more than half of its answers, and to push the others is effort
    lost: the idea of selecting draws is DiffHammer's (Wang et al., 2024).
    """

    model: nn.Module
    y: Tensor
    loss: str = "margin"
    eot_iter: int = 1
    share: float = 1.0

    def __call__(self, points: Tensor) -> Tensor:
        """Return the losses (n,) of points (n, n_features)."""
        logits = sampled_logits(self.model, points, self.eot_iter)
        loss_of = loss_named(self.loss, logits.shape[2])
        losses = loss_of(logits.flatten(0, 1), self.y.repeat(self.eot_iter))
        losses = losses.reshape(self.eot_iter, -1)
        if self.share < 1:
            losses = losses.topk(math.ceil(self.share * self.eot_iter), dim=0).values
        return losses.mean(0)


@torch.no_grad()
def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether two answers to the same features differ; draws from the generators as they are."""
    return not torch.equal(finite(model(x)), finite(model(x)))


def finite(logits: Tensor) -> Tensor:
    """Return logits, or raise ValueError: of NaN the largest is the first, which may be right."""
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "the model returned NaN or infinite logits; check its weights and features"
        )
    return logits


@torch.no_grad()
def wrongness(model: nn.Module, points: Tensor, y: Tensor, n_answers: int) -> Tensor:
    """Return how wrong (n,) a model is on points: more is better for an attacker.

    The share of wrong answers, and among equals the mean margin, squeezed into a share of one.
    """
    logits = finite(sampled_logits(model, points, n_answers))
    margins = margin_loss(logits.flatten(0, 1), y.repeat(n_answers)).reshape(n_answers, -1)
    wrong = (logits.argmax(2) != y).double().mean(0)
    mean = margins.double().mean(0)
    return wrong + 0.5 / n_answers * mean / (1 + mean.abs())


def fresh_decisions(
    model: nn.Module, points: Tensor, y: Tensor, *, seed: int, n_rounds: int = 1
) -> tuple[Tensor, Tensor]:
    """Ask a random model `N_DECISIONS` times a round, a model without noise once.

    Returns who is right, bool (n_rounds, N_DECISIONS, n), or (1, 1, n) without noise, and the mean
    margin losses (n,).
    """
    with frozen(model), isolated(seed), torch.no_grad():
        n_rounds, n_decisions = (n_rounds, N_DECISIONS) if is_random(model, points) else (1, 1)
        right, margins = [], []
        for _ in range(n_rounds):
            logits = finite(sampled_logits(model, points, n_decisions))
            right.append(logits.argmax(2) == y)
            flat = margin_loss(logits.flatten(0, 1), y.repeat(n_decisions))
            margins.append(flat.reshape(n_decisions, -1).mean(0))
        return torch.stack(right), torch.stack(margins).mean(0)


def majority(right: Tensor) -> Tensor:
    """Return who (n_rounds, n) is right in more than half of the decisions (n_rounds, R, n)."""
    return right.double().mean(1) > 0.5


def majority_right(model: nn.Module, points: Tensor, y: Tensor, *, seed: int) -> Tensor:
    """Return who, bool (n,), is right by the majority of one round of fresh decisions."""
    right, _ = fresh_decisions(model, points, y, seed=seed)
    return majority(right)[0]
