"""Every image network of the comparison, tiny and on tiny images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone

from nnmf_cuda.baselines import (
    AlmuhaimeedNetwork,
    AlmuhaimeedSwin,
    DeemNetwork,
    GomezHybrid,
    HossainNetwork,
    ThiryGuthNetwork,
    TorchImageClassifier,
)

SHORT = {"epochs": 1, "image_size": 32}
SWIN = {"embed_dim": 4, "depths": (1, 1, 1, 1), "n_heads": (1, 1, 1, 1)}

NETWORKS = {
    "hossain": HossainNetwork(n_filters=2, n_hidden=4, **SHORT),
    "almuhaimeed": AlmuhaimeedNetwork(widths=(2, 4), n_hidden=4, **SHORT),
    "swin": AlmuhaimeedSwin(**SWIN, **SHORT),
    "gomez": GomezHybrid(widths=(2, 4, 4), hidden_size=8, n_layers=1, n_heads=2, **SHORT),
    "thiry-guth": ThiryGuthNetwork(widths=(4, 8), **SHORT),
    "resnet": DeemNetwork(widths=(4, 4, 8, 8), **SHORT),
    "resnext": DeemNetwork(architecture="resnext", groups=2, widths=(4, 4, 8, 8), **SHORT),
}
NEED_MONAI = ("swin", "gomez", "thiry-guth", "resnet", "resnext")


@pytest.fixture(params=NETWORKS)
def network(request) -> TorchImageClassifier:
    if request.param in NEED_MONAI:
        pytest.importorskip("monai")
        pytest.importorskip("einops")
    return clone(NETWORKS[request.param])


def blobs(n: int = 24, side: int = 40):
    """Return images of three classes, which have a bright square in different places."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (n, side, side))
    labels = np.arange(n) % 3
    for image, label in zip(images, labels, strict=True):
        image[5:15, 12 * label : 12 * label + 12] += 180
    return images.astype(np.uint8), 10 * labels + 1


def test_one_short_epoch_leads_to_a_differentiable_answer(network):
    images, labels = blobs()
    network.fit(images, labels)
    probabilities = network.predict_proba(images)
    assert probabilities.shape == (24, 3)
    assert np.isfinite(probabilities).all()
    assert network.classes_.tolist() == [1, 11, 21]
    assert network.n_parameters_ > 100
    pixels = (torch.from_numpy(images[:3]).float() / 255).requires_grad_()
    chain = network.pixel_network()
    (gradient,) = torch.autograd.grad(chain(pixels)[:, 0].sum(), pixels)
    assert gradient.shape == pixels.shape
    assert gradient.abs().amax((1, 2)).min() > 0
    # Bytes and floats, at once and one by one.
    np.testing.assert_allclose(network.predict_proba(images / 255), probabilities, atol=1e-5)
    alone = np.concatenate([network.predict_proba(images[i : i + 1]) for i in range(24)])
    np.testing.assert_allclose(alone, probabilities, atol=1e-5)
    twin = clone(network).fit(images, labels)
    np.testing.assert_array_equal(twin.predict_proba(images), probabilities)


def test_gradients_equal_finite_differences():
    pytest.importorskip("monai")
    images, labels = blobs()
    chain = clone(NETWORKS["thiry-guth"]).fit(images, labels).pixel_network().double()
    pixels = torch.from_numpy(images[:2]).double() / 255
    (gradient,) = torch.autograd.grad(chain(pixels.requires_grad_())[:, 1].sum(), pixels)
    way = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).double()
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (chain(pixels + sign * step * way)[:, 1].sum() for sign in (1, -1))
    assert float((gradient * way).sum()) == pytest.approx(
        float(ahead - behind) / (2 * step), rel=1e-6
    )


def test_a_resnext_is_a_resnet_with_fewer_weights():
    pytest.importorskip("monai")
    images, labels = blobs()
    weights = {
        name: clone(NETWORKS[name]).fit(images, labels).n_parameters_
        for name in ("resnet", "resnext")
    }
    convolutions = 9 * (4 * 4 + 4 * 4 + 8 * 8 + 8 * 8)
    assert weights["resnet"] - weights["resnext"] == convolutions // 2


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_swin_transformer_starts_from_the_weights_of_a_file(tmp_path: Path, suffix):
    pytest.importorskip("monai")
    pytest.importorskip("einops")
    images, labels = blobs()
    trained = clone(NETWORKS["swin"]).fit(images, labels)
    state = trained.network_.network.network.transformer.state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    built = AlmuhaimeedSwin(weights=path, **SWIN).build(3, (32, 32))
    for name, tensor in built.transformer.state_dict().items():
        torch.testing.assert_close(tensor, state[name])
    with pytest.raises(ValueError, match="do not fit the network"):
        AlmuhaimeedSwin(**SWIN | {"embed_dim": 8}, weights=path, **SHORT).fit(images, labels)
    with pytest.raises(ValueError, match="weights must be a file"):
        AlmuhaimeedSwin(weights=tmp_path / "none.pt", **SWIN, **SHORT).fit(images, labels)


def test_the_denoiser_takes_noise_away():
    pytest.importorskip("monai")
    images, labels = blobs(side=16)
    settings = {"augmentation": None, "image_size": None, "epochs": 60, "batch_size": 24}
    model = ThiryGuthNetwork(widths=(8,), lr=1e-2, denoising_weight=10, **settings)
    model.fit(images, labels)
    clean = images / 255
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    guess = model.denoise(clean + 0.15 * noise, sigma=0.15)
    assert np.square(guess - clean).mean() < 0.9 * 0.15**2  # 0.8 as it is
    assert guess.shape == clean.shape


@pytest.mark.parametrize("name", ["sigma_max", "denoising_weight"])
def test_the_denoisers_settings_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
        ThiryGuthNetwork(**{name: 0.0}).fit(*blobs())


def test_architectures_and_widths_that_cannot_be_are_errors():
    images, labels = blobs()
    with pytest.raises(ValueError, match="architecture must be one of resnet, resnext"):
        DeemNetwork(architecture="densenet", **SHORT).fit(images, labels)
    with pytest.raises(ValueError, match="widths must be multiples of groups=8"):
        DeemNetwork(architecture="resnext", widths=(4, 8, 8, 8), **SHORT).fit(images, labels)
    with pytest.raises(ValueError, match="take fewer, or a larger image_size"):
        AlmuhaimeedNetwork(widths=(2,) * 6, **SHORT).fit(images, labels)
