from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from nnmf_cuda import ops
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


CHANGES = {
    "multiply": lambda x: x.components.mul_(2),
    "copy": lambda x: x.components.copy_(torch.rand_like(x.components)),
    "one entry": lambda x: x.components.__setitem__((0, 0), 9.0),
    "load": lambda x: x.load_state_dict({**x.state_dict(), "components": torch.rand(5, 24)}),
    "replace": lambda x: setattr(x, "components", torch.rand(5, 24)),
    "data": lambda x: x.components.data.mul_(3),
    "NumPy": lambda x: x.components.numpy().__setitem__(slice(2), 0.5),
    "dtype": lambda x: x.double(),
    "inference": lambda x: _within(torch.inference_mode(), lambda: x.components.add_(0.25)),
}


def _within(context: AbstractContextManager[object], change: Callable[[], object]) -> None:
    with context:
        change()


@pytest.mark.parametrize("name", CHANGES)
def test_components_that_change_in_place_are_never_stale(name: str) -> None:
    images, own = torch.rand(3, 6, 4), extractor()
    before = own.coefficients(images)
    assert torch.equal(own.coefficients(images), before)
    CHANGES[name](own)
    got = own.coefficients(images)
    assert not torch.equal(got.double(), before.double())
    assert torch.equal(got, ops.project(own.as_rows(images), own.components))


def test_components_are_made_ready_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    prepare = ops.prepare_components
    monkeypatch.setattr(ops, "prepare_components", lambda H: calls.append(H) or prepare(H))
    images, own = torch.rand(3, 6, 4), extractor()
    for _ in range(3):
        own(images)
    assert len(calls) == 1
    with ops.reference_path():
        plain = own.coefficients(images)
    assert len(calls) == 1
    torch.testing.assert_close(own.coefficients(images), plain)
    again = copy.deepcopy(own)
    assert torch.equal(again(images), own(images))
    assert len(calls) == 2


def test_gradients_to_components_are_those_of_project() -> None:
    images, own = torch.rand(3, 6, 4, dtype=torch.float64), extractor(torch.float64)
    own(images)
    own.components = own.components.clone().requires_grad_()
    own.coefficients(images).square().sum().backward()
    H = own.components.detach().clone().requires_grad_()
    ops.project(images.flatten(1), H).square().sum().backward()
    assert torch.equal(own.components.grad, H.grad)
