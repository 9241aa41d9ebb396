"""The rows that stand in every table: the constant answer and the nearest training image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnmf_cuda.comparison.references import ConstantAnswer, NearestNeighbour
from nnmf_cuda.data import audit_dataset, phantom
from nnmf_cuda.data.leakage import block_means


@pytest.mark.parametrize("image_shape", [(32, 32), (50, 37)])
def test_the_nearest_image_answers_as_the_audit_says(image_shape: tuple[int, int]) -> None:
    data = phantom((60, 10, 40), seed=3, image_shape=image_shape)
    for images in (data.images, (data.images / 255).astype(np.float32)):
        dataset = replace(data, images=images)
        train, test = (dataset.matrix(p).reshape(-1, *image_shape) for p in ("train", "test"))
        model = NearestNeighbour().fit(train, dataset.labels_of("train"))
        right = (model.predict(test) == dataset.labels_of("test")).mean()
        audited = audit_dataset(dataset, resolution=32)
        assert right == pytest.approx(audited.splits["test"].nearest_accuracy)
        assert model.n_parameters_ == 60 * 32 * 32
        # A training image is its own neighbour.
        assert (model.predict(train) == dataset.labels_of("train")).all()
    network = model.pixel_network()
    torch.testing.assert_close(
        network.means @ torch.from_numpy(test[:3]).double() @ network.means_across.T,
        torch.from_numpy(block_means(test[:3], 32)),
    )
    pixels = torch.from_numpy(test).requires_grad_()
    network(pixels)[:, 0].sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().amax(dim=(1, 2)).min()) > 0


def test_the_constant_answer_is_the_training_labels_shares() -> None:
    images = np.zeros((8, 4, 4), dtype=np.uint8)
    model = ConstantAnswer().fit(images, [0, 0, 0, 1, 1, 2, 2, 2])
    np.testing.assert_allclose(model.predict_proba(images[:2]), [[0.375, 0.25, 0.375]] * 2)
    assert model.pixel_network() is None
