"""The attack on pixels, end to end: image, NNLS, selection, normalisation, defence, answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.attacks.objectives import majority_right
from nnmf_cuda.attacks.surrogates import surrogate
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.evaluation.headline import Proof, check_agreement
from nnmf_cuda.evaluation.pixel_radius import certify_pixels
from nnmf_cuda.evaluation.robustness import PixelAttack, PixelCurve, PixelExamples, PixelProof
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.features import ImageChain
from nnmf_cuda.models.networks import isolated
from nnmf_cuda.pipeline.artifacts import TrainedModel
from nnmf_cuda.robustness.budgets import PixelBudget
from nnmf_cuda.robustness.verification import Verification


def attack_pixels(
    model: TrainedModel,
    images: Tensor,
    y: Tensor,
    *,
    budget: PixelBudget,
    seed: int,
    evaluation_seed: int,
    crew: Crew = ALONE,
) -> PixelAttack:
    """Attack the undefended and the defended chain on pixels.

    Images (n, height * width) are in [0, 1], on the model's device. Of a `crew` one process attacks
    one chain, and another the other.
    """

    def attacked(classifier: nn.Module) -> tuple[PixelCurve, PixelExamples, NDArray[np.bool_]]:
        chain = _ChainAttack(model, classifier, images, y, budget, seed, evaluation_seed)
        return chain.climb_through(), chain.examples(), torch.stack(chain.history).cpu().numpy()

    chains = (model.classifier, model.defended)
    found = crew.each([partial(attacked, one) for one in chains])
    (undefended, _, _), (defended, examples, held) = found
    return PixelAttack(
        eps_255=[0.0, *budget.eps_255],
        undefended=undefended,
        defended=defended,
        examples=examples,
        held=held,
    )


def certify_chain(
    model: TrainedModel, images: Tensor, verification: Verification, attacked: PixelAttack
) -> PixelProof:
    """Say at which radii in pixels the answers hold that are proven in features.

    Images (n, height * width) are those of the verified and of the attacked samples. Raises
    ContradictionError where the attack broke one within its radius.
    """
    radii = torch.from_numpy(verification.proven) * float(np.min(verification.eps))
    found = certify_pixels(model.extractor, images, radii, norm=verification.norm)
    assert attacked.held is not None
    for eps, held in zip(attacked.eps_255, attacked.held, strict=True):
        proven = verification.proven & (found.linf > 0) & (found.linf >= eps / 255)
        check_agreement(held.astype(float), Proof(proven, f"bounds, to {eps:g}/255 in pixels"))
    return PixelProof(
        [found.certified_accuracy(eps / 255) for eps in attacked.eps_255],
        255 * float(np.median(found.linf[verification.proven]))
        if verification.proven.any()
        else None,
    )


@dataclass
class _ChainAttack:
    """One chain under growing perturbations: what a smaller one has broken stays broken."""

    model: TrainedModel
    classifier: nn.Module
    images: Tensor
    y: Tensor
    budget: PixelBudget
    seed: int
    evaluation_seed: int

    def __post_init__(self) -> None:
        climbed = self.classifier
        if isinstance(climbed, DefendedClassifier):
            climbed = surrogate(climbed, self.budget.surrogate_draws)
        self.chain, self.climbed = (
            ImageChain(self.model.extractor, c).eval() for c in (self.classifier, climbed)
        )
        self.points = self.images.clone()
        self.held = self.right_at_first = self._right()
        self.history = [self.held]  # at each radius, of which the first is 0

    def climb_through(self) -> PixelCurve:
        """Attack at every radius; returns the curve."""
        largest, n_restarts = self.budget.eps_255[-1], self.budget.n_restarts
        accuracies, moves = [self._accuracy()], [0.0]
        for eps in self.budget.eps_255:
            self._attack(eps, n_restarts)
            self.history.append(self.held)
            accuracies.append(self._accuracy())
            moves.append(self._feature_move())
        self._attack(largest, 0)
        return PixelCurve(accuracies, moves, after_twice_the_steps=self._accuracy())

    def _attack(self, eps_255: float, n_restarts: int) -> None:
        rows = self.held.nonzero().squeeze(1)
        if not len(rows):
            return
        self.points[rows] = vector_apgd(
            self.climbed,
            self.images[rows],
            self.y[rows],
            attack_eps=eps_255 / 255,
            n_iter=self.budget.n_iter,
            n_restarts=n_restarts,
            starts=[self.points[rows]],
            judge=self.chain,
            seed=self.seed,
        )
        self.held = self.held & self._right()

    def _right(self) -> Tensor:
        return majority_right(self.chain, self.points, self.y, seed=self.evaluation_seed)

    def _accuracy(self) -> float:
        return float(self.held.float().mean())

    @torch.no_grad()
    def _feature_move(self) -> float:
        """Mean over the samples that were right, the only ones that are attacked."""
        before, after = map(self.model.extractor, (self.images, self.points))
        moved = (after - before).abs().amax(1)[self.right_at_first]
        return float(moved.mean()) if len(moved) else 0.0

    @torch.no_grad()
    def examples(self, n: int = 4) -> PixelExamples:
        """Return the first broken samples."""
        rows = (self.right_at_first & ~self.held).nonzero().squeeze(1)[:n]
        shape = (-1, *self.model.image_shape)
        with isolated(self.evaluation_seed):
            answers = self.chain(self.points[rows]).argmax(1) if len(rows) else self.y[rows]
        names = self.model.label_names
        return PixelExamples(
            clean=self.images[rows].reshape(shape).float().cpu().numpy(),
            attacked=self.points[rows].reshape(shape).float().cpu().numpy(),
            titles=[
                f"{names[int(was)]} \N{RIGHTWARDS ARROW} {names[int(now)]}"
                for was, now in zip(self.y[rows], answers, strict=True)
            ],
        )
