"""A trained model on disk: safetensors for the numbers, JSON for the rest; never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnmf_cuda._version import __version__
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.models.networks import (
    FeatureClassifier,
    FeatureCNN,
    FeatureDenoiser,
    build_classifier,
)
from nnmf_cuda.pipeline.config import DataConfig, DefenceConfig, DiffusionConfig
from nnmf_cuda.pipeline.defences import assemble, purifier_of
from nnmf_cuda.pipeline.run_directory import runs_below

FORMAT_VERSION = 1
"""Raised when a file of an older version could be misread."""

_JSON = "model.json"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ModelInfo:
    """Where a model comes from."""

    source: str  # what the images are, in words
    synthetic: bool
    seed: int
    data_sha256: str  # of images, labels and split
    data: DataConfig  # how they were read


@dataclass(frozen=True)
class TrainedModel:
    """Images to features to answers; what `load_model` returns.

    Attributes
    ----------
    extractor : FeatureExtractor
        Images to features.
    classifier : FeatureCNN
        Features to logits.
    purifier : DiffusionPurifier
        Noise and denoiser.
    defended : nn.Module
        Features to logits, by the defence. Where it is a `DefendedClassifier`, it is random unless
        given noise.
    robust_classifier : FeatureCNN, FeatureMLP or None
        The defence's own classifier, where it has trained one.
    label_names : tuple of str
        Class names in the order of the logits; the last is the positive class.
    diffusion : DiffusionConfig
        How the denoiser was trained and is used.
    defence : DefenceConfig
        How the defence was trained.
    info : ModelInfo
    """

    extractor: FeatureExtractor
    classifier: FeatureCNN
    purifier: DiffusionPurifier
    defended: nn.Module
    robust_classifier: FeatureClassifier | None
    label_names: tuple[str, ...]
    diffusion: DiffusionConfig
    defence: DefenceConfig
    info: ModelInfo

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.extractor.components.device

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images it takes."""
        return self.extractor.image_shape

    def features(self, images: ArrayLike | Tensor) -> Tensor:
        """Return the features of images, differentiably for floating-point tensors.

        Parameters
        ----------
        images : array-like or Tensor of shape (n, height, width) or (n, height * width)
            uint8 pixels, or floating point in [0, 1].

        Returns
        -------
        Tensor of shape (n, n_features)
            float32, on the model's device.
        """
        if not isinstance(images, Tensor):
            images = torch.from_numpy(np.ascontiguousarray(images))
        features: Tensor = self.extractor(images)
        return features

    def predict_proba(
        self, images: ArrayLike | Tensor, *, defended: bool = True, seed: int = 0
    ) -> NDArray[np.float64]:
        """Return class probabilities (n, n_classes) of images.

        Parameters
        ----------
        images : array-like or Tensor
            As for `features`.
        defended : bool, default=True
            Whether to answer by the defence.
        seed : int, default=0
            Of the purifier's noise, which is the same for every image, so that an answer depends
            on the image and the seed alone. Whoever knows the seed knows the noise: to keep it
            from an attacker, give a seed that cannot be guessed.
        """
        if not isinstance(images, Tensor):
            images = torch.from_numpy(np.ascontiguousarray(images))
        with torch.no_grad():
            answer = self.answerer(defended=defended, seed=seed)(images)
        probabilities: NDArray[np.float64] = answer.cpu().numpy()
        return probabilities

    def answerer(self, *, defended: bool = True, seed: int = 0) -> Callable[[Tensor], Tensor]:
        """Return what maps images to their probabilities as `predict_proba` does.

        It maps a tensor of images to a float64 tensor (n, n_classes) on the model's device,
        differentiably where the images are floating point. The noise is drawn and brought to the
        device here, once.
        """
        chosen = self.defended if defended else self.classifier
        if not isinstance(chosen, DefendedClassifier):
            return lambda images: chosen(self.features(images)).double().softmax(1)
        # One row of features: as wide and of the type that the classifier sees.
        row = self.extractor.components.new_zeros(1, self.extractor.n_features)
        generator = torch.Generator().manual_seed(seed)
        noise = self.purifier.draw_noise(row, generator)

        def answer(images: Tensor) -> Tensor:
            x = self.features(images)
            logits: Tensor = chosen(x, noise=noise.expand(-1, len(x), -1, -1))
            return logits.double().softmax(1)

        return answer


def save_model(model: TrainedModel, directory: Path) -> None:
    """Write a model, on any device, as `model.json` and `model.safetensors` into a directory."""
    from safetensors.torch import save

    parts: dict[str, nn.Module] = {
        "extractor": model.extractor,
        "classifier": model.classifier,
        "denoiser": model.purifier.denoiser,
    }
    if model.robust_classifier is not None:
        parts["robust_classifier"] = model.robust_classifier
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    weights = save(tensors)
    description = {
        "format_version": FORMAT_VERSION,
        "nnmf_cuda": __version__,
        "image_shape": list(model.image_shape),
        "label_names": list(model.label_names),
        "n_features": model.extractor.n_features,
        "diffusion": asdict(model.diffusion),
        "defence": asdict(model.defence),
        "info": asdict(model.info),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _WEIGHTS).write_bytes(weights)
    (directory / _JSON).write_text(json.dumps(description, indent=2), encoding="utf-8")


def load_model(directory: str | Path, *, device: torch.device | str = "cpu") -> TrainedModel:
    """Load what a run saved, on any device.

    Parameters
    ----------
    directory : path
        A run's directory, or the `model` folder inside it.
    device : str or torch.device, default="cpu"
        Where to compute.

    Returns
    -------
    TrainedModel

    Raises
    ------
    ValueError
        If there is no model, it was written by another version, or a file is damaged.

    Examples
    --------
    >>> model = load_model("demo-run")  # doctest: +SKIP
    >>> model.predict_proba(images)  # doctest: +SKIP
    """
    home = find_model(Path(directory))
    description = _read_description(home / _JSON)
    tensors = _read_weights(home / _WEIGHTS, description["weights_sha256"])
    try:
        model = _build(description, tensors)
    except Exception as error:  # a file of anyone's, of which any value may be anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{home}: {_JSON} does not describe the weights beside it ({said}): run the"
            " experiment again"
        ) from error
    for module in (model.extractor, model.classifier, model.purifier, model.defended):
        module.to(device).eval()
    return model


def find_model(directory: Path) -> Path:
    """Return the folder with the model of a run's directory; raise ValueError if there is none."""
    for home in (directory / "model", directory):
        if (home / _JSON).is_file():
            return home
    runs = [home for home in runs_below(directory) if (home / "model" / _JSON).is_file()]
    if runs:
        raise ValueError(
            f"{directory}: no model here, but {len(runs)} runs: give one of its runs, such as"
            f" {runs[0]}"
        )
    raise ValueError(
        f"{directory}: no model here ({_JSON} is missing): give the --out directory of"
        " `nnmf-cuda run`"
    )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = description["format_version"]
        description["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: damaged, not a model's description: run the experiment again"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: written in format {version} by nnmf-cuda"
            f" {description.get('nnmf_cuda', '(unknown version)')}, but this is {__version__},"
            f" which reads format {FORMAT_VERSION}: use that version or run the experiment again"
        )
    return dict(description)


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    from safetensors.torch import load

    if not path.is_file():
        raise ValueError(f"{path}: missing: copy the whole model folder, or run again")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != sha256:
        raise ValueError(
            f"{path}: damaged, or not the file that {_JSON} describes: copy the whole model"
            " folder again, or run the experiment again"
        )
    try:
        tensors: dict[str, Tensor] = load(weights)
        odd = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    except Exception as error:  # as its checksum may be right nevertheless
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged ({said}): run the experiment again") from error
    if odd:
        raise ValueError(f"{path}: {odd[0]} is not finite: run the experiment again")
    return tensors


def _check_parts(
    components: Tensor, selected: Tensor, n_features: object, label_names: object
) -> None:
    """Raise ValueError where nothing could be built of these, or it would fail when it is used."""
    if components.ndim != 2 or components.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"components are {components.dtype} of {components.ndim} dimensions")
    if selected.ndim != 1 or selected.dtype != torch.int64 or len(selected) != n_features:
        raise ValueError(f"n_features is {n_features}, selected {tuple(selected.shape)}")
    if not ((selected >= 0) & (selected < len(components))).all():
        raise ValueError(f"selected components lie outside 0..{len(components) - 1}")
    names = label_names if isinstance(label_names, list) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ValueError("label_names are no list of names")


def _build(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TrainedModel:
    settings = dict(description["diffusion"])
    settings["timesteps"] = tuple(settings["timesteps"])
    diffusion = DiffusionConfig(**settings)
    # Models of before there was a choice have none written down: the purifier was the defence.
    settings = dict(description.get("defence", {}))
    for name in ("candidate_timesteps", "hidden"):
        if name in settings:
            settings[name] = tuple(settings[name])
    defence = DefenceConfig(**settings)
    height, width = description["image_shape"]
    components, selected = tensors["extractor.components"], tensors["extractor.selected"]
    n_features, label_names = description["n_features"], tuple(description["label_names"])
    _check_parts(components, selected, n_features, description["label_names"])
    extractor = FeatureExtractor(components, selected, image_shape=(height, width))
    info = description["info"]
    classifier = FeatureCNN(n_features, len(label_names))
    denoiser = FeatureDenoiser(
        n_features, hidden=diffusion.hidden, embedding_dim=diffusion.embedding_dim
    )
    own = None
    if defence.has_own_classifier:
        own = build_classifier(defence.network, n_features, len(label_names), defence.hidden)
    parts = {"classifier.": classifier, "denoiser.": denoiser, "robust_classifier.": own}
    for prefix, module in parts.items():
        if module is not None:
            found = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(found)
    purifier = purifier_of(denoiser, diffusion)
    return TrainedModel(
        extractor=extractor,
        classifier=classifier,
        purifier=purifier,
        defended=assemble(purifier, classifier, own, defence),
        robust_classifier=own,
        label_names=label_names,
        diffusion=diffusion,
        defence=defence,
        info=ModelInfo(**{**info, "data": DataConfig(**info.get("data", {}))}),
    )
