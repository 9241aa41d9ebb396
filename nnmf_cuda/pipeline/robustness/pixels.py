"""The attack on pixels, end to end: image, NNLS, selection, normalisation, defence, answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.attacks.purification import surrogate
from nnmf_cuda.attacks.suite import fresh_decisions
from nnmf_cuda.attacks.vector_apgd import vector_apgd
from nnmf_cuda.features import FeatureExtractor
from nnmf_cuda.models import DefendedClassifier
from nnmf_cuda.pipeline.artifacts import TrainedModel

__all__ = ["ImageChain", "PixelAttack", "attack_pixels"]


class ImageChain(nn.Module):
    """Images to logits, differentiably: the projection is differentiated implicitly.

    Parameters
    ----------
    extractor : FeatureExtractor
        Images to features.
    classifier : nn.Module
        Features to logits.
    """

    def __init__(self, extractor: FeatureExtractor, classifier: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, n_classes) of images (n, height * width) in [0, 1]."""
        logits: Tensor = self.classifier(self.extractor(images))
        return logits


@dataclass(frozen=True)
class PixelAttack:
    """What moving pixels within eps/255 does.

    Attributes
    ----------
    curves : dict
        "eps_255" with the robust accuracy of each model, and how far its features moved.
    examples : dict
        For some broken samples: "clean" and "attacked" images (m, height, width), "labels".
    """

    curves: dict[str, Any]
    examples: dict[str, NDArray[Any]]


def attack_pixels(
    model: TrainedModel,
    images: Tensor,
    y: Tensor,
    *,
    eps_255: Sequence[float],
    n_iter: int,
    n_restarts: int,
    surrogate_draws: int,
    seed: int,
    evaluation_seed: int,
) -> PixelAttack:
    """Attack the undefended and the defended chain on pixels.

    Parameters
    ----------
    model : TrainedModel
    images : Tensor of shape (n, height * width)
        In [0, 1], on the model's device.
    y : Tensor of shape (n,)
        int64 labels.
    eps_255 : sequence of float
        Radii of the Linf ball, in 1/255 of the range.
    n_iter, n_restarts : int
        Of APGD on the margin.
    surrogate_draws : int
        Draws through which a purifying defence is climbed.
    seed, evaluation_seed : int
        Of the attack and of the decisions.

    Returns
    -------
    PixelAttack
    """
    chains = {
        "undefended": ImageChain(model.extractor, model.classifier),
        "defended": ImageChain(model.extractor, model.defended),
    }
    curves: dict[str, Any] = {"eps_255": [0.0, *eps_255]}
    examples: dict[str, NDArray[Any]] = {}
    with torch.no_grad():
        clean_features = model.extractor(images)
    for name, chain in chains.items():
        chain.eval()
        climbed = chain
        if isinstance(chain.classifier, DefendedClassifier):
            climbed = ImageChain(model.extractor, surrogate(chain.classifier, surrogate_draws))
        right = _right(chain, images, y, evaluation_seed)
        accuracies, moves = [float(right.float().mean())], [0.0]
        for eps in eps_255:
            points = vector_apgd(
                climbed,
                images,
                y,
                attack_eps=eps / 255,
                n_iter=n_iter,
                n_restarts=n_restarts,
                judge=chain,
                seed=seed,
            )
            held = right & _right(chain, points, y, evaluation_seed)
            accuracies.append(float(held.float().mean()))
            with torch.no_grad():
                moved = (model.extractor(points) - clean_features).abs().amax(1)
            moves.append(float(moved.mean()))
            if name == "defended":
                examples = _examples(images, points, right & ~held, model.image_shape)
        curves[name] = {"robust_accuracy": accuracies, "mean_largest_feature_move": moves}
    return PixelAttack(curves, examples)


def _right(chain: nn.Module, images: Tensor, y: Tensor, seed: int) -> Tensor:
    return fresh_decisions(chain, images, y, seed=seed).float().mean(0) > 0.5


def _examples(
    images: Tensor, points: Tensor, broken: Tensor, image_shape: tuple[int, int], n: int = 4
) -> dict[str, NDArray[Any]]:
    rows = broken.nonzero().squeeze(1)[:n]
    shown = {"clean": images[rows], "attacked": points[rows]}
    return {
        name: tensor.reshape(-1, *image_shape).float().cpu().numpy().astype(np.float32)
        for name, tensor in shown.items()
    }
