"""NNMF features of images for any classifier: a scikit-learn one, or the package's light CNN."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from torch import nn

from nnmf_cuda.baselines import ImageClassifier, LabelledImages, PixelNetwork
from nnmf_cuda.baselines.base import probabilities_of_margins
from nnmf_cuda.baselines.torch_classifier import DifferentiableNetwork, known_labels
from nnmf_cuda.models.features import FeatureExtractor, ImageChain
from nnmf_cuda.nnmf.estimator import NNMF
from nnmf_cuda.training.classifier import train_classifier


class FeatureClassifier(ImageClassifier):
    """A classifier of NNMF features: projected onto components that the training images gave.

    Parameters
    ----------
    classifier : scikit-learn classifier, optional
        Of feature vectors, not fitted; a clone is. None is the package's light CNN, which has a
        gradient to the pixels.
    n_components, max_iter : int
        Of the factorisation, by accelerated multiplicative updates for Kullback-Leibler.
    epochs : int, default=100
        Of the light CNN.
    random_state : int, default=0
        Of the factorisation, and of a classifier that has been given none of its own.
    """

    def __init__(
        self,
        classifier: Any = None,
        *,
        n_components: int = 15,
        max_iter: int = 100,
        epochs: int = 100,
        random_state: int = 0,
    ) -> None:
        self.classifier = classifier
        self.n_components = n_components
        self.max_iter = max_iter
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Fit components and classifier to images X (n_images, height, width) and labels y."""
        images, labels = np.asarray(X), np.asarray(y)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        nnmf = NNMF(
            self.n_components,
            solver="accelerated-mu",
            max_iter=self.max_iter,
            tol=0,
            random_state=self.random_state,
        )
        nnmf.fit(images.reshape(len(images), -1))
        components = torch.from_numpy(nnmf.components_).float()
        height, width = images.shape[1:]
        every = torch.arange(len(components))
        self.extractor_ = FeatureExtractor(components, every, image_shape=(height, width))
        features = self._features(images)
        self.n_parameters_ = components.numel()
        if self.classifier is not None:
            self.classifier_ = _seeded(clone(self.classifier), self.random_state)
            self.classifier_.fit(features, numbers)
            return self
        valid, of_valid = features, numbers
        if validation is not None:
            valid = self._features(validation.images)
            of_valid = known_labels(self.classes_, validation.labels, len(valid)).numpy()
        self.classifier_ = train_classifier(
            *(features, numbers, valid, of_valid),
            n_classes=len(self.classes_),
            epochs=self.epochs,
            seed=self.random_state,
        ).model
        self.n_parameters_ += sum(p.numel() for p in self.classifier_.parameters())
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n_images, n_classes).

        Of a classifier that has none, the softmax of its margins, which a search by answers needs;
        1 for the class that it names where it has no margins either, or they name another.
        """
        features = self._features(np.asarray(X))
        answers: NDArray[np.float64]
        if isinstance(self.classifier_, nn.Module):
            with torch.no_grad():
                logits = self.classifier_(torch.from_numpy(features))
            answers = logits.double().softmax(1).numpy()
        elif hasattr(self.classifier_, "predict_proba"):
            answers = np.asarray(self.classifier_.predict_proba(features), dtype=np.float64)
        else:
            named = self.classifier_.predict(features)
            answers = np.eye(len(self.classes_))[named]
            if hasattr(self.classifier_, "decision_function"):
                graded = probabilities_of_margins(self.classifier_.decision_function(features))
                if graded.shape == answers.shape:  # not a margin for each pair of classes
                    agrees = graded.argmax(1) == named
                    answers[agrees] = graded[agrees]
        return answers

    def pixel_network(self) -> PixelNetwork | None:
        """Return the chain from pixels to logits of the light CNN; None of other classifiers."""
        if not isinstance(self.classifier_, nn.Module):
            return None
        return DifferentiableNetwork(ImageChain(self.extractor_, self.classifier_))

    def _features(self, images: NDArray[Any]) -> NDArray[np.float32]:
        rows = torch.from_numpy(np.ascontiguousarray(images)).reshape(len(images), -1)
        if rows.dtype != torch.uint8:
            rows = rows.float()
        with torch.no_grad():
            found: NDArray[np.float32] = self.extractor_(rows).float().numpy()
        return found


def _seeded(classifier: Any, seed: int) -> Any:
    """Return a classifier of which every `random_state` that is None is the seed."""
    settings = classifier.get_params()
    unset = {
        name: seed
        for name, value in settings.items()
        if value is None and name.split("__")[-1] == "random_state"
    }
    return classifier.set_params(**unset)
