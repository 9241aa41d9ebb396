"""Hossain et al. (2019), the classical part: segments, texture, statistics, six classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.validation import check_is_fitted

from nnmf_cuda.baselines.base import (
    ImageClassifier,
    LabelledImages,
    probabilities_of_margins,
)
from nnmf_cuda.baselines.texture import TextureOptions, seconds_spared, texture_features
from nnmf_cuda.baselines.torch_classifier import as_images, coded_labels

Classifier = Literal["svm", "knn", "logistic-regression", "naive-bayes", "random-forest", "mlp"]
Fitted: TypeAlias = Any
"""A classifier of scikit-learn, which has no types."""

_NEW: Mapping[str, Callable[[int], Fitted]] = {
    # Ties of votes are broken by margins, so that both name one class.
    "svm": lambda seed: SVC(break_ties=True),
    "knn": lambda seed: KNeighborsClassifier(),
    "logistic-regression": lambda seed: LogisticRegression(max_iter=1000),
    "naive-bayes": lambda seed: GaussianNB(),
    "random-forest": lambda seed: RandomForestClassifier(random_state=seed),
    "mlp": lambda seed: MLPClassifier(max_iter=500, random_state=seed),
}


class HossainClassifier(ImageClassifier):
    """Fuzzy c-means segments, co-occurrence texture and statistics, and a classifier of them.

    The grey values of each slice are clustered by fuzzy c-means; the slice and the largest piece of
    the brightest segment inside the head are described (`nnmf_cuda.baselines.texture`), the
    features standardised, and classified by scikit-learn with its own settings.

    Parameters
    ----------
    classifier : str, default="svm"
        "svm" (with radial basis functions), "knn" (five neighbours), "logistic-regression",
        "naive-bayes" (Gaussian), "random-forest" (100 trees) or "mlp" (one layer of 100).
    n_clusters : int, default=4
        Segments.
    m : float, default=2.0
        Softness of fuzzy c-means.
    levels : int, default=32
        Grey levels of co-occurrence.
    distances : tuple of int, default=(1, 3)
        Of co-occurring grey levels, in pixels.
    random_state : int, default=0
        Seed of "random-forest" and "mlp"; nothing else is random.
    progress : bool, default=False
        Whether a bar shows how far the features of `fit` are, where stderr is a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_parameters_ : int
        Numbers that were learned: the scales, and what the classifier keeps (support vectors and
        neighbours, with all their features; of a tree's node, feature and threshold, or a leaf's
        shares).
    classifier_ : scikit-learn estimator
        Of standardised features.
    scaler_ : StandardScaler

    Notes
    -----
    A process remembers the features of the training images that it has described last, so that six
    classifiers of one set describe it once. Floating point images are rounded to 256 grey values.
    The probabilities of "svm" are the softmax of its margins, not calibrated. Validation images are
    not used. There is no gradient to pixels: grey values are counted.

    References
    ----------
    .. [1] Hossain et al. (2019), Brain tumor detection using convolutional neural network,
       ICASERT.
    """

    def __init__(
        self,
        classifier: Classifier = "svm",
        *,
        n_clusters: int = 4,
        m: float = 2.0,
        levels: int = 32,
        distances: tuple[int, ...] = (1, 3),
        random_state: int = 0,
        progress: bool = False,
    ) -> None:
        self.classifier = classifier
        self.n_clusters = n_clusters
        self.m = m
        self.levels = levels
        self.distances = distances
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Learn from images X (n_images, height, width) and labels y (n_images,).

        Raises
        ------
        TypeError, ValueError
            If images, labels or settings do not fit.
        ImportError
            If scikit-image is missing.
        """
        if self.classifier not in _NEW:
            raise ValueError(
                f"classifier must be one of {', '.join(_NEW)}; got {self.classifier!r}"
            )
        images = _grey_values(X)
        self.classes_, labels = coded_labels(y, len(images))
        self.spared_seconds_ = seconds_spared(images, self._options())
        features = texture_features(images, self._options(), remember=True, progress=self.progress)
        self.scaler_ = StandardScaler().fit(features)
        classifier = _NEW[self.classifier](self.random_state)
        self.classifier_ = classifier.fit(self.scaler_.transform(features), labels.numpy())
        self.image_shape_ = images.shape[1:]
        self.n_parameters_ = 2 * features.shape[1] + _n_numbers(self.classifier_)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n_images, n_classes), in the order of `classes_`."""
        check_is_fitted(self, "classifier_")
        images = _grey_values(X, self.image_shape_)
        features = self.scaler_.transform(texture_features(images, self._options()))
        if isinstance(self.classifier_, SVC):
            return probabilities_of_margins(self.classifier_.decision_function(features))
        probabilities: NDArray[np.float64] = self.classifier_.predict_proba(features)
        return probabilities

    def _options(self) -> TextureOptions:
        return TextureOptions(self.n_clusters, self.m, self.levels, tuple(self.distances))


def _grey_values(X: ArrayLike, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """Return images (n, height, width) as the nearest of 256 grey values."""
    greys: NDArray[np.uint8] = (as_images("X", X, shape) * 255).round().byte().numpy()
    return greys


def _n_numbers(fitted: Fitted) -> int:
    """Return how many numbers a classifier has learned or keeps."""
    if isinstance(fitted, SVC):
        kept = [fitted.support_vectors_, fitted.dual_coef_, fitted.intercept_]
    elif isinstance(fitted, KNeighborsClassifier):
        return int(fitted.n_samples_fit_ * (fitted.n_features_in_ + 1))
    elif isinstance(fitted, LogisticRegression):
        kept = [fitted.coef_, fitted.intercept_]
    elif isinstance(fitted, GaussianNB):
        kept = [fitted.theta_, fitted.var_, fitted.class_prior_]
    elif isinstance(fitted, RandomForestClassifier):
        trees = [one.tree_ for one in fitted.estimators_]
        leaves = sum(int(tree.n_leaves) for tree in trees)
        nodes = sum(int(tree.node_count) for tree in trees)
        return 2 * (nodes - leaves) + leaves * len(fitted.classes_)
    else:
        kept = [*fitted.coefs_, *fitted.intercepts_]
    return sum(int(array.size) for array in kept)
