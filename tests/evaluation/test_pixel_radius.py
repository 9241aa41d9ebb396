"""A proof about features as a radius in pixels: an exact constant, a sound radius."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnmf_cuda import ops
from nnmf_cuda.evaluation import certify_pixels
from nnmf_cuda.evaluation.pixel_radius import selected_metric
from nnmf_cuda.models.features import FeatureExtractor

SHAPE, K = (6, 9), 5
P = SHAPE[0] * SHAPE[1]


def extractor(selected=(0, 1, 2, 3, 4), *, seed=0, components=None):
    if components is None:
        components = torch.rand(K, P, generator=torch.Generator().manual_seed(seed)).double() ** 2
    return FeatureExtractor(components, torch.tensor(selected), image_shape=SHAPE)


def pictures(made, n=20, seed=1):
    """Images near and far from what components make: of some, coefficients are 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, K, generator=generator).double()
    images = weights @ made.components / 3
    images[n // 2 :] += 0.5 * torch.rand(n - n // 2, P, generator=generator).double()
    return images.clamp(0, 1)


def towards_change(made, images, radius, measure, n_steps=30):
    """Points at L2 distance `radius` from images at which `measure` of the features is large."""
    generator = torch.Generator().manual_seed(3)
    moved = torch.randn(images.shape, generator=generator).double()
    for _ in range(n_steps):
        moved = radius * moved / moved.norm(dim=1, keepdim=True)
        leaf = (images + moved).requires_grad_()
        (gradient,) = torch.autograd.grad(measure(leaf).sum(), leaf)
        moved = moved + radius * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return images + radius * moved / moved.norm(dim=1, keepdim=True)


def test_sigma_is_the_smallest_singular_value():
    for seed in range(5):
        made = extractor(seed=seed)
        exact = float(np.linalg.svd(made.components.numpy(), compute_uv=False)[-1])
        sigma = selected_metric(made)[1]
        assert sigma <= exact
        assert sigma == pytest.approx(exact, rel=1e-9)


def test_sigma_of_components_whose_constant_is_known():
    """Apart, a component is its own length; two of 60 degrees leave the sine of it to each."""
    apart = torch.zeros(K, P).double()
    for i in range(K):
        apart[i, 3 * i : 3 * i + 3] = (i + 2) / math.sqrt(3)
    assert selected_metric(extractor(components=apart))[1] == pytest.approx(2.0, rel=1e-12)
    some = extractor((2, 4), components=apart)
    assert selected_metric(some)[1] == pytest.approx(4.0, rel=1e-12)
    pair = torch.zeros(K, P).double()
    pair[range(K), range(K)] = 7.0
    pair[1, 0], pair[1, 1] = 3.0 * math.cos(math.pi / 3), 3.0 * math.sin(math.pi / 3)
    one = extractor((1,), components=pair)
    assert selected_metric(one)[1] == pytest.approx(3 * math.sin(math.pi / 3), rel=1e-12)
    # The whole has the smallest singular value of the two.
    both = float(np.linalg.svd(pair[:2].numpy(), compute_uv=False)[-1])
    assert selected_metric(extractor(components=pair))[1] == pytest.approx(both, rel=1e-12)


@pytest.mark.parametrize("selected", [(0, 1, 2, 3, 4), (1, 3), (2,)])
def test_no_pair_of_images_violates_the_constant_and_one_reaches_it(selected):
    made = extractor(selected)
    sigma = selected_metric(made)[1]
    images = pictures(made)

    def coefficients(x):
        return ops.project(x, made.components)[:, made.selected]

    def ratio(x):
        moved = (coefficients(x) - coefficients(images)).norm(dim=1)
        return moved / (x - images).norm(dim=1)

    generator = torch.Generator().manual_seed(2)
    for scale in (1e-3, 0.1, 1.0, 30.0):
        others = images + scale * torch.randn(images.shape, generator=generator).double()
        assert float(ratio(others).max()) <= (1 + 1e-9) / sigma
        climbed = towards_change(made, images, scale, lambda x: (coefficients(x)).square().sum(1))
        assert float(ratio(climbed).max()) <= (1 + 1e-9) / sigma
    # Where no coefficient is 0 the projection is linear, and the worst direction is an eigenvector.
    inside = (torch.full((1, K), 0.3).double() @ made.components).repeat(len(images), 1)
    images = inside
    metric, vectors = torch.linalg.eigh(selected_metric(made)[0])
    gram = made.components @ made.components.mT
    spread = torch.zeros(K).double()
    spread[list(selected)] = vectors[:, -1]
    direction = torch.linalg.solve(gram, spread) @ made.components
    assert float(ratio(inside + 1e-3 * direction).max()) == pytest.approx(1 / sigma, rel=1e-6)


@pytest.mark.parametrize("selected", [(0, 1, 2, 3, 4), (0, 2, 3)])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_features_stay_in_their_ball_within_the_radius(norm, selected):
    """Random moves of full length, and moves climbed for each feature, up and down."""
    made = extractor(selected)
    images = pictures(made)
    order = float("inf") if norm == "Linf" else 2.0
    start = made(images)
    for r in (0.01, 0.15, 0.9):
        found = certify_pixels(made, images, torch.full((len(images),), r), norm=norm)
        radius = torch.from_numpy(found.l2).unsqueeze(1)
        assert bool((radius > 0).all())
        generator = torch.Generator().manual_seed(4)
        tried = []
        for _ in range(20):
            moved = torch.randn(images.shape, generator=generator).double()
            tried.append(images + radius * moved / moved.norm(dim=1, keepdim=True))
        for i in range(len(selected)):
            for sign in (1, -1):
                tried.append(
                    towards_change(made, images, radius, lambda x, i=i, s=sign: s * made(x)[:, i])
                )
        for points in tried:
            change = torch.linalg.vector_norm(made(points) - start, ord=order, dim=1)
            assert float(change.max()) <= r


def test_the_radius_is_not_far_from_the_truth():
    """Where the projection is linear, moves of twice a small radius can leave the ball."""
    made = extractor()
    images = (torch.rand(10, K, generator=torch.Generator().manual_seed(0)).double() + 0.5) / 5
    images = images @ made.components
    found = certify_pixels(made, images, torch.full((10,), 0.05))
    radius, start = 2 * torch.from_numpy(found.l2).unsqueeze(1), made(images)
    largest = torch.stack(
        [
            (
                made(towards_change(made, images, radius, lambda x, i=i, s=s: s * made(x)[:, i]))
                - start
            )
            .abs()
            .amax(1)
            for i in range(K)
            for s in (1, -1)
        ]
    ).amax(0)
    assert bool((largest > 0.05).all())


def test_norms_shares_and_what_has_no_radius():
    made = extractor()
    images = pictures(made, 6)
    radii = torch.tensor([0.1, 0.1, 0.0, 0.1, 0.1, 0.1])
    images[3] = 0  # features of a black image have no direction
    found = certify_pixels(made, images, radii)
    assert found.l2[2] == found.l2[3] == 0
    assert bool((found.l2[[0, 1, 4, 5]] > 0).all())
    np.testing.assert_allclose(found.linf, found.l2 / math.sqrt(P))
    middle = float(np.median(found.linf))
    assert found.certified_accuracy(middle) == np.mean(found.linf >= middle)
    assert found.certified_accuracy(0.0) == 4 / 6
    assert found.certified_accuracy(middle, "L2") == np.mean(found.l2 >= middle)
    twice = FeatureExtractor(
        torch.cat((made.components, made.components[:1])), torch.arange(6), image_shape=SHAPE
    )
    dependent = certify_pixels(twice, images, radii)
    assert dependent.sigma == 0
    assert bool((dependent.l2 == 0).all())


def test_misuse_is_named():
    made = extractor()
    images = pictures(made, 4)
    radii = torch.full((4,), 0.1)
    for options, message in (
        ({"norm": "L1"}, "norm must be Linf or L2"),
        ({"feature_radii": radii[:2]}, r"feature_radii must have shape \(4,\)"),
        ({"feature_radii": -radii}, "feature_radii must be finite and not negative"),
        ({"feature_radii": radii / 0}, "feature_radii must be finite and not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            certify_pixels(made, images, **{"feature_radii": radii, **options})
    with pytest.raises(ValueError, match="norm must be Linf or L2"):
        certify_pixels(made, images, radii).certified_accuracy(0.1, "L1")
