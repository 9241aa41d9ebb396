"""The attack on pixels that all systems share: the worst case over attacks, image by image.

Through derivatives where a system has them: APGD on the margin, on the cross-entropy and, with
three classes and more, on the difference of logits ratio, and Square as a check that the gradients
do not lie. By its answers alone where it has none: Square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.attacks.balls import Threat
from nnmf_cuda.attacks.gradient_ascent import pgd, vector_apgd
from nnmf_cuda.attacks.objectives import ExpectedLoss
from nnmf_cuda.comparison.victims import Victim
from nnmf_cuda.models.networks import frozen, isolated

APGD, SQUARE, FGSM, PGD = "APGD", "Square", "FGSM", "PGD"
_FIRST = f"{APGD} margin"

_AT_ONCE = 50
"""Images that are attacked at a time: what their gradients need is held at once."""


@dataclass(frozen=True)
class Spending:
    """What the attacks on each system may spend.

    Attributes
    ----------
    n_images : int
        Of the test images, drawn once for all systems; all of them where there are fewer.
    eps_255 : tuple of float
        Linf radii in 1/255 of the pixels' range, growing.
    n_iter, n_restarts : int
        Steps of APGD from a start, and random starts beside what a smaller radius has found.
    eot_iter : int
        Answers of a random system that each step averages.
    n_queries : int
        Of Square at each radius, of a system without a gradient.
    n_check_queries : int
        Of Square at each radius, of one with a gradient.
    """

    n_images: int = 100
    eps_255: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    n_iter: int = 20
    n_restarts: int = 1
    eot_iter: int = 4
    n_queries: int = 100
    n_check_queries: int = 30

    def __post_init__(self) -> None:
        for name in ("n_iter", "n_restarts", "eot_iter", "n_queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_images < 2:  # one has no interval
            raise ValueError(f"n_images must be at least 2, got {self.n_images}")
        if self.n_check_queries < 0:
            raise ValueError(f"n_check_queries must be >= 0, got {self.n_check_queries}")
        eps = self.eps_255
        if not eps or not all(0 < e <= 255 for e in eps) or sorted(set(eps)) != list(eps):
            raise ValueError(f"eps_255 must be growing numbers in (0, 255], got {list(eps)}")


@dataclass(frozen=True)
class PixelSearch:
    """What `attack_pixels` found.

    Attributes
    ----------
    held : Tensor of shape (1 + n_radii, n), bool
        Who is right at radius 0, and whom nothing broke up to each radius.
    broken_by : dict of str to list of int
        As in `RobustCurve`.
    points : Tensor of shape (n, height * width)
        The worst points within the largest radius, for transfer: of a system with a gradient found
        for every image, whether a smaller radius has broken it or not; else those of Square.
    """

    held: Tensor
    broken_by: dict[str, list[int]]
    points: Tensor


_Search = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Images, the worst points so far and labels to points: rows (n, height * width)."""


def attack_pixels(
    victim: Victim, images: Tensor, y: Tensor, *, spending: Spending, seed: int
) -> PixelSearch:
    """Attack images (n, height * width) in [0, 1] at every radius; what is broken stays broken.

    Each radius but the first goes on from what the one before has found, and the largest has also
    points that were found for every image from a random start.
    """
    held = victim.right(images, y)
    history, points = [held], images.clone()
    broken_by: dict[str, list[int]] = {}
    far = None
    if victim.has_gradient:
        largest = spending.eps_255[-1] / 255
        far = transfer_points(
            victim,
            images,
            y,
            eps=largest,
            n_iter=spending.n_iter,
            eot_iter=spending.eot_iter if victim.is_random else 1,
            seed=seed,
        )

    def judge(name: str, rows: Tensor, found: Tensor) -> Tensor:
        right = victim.right(found, y[rows])
        broken_by.setdefault(name, [0] * (1 + len(spending.eps_255)))
        broken_by[name][len(history)] += int((~right).sum())
        held[rows] = right
        return right

    for eps_255 in spending.eps_255:
        held = held.clone()
        if far is not None and eps_255 == spending.eps_255[-1]:
            rows = held.nonzero().squeeze(1)
            judge(_FIRST, rows, far[rows])
        for name, search in _searches(victim, eps_255 / 255, spending, seed).items():
            rows = held.nonzero().squeeze(1)
            found = search(images[rows], points[rows], y[rows]) if len(rows) else images[rows]
            right = judge(name, rows, found)
            # What Square does not break comes back as it is: no place to go on from.
            kept = torch.ones_like(right) if name == _FIRST else ~right
            points[rows[kept]] = found[kept]
        history.append(held)
    return PixelSearch(torch.stack(history), broken_by, points if far is None else far)


def _searches(victim: Victim, eps: float, spending: Spending, seed: int) -> dict[str, _Search]:
    """Return the attacks of one radius, the strongest first."""

    def square(n_queries: int) -> _Search:
        def search(images: Tensor, points: Tensor, y: Tensor) -> Tensor:
            return square_points(victim, images, y, eps=eps, n_queries=n_queries, seed=seed)

        return search

    if not victim.has_gradient:
        return {SQUARE: square(spending.n_queries)}
    losses = ["margin", "ce", *(["dlr"] if victim.n_classes > 2 else [])]

    def climb(loss: str) -> _Search:
        def search(images: Tensor, points: Tensor, y: Tensor) -> Tensor:
            parts = zip(*(t.split(_AT_ONCE) for t in (images, points, y)), strict=True)
            return torch.cat(
                [
                    vector_apgd(
                        victim.rows,
                        x,
                        of,
                        attack_eps=eps,
                        loss=loss,
                        n_iter=spending.n_iter,
                        n_restarts=spending.n_restarts,
                        eot_iter=spending.eot_iter if victim.is_random else 1,
                        starts=[at] if loss == "margin" else [],
                        seed=seed,
                    )
                    for x, at, of in parts
                ]
            )

        return search

    found = {f"{APGD} {loss}": climb(loss) for loss in losses}
    if spending.n_check_queries:
        found[SQUARE] = square(spending.n_check_queries)
    return found


def transfer_points(
    victim: Victim,
    images: Tensor,
    y: Tensor,
    *,
    eps: float,
    n_iter: int,
    eot_iter: int = 1,
    seed: int,
) -> Tensor:
    """Return points (n, height * width) of high margin loss for every image, broken or not."""
    parts = zip(images.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
    return torch.cat(
        [
            vector_apgd(
                victim.rows,
                x,
                of,
                attack_eps=eps,
                n_iter=n_iter,
                n_restarts=1,
                eot_iter=eot_iter,
                seed=seed,
            )
            for x, of in parts
        ]
    )


def pgd_points(
    victim: Victim, images: Tensor, y: Tensor, *, eps: float, n_iter: int, seed: int
) -> Tensor:
    """Return the last points of PGD on the cross-entropy, from a random start.

    With `n_iter` 1 it is FGSM, a single step of eps from the image itself: Goodfellow, Shlens &
    Szegedy (2015), Explaining and harnessing adversarial examples.
    """
    found = []
    with frozen(victim.rows), isolated(seed):
        for x, of in zip(images.split(_AT_ONCE), y.split(_AT_ONCE), strict=True):
            ball = Threat(eps).ball(x)
            start = x if n_iter == 1 else ball.random_start()
            found.append(pgd(ExpectedLoss(victim.rows, of, "ce"), ball, start, n_iter=n_iter))
    return torch.cat(found)


def square_points(
    victim: Victim, images: Tensor, y: Tensor, *, eps: float, n_queries: int, seed: int
) -> Tensor:
    """Return points of Square, whose changes are squares of the image; the authors' own search.

    Images that it does not break come back as they are. Andriushchenko, Croce, Flammarion & Hein
    (2020), Square Attack: a query-efficient black-box adversarial attack via random search, ECCV.
    """
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(
        lambda x: victim.rows(x.flatten(1)),
        norm="Linf",
        n_queries=n_queries,
        eps=eps,
        seed=seed,
        device=images.device,
    )
    shape = (-1, 1, *victim.image_shape)
    with frozen(victim.rows), isolated(seed), torch.no_grad():
        found: Tensor = attack.perturb(images.reshape(shape), y)
    points = found.reshape(images.shape)
    return torch.minimum(torch.maximum(points, images - eps), images + eps).clamp(0, 1)
