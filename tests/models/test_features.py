from __future__ import annotations

import pytest
import torch

from nnmf_cuda.models.features import FeatureExtractor, l2_normalize


def test_l2_normalize_scales_rows_and_keeps_zero() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert torch.equal(l2_normalize(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_l2_normalize_gradient() -> None:
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(l2_normalize, x)
    zero = torch.zeros(2, 3, requires_grad=True)
    l2_normalize(zero).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(2, 3))


def extractor(dtype: torch.dtype = torch.float32) -> FeatureExtractor:
    components = torch.rand(5, 6 * 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return FeatureExtractor(components, torch.tensor([0, 3, 4]), image_shape=(6, 4))


def test_features_have_length_one_in_component_order() -> None:
    images = torch.rand(7, 6, 4)
    features = extractor()(images)
    assert features.shape == (7, 3)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))
    raw = extractor().coefficients(images)[:, [0, 3, 4]]
    torch.testing.assert_close(features, raw / raw.norm(dim=1, keepdim=True))


def test_uint8_images_are_pixels() -> None:
    images = torch.randint(0, 256, (3, 6, 4), dtype=torch.uint8)
    want = extractor()(images.float() / 255)
    torch.testing.assert_close(extractor()(images), want, rtol=1e-4, atol=1e-5)


def test_features_gradcheck() -> None:
    images = torch.rand(2, 24, dtype=torch.float64, requires_grad=True)
    assert (extractor(torch.float64).coefficients(images) > 1e-3).any()
    assert torch.autograd.gradcheck(extractor(torch.float64), images)


def test_black_images_have_zero_features_and_gradient() -> None:
    images = torch.zeros(2, 6, 4, requires_grad=True)
    features = extractor()(images)
    features.sum().backward()
    assert torch.equal(features, torch.zeros(2, 3))
    assert torch.equal(images.grad, torch.zeros(2, 6, 4))


def test_extractor_errors() -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(n, 6, 4\), got \(2, 5, 5\)"):
        extractor()(torch.rand(2, 5, 5))
    with pytest.raises(TypeError, match="images must be uint8 or floating point"):
        extractor()(torch.ones(2, 6, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="components have 24 features"):
        FeatureExtractor(torch.rand(5, 24), torch.tensor([0]), image_shape=(4, 4))
