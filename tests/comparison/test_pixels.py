"""The attack on pixels: against closed forms, and what it must never do."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nnmf_cuda.baselines import ImageClassifier, LabelledImages, PixelNetwork
from nnmf_cuda.comparison import pixels
from nnmf_cuda.comparison.pixels import (
    Spending,
    attack_pixels,
    pgd_points,
    square_points,
    transfer_points,
)
from nnmf_cuda.comparison.victims import Victim
from tests.comparison.conftest import NearestCentroid, SmallCNN, images_of


class Linear(ImageClassifier):
    """Logits (0, w x + b): what a radius breaks is known in closed form."""

    def __init__(self, w: Tensor, b: float, has_gradient: bool = True) -> None:
        self.w, self.b, self.has_gradient = w, b, has_gradient
        self.classes_ = np.arange(2)

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        images = torch.as_tensor(np.asarray(X))
        return _LinearNetwork(self.w, self.b)(images).double().softmax(1).numpy()

    def pixel_network(self) -> PixelNetwork | None:
        return _LinearNetwork(self.w, self.b) if self.has_gradient else None


class _LinearNetwork(PixelNetwork):
    w: Tensor

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.register_buffer("w", w)
        self.b = b

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1) @ self.w + self.b
        return torch.stack((torch.zeros_like(score), score), 1)


@pytest.fixture
def linear() -> tuple[Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(64, generator=generator)
    x = 0.3 + 0.4 * torch.rand(30, 64, generator=generator)  # no radius below reaches the box
    scores = x @ w
    model = Linear(w, 0.04 - float(scores.median()))  # which is one of the scores
    y = ((scores + model.b) > 0).long()
    y[0] = 1 - y[0]  # wrong from the beginning
    return model, x, y


SPENDING = Spending(n_images=30, eps_255=(1.0, 4.0, 16.0), n_iter=20)


def test_apgd_breaks_what_can_be_broken_of_a_linear_system(
    linear: tuple[Linear, Tensor, Tensor],
) -> None:
    model, x, y = linear
    victim = Victim(model, (8, 8), seed=0)
    found = attack_pixels(victim, x, y, spending=SPENDING, seed=0)
    margin = (x @ model.w + model.b) * (2 * y - 1)
    for row, eps in zip(found.held, (0, 1, 4, 16), strict=True):
        assert torch.equal(row, margin - eps / 255 * model.w.abs().sum() > 0)
    # Points for transfer are at the largest radius for all, whatever has broken them.
    move = (found.points - x).abs()
    assert (move <= 16 / 255 + 1e-6).all()
    assert (move.amax(1) > 15 / 255).all()
    assert found.held[0].sum() == 29
    assert sum(map(sum, found.broken_by.values())) == 29 - int(found.held[-1].sum())


def test_a_radius_goes_on_from_what_the_one_before_has_found(
    linear: tuple[Linear, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = linear
    victim = Victim(model, (8, 8), seed=0)
    starts: list[Tensor] = []

    def climbs(rows: object, x: Tensor, y: Tensor, **told: Any) -> Tensor:
        starts.extend(told.get("starts", ()))
        return (x + told["attack_eps"] / 10).clamp(0, 1)  # which breaks nothing

    monkeypatch.setattr(pixels, "vector_apgd", climbs)
    spending = Spending(n_images=30, eps_255=(0.001, 0.01, 0.1), n_check_queries=2)
    found = attack_pixels(victim, x, y, spending=spending, seed=0)
    right = x[found.held[0]]
    assert torch.equal(found.held[0], found.held[-1])
    expected = [right, right + 0.0001 / 255, right + 0.001 / 255]
    torch.testing.assert_close(starts, expected, atol=1e-7, rtol=0)


class _Rounding(_LinearNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 255).round() / 255)


class _Detached(_LinearNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


class _Infinite(_LinearNetwork):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits + 0 * (images.flatten(1).sum(1, keepdim=True) * 0).sqrt()


@pytest.mark.parametrize("network", [_Rounding, _Detached, _Infinite])
def test_a_network_whose_gradient_leads_nowhere_is_asked_by_queries(
    network: type[_LinearNetwork], linear: tuple[Linear, Tensor, Tensor]
) -> None:
    model, x, y = linear

    class Masked(Linear):
        def pixel_network(self) -> PixelNetwork:
            return network(self.w, self.b)

    victim = Victim(Masked(model.w, model.b), (8, 8), seed=0)
    assert victim.has_gradient
    assert not victim.leads(x, y, eps=8 / 255)
    assert Victim(model, (8, 8), seed=0).leads(x, y, eps=8 / 255)


def test_fgsm_is_a_step_along_the_sign(linear: tuple[Linear, Tensor, Tensor]) -> None:
    model, x, y = linear
    victim = Victim(model, (8, 8), seed=0)
    step = 8 / 255 * model.w.sign() * -(2 * y - 1).unsqueeze(1)
    points = pgd_points(victim, x, y, eps=8 / 255, n_iter=1, seed=0)
    torch.testing.assert_close(points, x + step, atol=1e-6, rtol=0)
    points = pgd_points(victim, x, y, eps=8 / 255, n_iter=15, seed=0)
    torch.testing.assert_close(points, x + step, atol=1e-6, rtol=0)


def test_square_asks_for_answers_alone(linear: tuple[Linear, Tensor, Tensor]) -> None:
    model, x, y = linear
    blind = Linear(model.w, model.b, has_gradient=False)
    victim = Victim(blind, (8, 8), seed=0)
    assert not victim.has_gradient
    found = attack_pixels(victim, x, y, spending=SPENDING, seed=0)
    best = (x @ model.w + model.b) * (2 * y - 1) - 16 / 255 * model.w.abs().sum() > 0
    assert not (best & ~found.held[-1] & found.held[0]).any()  # it cannot do what nobody can
    assert found.held[-1].sum() < found.held[0].sum()
    assert list(found.broken_by) == ["Square"]
    again = square_points(victim, x, y, eps=16 / 255, n_queries=20, seed=3)
    assert torch.equal(again, square_points(victim, x, y, eps=16 / 255, n_queries=20, seed=3))
    still = victim.right(again, y) & victim.right(x, y)
    assert torch.equal(again[still], x[still])
    assert ((again - x).abs() <= 16 / 255 + 1e-6).all()
    assert ((again >= 0) & (again <= 1)).all()


def test_a_random_system_is_judged_by_a_majority() -> None:
    arrays = images_of(6, 4, 2)
    images, y = arrays["images"], torch.from_numpy(arrays["labels"])
    model = SmallCNN(noise=0.3).fit(images, arrays["labels"])
    victim = Victim(model, (32, 32), seed=5)
    assert victim.is_random
    x = torch.from_numpy(images).flatten(1).float() / 255
    right = victim.right(x, y)
    assert torch.equal(right, victim.right(x, y))
    quick = Spending(n_images=24, eps_255=(4.0,), n_iter=3, eot_iter=2, n_check_queries=0)
    found = attack_pixels(victim, x, y, spending=quick, seed=0)
    assert torch.equal(found.held[0], right)
    assert not (found.held[1] & ~found.held[0]).any()


def test_points_transfer_to_a_system_without_a_gradient() -> None:
    arrays = images_of(6, 4, 2)
    images, labels = arrays["images"], arrays["labels"]
    x, y = torch.from_numpy(images).flatten(1).float() / 255, torch.from_numpy(labels)
    cnn = Victim(SmallCNN().fit(images, labels), (32, 32), seed=0)
    centroid = Victim(NearestCentroid().fit(images, labels), (32, 32), seed=0)
    points = transfer_points(cnn, x, y, eps=40 / 255, n_iter=10, seed=0)
    assert cnn.right(points, y).float().mean() < 0.2
    margins = [
        centroid.rows(p)[range(24), y] - centroid.rows(p)[range(24), 1 - y] for p in (x, points)
    ]
    assert float((margins[1] < margins[0]).float().mean()) > 0.9
    assert centroid.rows(x[:0]).shape == (0, 2)


def test_a_search_by_answers_sees_how_far_a_confident_system_is_from_wrong() -> None:
    class Confident(NearestCentroid):
        """Probabilities as near to 0 and 1 as naive Bayes has them."""

        def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
            sure = super().predict_proba(X) ** 200
            return sure / sure.sum(1, keepdims=True)

    arrays = images_of(6, 4, 2)
    images, y = arrays["images"], torch.from_numpy(arrays["labels"])
    model = Confident().fit(images, arrays["labels"])
    assert np.median(model.predict_proba(images).min(1)) < 1e-12
    x = torch.from_numpy(images).flatten(1).float() / 255
    rows = Victim(model, (32, 32), seed=0).rows
    margins = rows(x)[range(24), y] - rows(x)[range(24), 1 - y]
    grey = 0.9 * x + 0.05
    lower = rows(grey)[range(24), y] - rows(grey)[range(24), 1 - y]
    assert (lower < margins).all()


def test_points_against_a_random_system_average_its_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def climbs(model: object, x: Tensor, y: Tensor, **told: Any) -> Tensor:
        asked.append(told["eot_iter"])
        return x

    monkeypatch.setattr(pixels, "vector_apgd", climbs)
    arrays = images_of(6, 4, 2)
    x = torch.from_numpy(arrays["images"]).flatten(1).float() / 255
    y = torch.from_numpy(arrays["labels"])
    few = Spending(n_images=24, eps_255=(4.0,), n_iter=1, eot_iter=3, n_check_queries=0)
    for noise, expected in ((0.3, 3), (0.0, 1)):
        asked.clear()
        model = SmallCNN(noise=noise).fit(arrays["images"], arrays["labels"])
        attack_pixels(Victim(model, (32, 32), seed=0), x, y, spending=few, seed=0)
        assert set(asked) == {expected}  # for transfer too
