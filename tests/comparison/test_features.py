"""Classifiers of NNMF features: what they take as validation images."""

from __future__ import annotations

import numpy as np
import pytest

from nnmf_cuda.baselines import LabelledImages
from nnmf_cuda.comparison.features import FeatureClassifier
from tests.comparison.conftest import images_of


@pytest.mark.parametrize("label", [1, 3])  # between the classes, and beyond them
def test_a_validation_label_that_training_lacks_is_refused(label: int) -> None:
    arrays = images_of(4, 2, 2)
    images, labels = arrays["images"], 2 * arrays["labels"]
    model = FeatureClassifier(max_iter=2, n_components=3, epochs=1)
    strange = LabelledImages(images[:2], np.array([0, label]))
    with pytest.raises(ValueError, match=f"validation.labels hold {label}, which no training"):
        model.fit(images, labels, validation=strange)
    model.fit(images, labels, validation=LabelledImages(images[:2], labels[:2]))
    assert set(model.predict(images)) <= {0, 2}
