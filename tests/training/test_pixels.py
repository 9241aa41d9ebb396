"""Training on attacked images: what pixels can do to products, and what comes of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nnmf_cuda.attacks import vector_apgd
from nnmf_cuda.attacks.objectives import margin_loss
from nnmf_cuda.models.features import FeatureExtractor, ImageChain
from nnmf_cuda.models.networks import FeatureCNN
from nnmf_cuda.training import ImageSamples, train_classifier, train_pixel_classifier
from nnmf_cuda.training.pixels import PixelReach

SHAPE, K, EPS = (10, 14), 6, 8 / 255


def extractor(*, squares=1, seed=0):
    """Six components that do not vary within squares of this side, four of them selected."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (-(-side // squares) for side in SHAPE)
    coarse = torch.rand(K, height, width, generator=generator) ** 3
    fine = coarse.repeat_interleave(squares, 1).repeat_interleave(squares, 2)
    components = fine[:, : SHAPE[0], : SHAPE[1]].flatten(1)
    return FeatureExtractor(components, torch.tensor([0, 2, 3, 5]), image_shape=SHAPE)


def pictures(made, n, seed=1):
    """Images from components, with some that are black or white, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % 2).long()
    weights = torch.rand(n, K, generator=generator)
    weights[:, 0] += y
    images = (0.25 * weights @ made.components).clamp(0, 1)
    images[:, :5] = 0
    images[:, 5:9] = 1
    return images, y


def test_what_pixels_can_do_to_the_products_is_exact_for_coarse_components():
    """All moves of single pixels within ball and [0, 1] are moves of squares, and the reverse."""
    made = extractor(squares=4)
    images, _ = pictures(made, 7)
    reach = PixelReach.of(made, images, attack_eps=EPS, block=4)
    assert reach.low.shape == (7, 3 * 4)  # 10 x 14 pixels: the last squares are cut
    products, gram = images.double() @ made.components.double().mT, reach.gram
    torch.testing.assert_close(reach.products, products)
    torch.testing.assert_close(gram, made.components.double() @ made.components.double().mT)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        gradient = torch.randn(7, K, generator=generator)
        single = (gradient @ made.components).sign()
        best = (images + EPS * single).clamp(0, 1)
        of_squares = torch.where((gradient @ reach.columns.mT) > 0, reach.high, reach.low)
        moved = reach.products + (of_squares @ reach.columns).double()
        torch.testing.assert_close(
            moved, best.double() @ made.components.double().mT, rtol=1e-5, atol=1e-5
        )


def test_no_square_moves_farther_than_its_pixels_may():
    made = extractor()
    images, _ = pictures(made, 9)
    for block in (1, 3, 5, 20):
        reach = PixelReach.of(made, images, attack_eps=EPS, block=block)
        assert bool((reach.low <= 0).all() and (reach.low >= -EPS - 1e-7).all())
        assert bool((reach.high >= 0).all() and (reach.high <= EPS + 1e-7).all())
    one = PixelReach.of(made, images, attack_eps=EPS, block=1)
    torch.testing.assert_close(one.low, (images - EPS).clamp(0, 1) - images)
    torch.testing.assert_close(one.high, (images + EPS).clamp(0, 1) - images)


def test_features_are_those_of_the_extractor():
    made = extractor()
    images, _ = pictures(made, 9)
    for given in (images, (images * 255).round().to(torch.uint8)):
        reach = PixelReach.of(made, given, attack_eps=EPS, block=2)
        torch.testing.assert_close(reach.features(reach.products), made(given), rtol=0, atol=2e-5)


def test_climbing_moves_of_single_pixels_is_the_attack_on_images():
    """The loss that it reaches is close to that of APGD on the whole chain."""
    made = extractor()
    images, y = pictures(made, 30)
    torch.manual_seed(0)
    model = FeatureCNN(4, 2).eval()
    reach = PixelReach.of(made, images, attack_eps=EPS, block=1)
    with torch.no_grad():
        attacked = reach.climb(
            lambda rows: margin_loss(model(rows), y), torch.zeros_like(reach.low), 40
        )
        mine = margin_loss(model(attacked), y)
    points = vector_apgd(ImageChain(made, model).eval(), images, y, attack_eps=EPS, n_iter=40)
    with torch.no_grad():
        chains, before = margin_loss(model(made(points)), y), margin_loss(model(made(images)), y)
    moved = (chains - before).mean()
    assert float(moved) > 0
    assert float((mine - before).mean()) == pytest.approx(float(moved), rel=0.15)


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_training_makes_the_chain_harder_to_attack(method):
    made = extractor()
    train, y = pictures(made, 160)
    valid, valid_y = pictures(made, 64, seed=2)
    samples = ImageSamples(made, {"train": train, "valid": valid})
    result = train_pixel_classifier(
        samples, y, valid_y, n_classes=2, method=method, attack_eps=EPS, block=2, epochs=25
    )
    plain = train_classifier(made(train), y, made(valid), valid_y, n_classes=2, epochs=25)
    held = []
    for model in (result.model, plain.model):
        chain = ImageChain(made, model).eval()
        points = vector_apgd(chain, valid, valid_y, attack_eps=EPS, n_iter=20)
        with torch.no_grad():
            held.append(float(functional.cross_entropy(chain(points), valid_y)))
    assert held[0] < held[1]
    assert set(result.history) >= {"valid_accuracy", "valid_robust_accuracy"}
    assert result.history["valid_robust_accuracy"][result.best_epoch] > 0.5


def test_same_seed_same_weights():
    made = extractor()
    train, y = pictures(made, 40)
    samples = ImageSamples(made, {"train": train, "valid": train[:20]})
    first, again, other = (
        train_pixel_classifier(samples, y, y[:20], n_classes=2, epochs=2, seed=s).model.weights()
        for s in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_misuse_is_named():
    made = extractor()
    train, y = pictures(made, 8)
    samples = ImageSamples(made, {"train": train, "valid": train})
    for options, message in (
        ({"method": "mtl-ibp"}, "method must be one of pgd, trades"),
        ({"attack_eps": 0.0}, "attack_eps must be a finite number > 0"),
        ({"trades_beta": float("nan")}, "trades_beta must be"),
        ({"block": 0}, "block must be at least 1"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"class_weight": "even"}, "class_weight must be"),
    ):
        with pytest.raises(ValueError, match=message):
            train_pixel_classifier(samples, y, y, **{"n_classes": 2, **options})
