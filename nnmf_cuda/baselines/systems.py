"""The systems of the comparison: whose they are, what is built here, and what they reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from nnmf_cuda.baselines.activation_maps import ActivationMapNetwork
from nnmf_cuda.baselines.base import ImageClassifier
from nnmf_cuda.baselines.cnn_activations import ActivationFactors
from nnmf_cuda.baselines.convolutional import AlmuhaimeedNetwork, HossainNetwork
from nnmf_cuda.baselines.denoising import ThiryGuthNetwork
from nnmf_cuda.baselines.hossain import Classifier, HossainClassifier
from nnmf_cuda.baselines.ours import DefendedFeatures
from nnmf_cuda.baselines.residual import Architecture, DeemNetwork
from nnmf_cuda.baselines.snnet import Filters, SNnet
from nnmf_cuda.baselines.transformers import AlmuhaimeedSwin, GomezHybrid
from nnmf_cuda.pipeline.config import PRESETS, SelectionConfig


@dataclass(frozen=True)
class Setting:
    """In which setting a system is made."""

    seed: int = 0
    device: torch.device = torch.device("cpu")
    smoke: bool = False
    """Whether it shall only show that it works: as small and as short as it can be."""
    progress: bool = False


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    Attributes
    ----------
    name : str
        As `--systems` takes it.
    title : str
        What is built, in a few words.
    authors : str
        "Hossain et al. 2019", or "this package".
    source : str
        Where it was published.
    described : str
        How the paper describes it, which is what is built.
    really : str
        What the system's own authors did, where that differs or could not be read; else "".
    reported : str
        The authors' own figures and on which data; "" where there are none.
    make : callable
        Takes a `Setting`, returns an `ImageClassifier` that is not fitted yet.
    proof : str or None
        By what its robustness is proved, where it can be.
    is_trained : bool
        Whether `make` gives what learns from images, and not a model as it is.
    fingerprint : str
        Of what a user has given: another one is another model, whatever its name; else "".
    """

    name: str
    title: str
    authors: str
    source: str
    described: str
    really: str
    reported: str
    make: Callable[[Setting], ImageClassifier]
    proof: str | None = None
    is_trained: bool = True
    fingerprint: str = ""


_SCRATCH = "Starts from scratch and is small: no weights of ImageNet are had without a network."


def _training(setting: Setting, **smoke: Any) -> dict[str, Any]:
    """Return what every image network is told; where it is tried only, `smoke` besides."""
    common = {
        "random_state": setting.seed,
        "device": setting.device,
        "progress": setting.progress,
    }
    return {**common, "epochs": 1, "image_size": 32, **smoke} if setting.smoke else common


def _hossain_network(setting: Setting) -> ImageClassifier:
    return HossainNetwork(**_training(setting, n_filters=4, n_hidden=8))


def _almuhaimeed_network(setting: Setting) -> ImageClassifier:
    return AlmuhaimeedNetwork(**_training(setting, widths=(4, 8), n_hidden=8))


def _almuhaimeed_swin(setting: Setting) -> ImageClassifier:
    smoke = {"embed_dim": 8, "depths": (1, 1, 1, 1), "n_heads": (1, 1, 1, 1)}
    return AlmuhaimeedSwin(**_training(setting, **smoke))


def _gomez(setting: Setting) -> ImageClassifier:
    return GomezHybrid(**_training(setting, widths=(4, 8, 8), hidden_size=16, n_layers=1))


def _thiry_guth(setting: Setting) -> ImageClassifier:
    return ThiryGuthNetwork(**_training(setting, widths=(4, 8)))


_FORMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "": ("full-size augmented images", {}),
    "-shrunk": ("shrunk augmented images", {"image_size": 64}),
    "-shrunk-plain": ("shrunk plain images", {"image_size": 64, "augmentation": None}),
}
"""The three forms of the images, by what the names of their systems end in."""


def _deem(setting: Setting, architecture: Architecture, form: Mapping[str, Any]) -> ImageClassifier:
    told = {**form, **_training(setting, widths=(8, 8, 8, 8))}
    return DeemNetwork(architecture=architecture, **told)


def _ours(setting: Setting, preset: str) -> ImageClassifier:
    config = PRESETS[preset]
    if setting.smoke:
        candidates = (4, 6) if config.selection.candidates else ()
        config = replace(
            config,
            nnmf=replace(config.nnmf, n_components=6, max_iter=5),
            selection=SelectionConfig(candidates=candidates),
            classifier=replace(config.classifier, epochs=2),
            diffusion=replace(config.diffusion, epochs=2),
            defence=replace(config.defence, epochs=2),
        )
    return DefendedFeatures(
        preset=preset,
        config=config if setting.smoke else None,
        random_state=setting.seed,
        device=setting.device,
        progress=setting.progress,
    )


_ARCHITECTURES: tuple[tuple[Architecture, str, str], ...] = (
    ("resnet", "ResNet", "BrainNet (ResNet-101)"),
    ("resnext", "ResNeXt", "BrainNeXt (ResNeXt)"),
)

_PROOF = (
    "bounds over balls of features, in pixels by Lipschitz constant; nnmf-cuda verify searches too,"
    " by branch and bound, and proves more"
)

_NETWORKS: tuple[System, ...] = (
    System(
        name="hossain-cnn",
        title="five-layer convolutional network",
        authors="Hossain et al. 2019",
        source="ICASERT 2019",
        described="a five-layer CNN (convolution, max-pooling, flatten, dense) on images, 80:20",
        really="the full text could not be read",
        reported="CNN 97.87 % accuracy on BRATS",
        make=_hossain_network,
    ),
    System(
        name="almuhaimeed-cnn",
        title="convolutional network with augmentation",
        authors="Almuhaimeed et al. 2025",
        source="Frontiers in Medicine 12, 1635796",
        described="a CNN with data augmentation, above 97 %",
        really="images augmented by a generative network, an autoencoder and a Swin transformer",
        reported="99.54 % accuracy on Figshare, 98.9 % on Kaggle",
        make=_almuhaimeed_network,
    ),
    System(
        name="almuhaimeed-swin",
        title="small Swin transformer",
        authors="Almuhaimeed et al. 2025",
        source="Frontiers in Medicine 12, 1635796",
        described="a CNN with data augmentation; this row is nearer to what the authors did",
        really="Swin transformer on images augmented by a generative network. " + _SCRATCH,
        reported="99.54 % accuracy on Figshare, 98.9 % on Kaggle",
        make=_almuhaimeed_swin,
    ),
    System(
        name="gomez-hybrid",
        title="convolution stem and transformer encoder",
        authors="Gomez-Guzman et al. 2025",
        source="Technologies 13, 379",
        described="a hybrid of CNN and transformer, several classes",
        really="no hybrid: DeiT3, Xception, Inception-v4 and Swin-Tiny, fine-tuned on 7023 images,"
        " stratified 5-fold. " + _SCRATCH,
        reported="Swin-Tiny 99.24 % accuracy on 7023 images",
        make=_gomez,
    ),
    System(
        name="thiry-guth",
        title="residual network that classifies and denoises",
        authors="Thiry & Guth 2024",
        source="arXiv:2410.03505",
        described="one network is classifier and denoiser: cross-entropy plus denoising over noise"
        " levels",
        really="GradResNet, a ResNet-18 with GELU and GroupNorm on natural images; here a small"
        " one",
        reported="on CIFAR-10 and ImageNet",
        make=_thiry_guth,
    ),
    *(
        System(
            name=f"deem-{architecture}{ending}",
            title=f"{title} on {form}",
            authors="Deem et al. 2026",
            source="arXiv:2602.11646",
            described="robustness of tumor classifiers: accuracy against robustness",
            really=f"FGSM and PGD transferred between {theirs} and others. {_SCRATCH}",
            reported="BrainNeXt resists best and transfers least; small images without augmentation"
            " lose most",
            make=partial(_deem, architecture=architecture, form=changes),
        )
        for ending, (form, changes) in _FORMS.items()
        for architecture, title, theirs in _ARCHITECTURES
    ),
    System(
        name="paper",
        title="NNMF features, diffusion before a light CNN",
        authors="Al-kharsan & Rajkó 2026",
        source="Mach. Learn. Knowl. Extr. 8(4), 105",
        described="the paper's own system: 15 components, a CNN, its features denoised before it",
        really="",
        reported="85.12 % accuracy; 59.53 % under AutoAttack on features at 0.10",
        make=partial(_ours, preset="paper"),
    ),
    System(
        name="robust",
        title="NNMF features, CNN trained on attacked features",
        authors="this package",
        source="docs/method.md",
        described="not in the paper",
        really="",
        reported="",
        make=partial(_ours, preset="robust"),
        proof=_PROOF,
    ),
    System(
        name="proven",
        title="NNMF features, MLP trained with interval bounds",
        authors="this package",
        source="docs/method.md",
        described="not in the paper",
        really="",
        reported="",
        make=partial(_ours, preset="proven"),
        proof=_PROOF,
    ),
    System(
        name="pixel",
        title="NNMF features, CNN trained on attacked images",
        authors="this package",
        source="docs/method.md",
        described="not in the paper",
        really="",
        reported="",
        make=partial(_ours, preset="pixel"),
        proof=_PROOF,
    ),
)


def _hossain(setting: Setting, classifier: Classifier) -> ImageClassifier:
    smoke: dict[str, Any] = {"levels": 8, "distances": (1,)} if setting.smoke else {}
    return HossainClassifier(
        classifier, random_state=setting.seed, progress=setting.progress, **smoke
    )


def _snnet(setting: Setting, filters: Filters) -> ImageClassifier:
    smoke: dict[str, Any] = {
        "n_filters": (3, 3),
        "image_size": 32,
        "n_patches": 1000,
        "max_iter": 10,
    }
    return SNnet(
        filters,
        random_state=setting.seed,
        device=setting.device,
        progress=setting.progress,
        **(smoke if setting.smoke else {}),
    )


def _activation_maps(setting: Setting) -> ImageClassifier:
    smoke = {"n_components": 3, "nnmf_max_iter": 10, "widths": (4, 8), "n_hidden": 8}
    return ActivationMapNetwork(**_training(setting, **smoke))


def _activation_factors(setting: Setting) -> ImageClassifier:
    smoke = {"n_components": 3, "nnmf_max_iter": 10, "n_places": 1000, "widths": (4, 8)}
    return ActivationFactors(**_training(setting, **smoke))


_CLASSIFIERS: tuple[tuple[Classifier, str, str], ...] = (
    ("svm", "support vector machine", "SVM 92.42 % accuracy on BRATS"),
    ("knn", "nearest neighbours", ""),
    ("logistic-regression", "logistic regression", ""),
    ("naive-bayes", "naive Bayes", ""),
    ("random-forest", "random forest", ""),
    ("mlp", "multilayer perceptron", ""),
)
"""Name, title and what was reported."""

_FRAME = (
    "the full text could not be read; here PCANet's frame (two stages, binary hashing, block"
    " histograms, linear support vector machine) with other filters"
)

_FILTERS: tuple[tuple[str, Filters, str, str], ...] = (
    ("snnet", "semi-nmf", "filters from Semi-NMF of patches, no backpropagation", _FRAME),
    (
        "s-snnet",
        "graph",
        "SNnet with a graph of weak labels over the patches",
        f"{_FRAME}; the graph has little weight and another solver than SNnet's, so that the two"
        " rows differ by more than the labels",
    ),
)
"""Name, how filters are learned, description, and what is not the same."""

_CLASSICAL: tuple[System, ...] = (
    *(
        System(
            name=f"hossain-{classifier}",
            title=f"texture of fuzzy c-means segments, {title}",
            authors="Hossain et al. 2019",
            source="ICASERT 2019",
            described="fuzzy c-means segmentation, texture and statistical descriptors, then one of"
            " six classifiers, 80:20",
            really="the full text could not be read",
            reported=reported,
            make=partial(_hossain, classifier=classifier),
        )
        for classifier, title, reported in _CLASSIFIERS
    ),
    System(
        name="chan-maps",
        title="shallow convolutional network of image and component maps",
        authors="Chan et al. 2020",
        source="arXiv:2001.07874",
        described="activations of an NNMF turn weak labels into approximate strong ones, a shallow"
        " CNN follows",
        really="sounds and their times; here slices, and the places of components in them",
        reported="event F1 30.39 % on DCASE 2019, against 23.7 %",
        make=_activation_maps,
    ),
    *(
        System(
            name=name,
            title=described.split(",")[0],
            authors="Huang et al. 2019",
            source="IEEE Access 7",
            described=described,
            really=really,
            reported="on MNIST, near PCANet",
            make=partial(_snnet, filters=filters),
        )
        for name, filters, described, really in _FILTERS
    ),
    System(
        name="pcanet",
        title="filters from principal components of patches",
        authors="Chan et al. 2015",
        source="IEEE TIP 24(12)",
        described="not in the paper; what SNnet is compared with by its authors",
        really="",
        reported="",
        make=partial(_snnet, filters="pca"),
    ),
    System(
        name="lee-pang",
        title="NNMF of a convolutional network's activations",
        authors="Lee & Pang 2020",
        source="on sounds of domestic activities",
        described="NNMF of a CNN's activations as features",
        really="sounds of domestic activities; here slices",
        reported="",
        make=_activation_factors,
    ),
)

_ALL: tuple[System, ...] = (*_CLASSICAL, *_NETWORKS)

SYSTEMS: Mapping[str, System] = {system.name: system for system in _ALL}
"""By name, in the order of the table."""
