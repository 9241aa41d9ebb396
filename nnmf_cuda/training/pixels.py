"""Adversarial training on images: the attack moves pixels, through non-negative least squares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda import ops
from nnmf_cuda.attacks.gradient_ascent import REACH
from nnmf_cuda.attacks.objectives import Objective, margin_loss
from nnmf_cuda.models.features import FeatureExtractor, l2_normalize
from nnmf_cuda.models.networks import FeatureCNN, frozen
from nnmf_cuda.reference.nnmf import as_float
from nnmf_cuda.training.adversarial import (
    ClassWeight,
    balanced_weight,
    pgd_loss,
    trades_loss,
)
from nnmf_cuda.training.classifier import new_classifier
from nnmf_cuda.training.epochs import Settings, Task
from nnmf_cuda.training.loop import TrainingResult, fit
from nnmf_cuda.training.validation import Array, RobustScores, Samples

Method = Literal["pgd", "trades"]

_ROWS = 256
"""Images that are at once in float64: all of them may be more than the memory."""

_VALIDATION_STEPS = 10
"""Steps of the attack on validation images."""


@dataclass(frozen=True)
class ImageSamples:
    """Images of "train" and "valid", (n, height * width), and what makes features of them."""

    extractor: FeatureExtractor
    images: Mapping[str, Tensor]  # uint8, or floating point in [0, 1]


def train_pixel_classifier(
    samples: ImageSamples,
    labels: Array,
    valid_labels: Array,
    *,
    n_classes: int,
    method: Method = "trades",
    attack_eps: float = 8 / 255,
    block: int = 8,
    n_steps: int = 4,
    trades_beta: float = 3.0,
    class_weight: ClassWeight | None = None,
    ema_decay: float = 0.998,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> TrainingResult[FeatureCNN]:
    """Train a `FeatureCNN` to answer alike within an Linf ball of pixels around each image.

    The attack climbs from pixels to the loss: image, non-negative least squares, normalisation,
    selection, network; the components stay as they are. What is minimised, and which epoch is kept,
    is as in `train_robust_classifier`, with the ball in pixels in the place of that in features.

    Of an image the least squares see only the products with the components. In training the pixels
    of a square of `block` by `block` move by one amount, so that a step of the attack is a few
    small products (`PixelReach`) and not a pass over all pixels; an attack by single pixels finds a
    little more.

    Parameters
    ----------
    samples : ImageSamples
        Images of "train" and "valid", and the extractor, on whose device all is done.
    labels, valid_labels : array of shape (n_samples,)
        Integers in 0..n_classes-1.
    n_classes : int
        Number of classes.
    method : {"pgd", "trades"}, default="trades"
        What is minimised.
    attack_eps : float, default=8/255
        How far a pixel may move, of the range [0, 1].
    block : int, default=8
        Side of the squares whose pixels move alike.
    n_steps : int, default=4
        Steps of the attack on each batch.
    trades_beta : float, default=3
        Weight of TRADES' divergence.
    class_weight : {"balanced"}, optional
        As for `train_robust_classifier`.
    ema_decay, epochs, lr, batch_size, seed, progress
        As for `train_classifier`.

    Returns
    -------
    TrainingResult
        With "valid_robust_accuracy", under an attack on pixels of ten steps, in the history.

    Raises
    ------
    TypeError, ValueError
        If data or settings do not fit, or the loss stops being finite.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if class_weight not in (None, *get_args(ClassWeight)):
        raise ValueError(f'class_weight must be "balanced" or None, got {class_weight!r}')
    for name, value in (("attack_eps", attack_eps), ("trades_beta", trades_beta)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    for name, count in (("block", block), ("n_steps", n_steps)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    reach, valid_reach = (
        PixelReach.of(samples.extractor, samples.images[split], attack_eps=attack_eps, block=block)
        for split in ("train", "valid")
    )
    checked = Samples.of(
        reach.features(reach.products),
        labels,
        valid_reach.features(valid_reach.products),
        valid_labels,
        n_classes=n_classes,
        device=reach.low.device,
    )
    x, y = checked.x, checked.y
    scores = RobustScores(checked, attack_eps, "Linf", balanced=class_weight == "balanced")
    weight = None if class_weight is None else balanced_weight(checked)

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator)
        jitter = torch.rand(reach.low.shape, generator=generator) * 2 - 1
        return order.to(x.device), jitter.to(x)

    def batch_loss(network: nn.Module, rows: Tensor, jitter: Tensor) -> Tensor:
        near = reach.rows(rows)

        def worst(loss_of: Objective) -> Tensor:
            with frozen(network):
                return near.climb(loss_of, attack_eps * jitter, n_steps)

        if method == "pgd":
            return pgd_loss(network, y[rows], worst, weight)
        return trades_loss(network, x[rows], y[rows], worst, trades_beta, weight)

    def evaluate(network: nn.Module) -> dict[str, Tensor]:
        attacked = valid_reach.climb(
            lambda points: margin_loss(network(points), checked.valid_y),
            torch.zeros_like(valid_reach.low),
            _VALIDATION_STEPS,
        )
        return scores.at(attacked, network)

    return fit(
        Task(new_classifier(checked, seed), batch_loss),
        Settings("pixel classifier", epochs, lr, batch_size, ema_decay, seed, progress),
        draw_epoch=draw_epoch,
        evaluate=evaluate,
        rank=scores.rank,
    )


@dataclass(frozen=True)
class PixelReach:
    """What moving pixels can do to the products of images with the components.

    Non-negative least squares see an image x by its products H x alone. Where the pixels of a
    square b move by one amount d_b, the products move by the sum over squares of d_b times the sum
    of H's columns in b; [0, 1] leaves a square the mean of the room that its pixels have. So much
    is exact where components do not vary within a square.
    """

    extractor: FeatureExtractor
    products: Tensor  # (n, n_components), float64: of the images as they are
    low: Tensor  # (n, n_blocks): the least move of each square, at most 0
    high: Tensor  # (n, n_blocks): the largest, at least 0
    columns: Tensor  # (n_blocks, n_components): H's columns, summed in each square
    gram: Tensor  # (n_components, n_components), float64
    attack_eps: float

    @classmethod
    def of(
        cls, extractor: FeatureExtractor, images: Tensor, *, attack_eps: float, block: int
    ) -> PixelReach:
        """Take the products of images (n, height * width), and the room around their pixels."""
        wide = extractor.components.double()
        shape = extractor.image_shape
        ones = wide.new_ones(1, wide.shape[1])
        pixels = _summed_in_squares(ones, shape, block)
        products, low, high = (list[Tensor]() for _ in range(3))
        for rows in images.split(_ROWS):
            x = as_float(extractor.as_rows(rows), wide.dtype).to(wide)
            products.append(x @ wide.mT)
            for rooms, room in ((low, x), (high, 1 - x)):
                summed = _summed_in_squares(room.clamp(0, attack_eps), shape, block)
                rooms.append((summed / pixels).float())
        columns = _summed_in_squares(wide, shape, block).mT.float()
        return cls(
            extractor,
            torch.cat(products),
            -torch.cat(low),
            torch.cat(high),
            columns,
            wide @ wide.mT,
            attack_eps,
        )

    @property
    def n_blocks(self) -> int:
        """Number of squares."""
        return len(self.columns)

    def rows(self, chosen: Tensor) -> PixelReach:
        """Return the reach of some of the images."""
        parts = {name: getattr(self, name)[chosen] for name in ("products", "low", "high")}
        return replace(self, **parts)

    def features(self, products: Tensor) -> Tensor:
        """Return the features (n, n_selected), float32, of images with such products."""
        normalised = l2_normalize(ops.nnls(self.gram, products))
        return self.extractor.select(normalised).float()

    def climb(self, loss_of: Objective, start: Tensor, n_steps: int) -> Tensor:
        """Return the features (n, n_selected) to which equal steps of pixels up a loss lead.

        `loss_of` takes features, and `start` (n, n_blocks) are first moves, put into the room.
        """
        moves = start.clamp(self.low, self.high)
        step = REACH * self.attack_eps / n_steps
        for _ in range(n_steps):
            leaf = self._moved(moves).requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(loss_of(self.features(leaf)).sum(), leaf)
            moves = moves.add_((gradient.float() @ self.columns.mT).sign_(), alpha=step)
            torch.clamp(moves, self.low, self.high, out=moves)
        return self.features(self._moved(moves))

    def _moved(self, moves: Tensor) -> Tensor:
        return self.products + (moves @ self.columns).double()


def _summed_in_squares(rows: Tensor, image_shape: tuple[int, int], block: int) -> Tensor:
    """Return the sums (n, n_blocks) of images (n, height * width) over squares of pixels."""
    images = rows.reshape(-1, 1, *image_shape)
    sums = functional.avg_pool2d(images, block, ceil_mode=True, divisor_override=1)
    return sums.flatten(1)
