"""The systems of the comparison: whose they are, what is built here, and what they reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from nnmf_cuda.baselines.base import ImageClassifier
from nnmf_cuda.baselines.convolutional import AlmuhaimeedNetwork, HossainNetwork
from nnmf_cuda.baselines.denoising import ThiryGuthNetwork
from nnmf_cuda.baselines.ours import DefendedFeatures
from nnmf_cuda.baselines.residual import Architecture, DeemNetwork
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
    extra : str or None
        The extra of this package that it needs.
    proof : str or None
        By what its robustness is proved, where it can be.
    """

    name: str
    title: str
    authors: str
    source: str
    described: str
    really: str
    reported: str
    make: Callable[[Setting], ImageClassifier]
    extra: str | None = None
    proof: str | None = None


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

_PROOF = "branch and bound on features; pixels by Lipschitz constant"

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
        extra="baselines",
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
        extra="baselines",
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
        extra="baselines",
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
            extra="baselines",
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
    ),
)

_ALL: tuple[System, ...] = (*_NETWORKS,)

SYSTEMS: Mapping[str, System] = {system.name: system for system in _ALL}
"""By name, in the order of the table."""
