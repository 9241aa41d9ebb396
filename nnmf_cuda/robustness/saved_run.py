"""What is evaluated: a model with its features and what its run found, as a run has left them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.attacks import Threat
from nnmf_cuda.data import SPLITS, ImageDataset, LeakageAudit, groupings_of_test, load_dataset
from nnmf_cuda.pipeline.artifacts import TrainedModel, load_model
from nnmf_cuda.pipeline.config import AttackConfig
from nnmf_cuda.pipeline.features import Features

FEATURES_FILE = "features.npz"
_GROUPING = "test_by_"
"""Begins the name of an array that says to which group each test image belongs."""


def save_features(path: Path, features: Features, dataset: ImageDataset) -> None:
    """Write the features and labels of every split, and to whom the test images belong."""
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        arrays[f"x_{split}"] = features.x[split].float().cpu().numpy()
        arrays[f"y_{split}"] = features.y[split]
    for name, groups in groupings_of_test(dataset).items():
        arrays[_GROUPING + name] = groups
    np.savez(path, **arrays)


@dataclass(frozen=True)
class PaperAttack:
    """What the paper's protocol, the run's own attack, found on one model.

    Points (n_test, n_features) and their accuracy by fresh predictions, the row of `metrics.json`;
    AutoAttack's own count of who is robust, bool (n_test,), its warnings, and how Square saw the
    features.
    """

    points: Tensor
    flags: Tensor
    accuracy: float
    layout: str
    warnings: Sequence[str]


@dataclass(frozen=True)
class SavedRun:
    """A trained model, the features of every split, and the threat that it is tested against.

    Attributes
    ----------
    model : TrainedModel
    x, y : mapping of str to Tensor
        Features (n, n_features) and labels (n,) of "train", "valid" and "test", on the model's
        device.
    attack : AttackConfig
        Settings of the run's own attack, whose ball, in the box [0, 1], is the threat.
    paper : mapping of str to PaperAttack
        What that attack found on the "baseline" and the "defended" model.
    seed : int
        Of the run.
    audit : LeakageAudit or None
        Of the run's images.
    groupings : mapping of str to array of shape (n_test,)
        Patient and series of each test image, where they are known.
    """

    model: TrainedModel
    x: Mapping[str, Tensor]
    y: Mapping[str, Tensor]
    attack: AttackConfig
    paper: Mapping[str, PaperAttack]
    seed: int
    audit: LeakageAudit | None = None
    groupings: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def threat(self) -> Threat:
        """The ball and box in which the model is attacked."""
        return Threat(self.attack.radius, self.attack.norm)

    @property
    def defended(self) -> nn.Module:
        """The defence."""
        return self.model.defended

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """Features, put into the box where rounding has left it, and labels of the test split."""
        return self.x["test"].clamp(0, 1), self.y["test"]

    @classmethod
    def load(cls, directory: str | Path, *, device: torch.device | str = "cpu") -> SavedRun:
        """Read what `nnmf-cuda run` has written; raises ValueError if that is not a whole run's."""
        home = Path(directory)
        model = load_model(home, device=device)
        needed = (FEATURES_FILE, "adversarial.npz", "metrics.json")
        missing = [name for name in needed if not (home / name).is_file()]
        if missing:
            raise ValueError(
                f"{home}: {', '.join(missing)} missing: an evaluation needs the whole directory"
                " that `nnmf-cuda run` has written, by this version"
            )
        features, attacked = np.load(home / FEATURES_FILE), np.load(home / "adversarial.npz")
        metrics = json.loads((home / "metrics.json").read_text(encoding="utf-8"))
        attacks, audit = metrics["attacks"], metrics.get("audit")
        settings = {f.name: attacks["defended"][f.name] for f in fields(AttackConfig)}
        settings["attacks"] = tuple(settings["attacks"])
        return cls(
            model=model,
            x={split: torch.from_numpy(features[f"x_{split}"]).to(device) for split in SPLITS},
            y={split: torch.from_numpy(features[f"y_{split}"]).to(device) for split in SPLITS},
            attack=AttackConfig(**settings),
            paper={
                name: PaperAttack(
                    points=torch.from_numpy(attacked[f"x_adv_{name}"]).to(device),
                    flags=torch.from_numpy(attacked[f"robust_flags_{name}"]).to(device),
                    accuracy=metrics["rows"][f"Robust_{name.capitalize()}"]["accuracy"],
                    layout=attacks[name]["layout"],
                    warnings=attacks[name]["warnings"],
                )
                for name in ("baseline", "defended")
            },
            seed=model.info.seed,
            audit=None if audit is None else LeakageAudit.from_dict(audit),
            groupings={
                name.removeprefix(_GROUPING): features[name]
                for name in features.files
                if name.startswith(_GROUPING)
            },
        )

    def test_images(
        self, data: str | None, *, say: Callable[[str], object] = lambda _: None
    ) -> Tensor:
        """Return the run's test images (n, height * width) in [0, 1], on the model's device.

        `data` is as for `load_dataset`, None the built-in phantom; `say` is told how it was read.
        Raises ValueError if its images are not those of the run.
        """
        info = self.model.info
        dataset = load_dataset(
            **replace(info.data, path=data).of_load(),
            seed=info.seed,
            image_shape=self.model.image_shape,
        )
        for note in dataset.notes:
            say(note)
        if dataset.sha256() != info.data_sha256:
            raise ValueError(
                f"--data {data} does not hold the images, labels and split that the model was"
                f" trained and tested on ({info.source}): give the same data"
            )
        return self.images_of(dataset)

    def images_of(self, dataset: ImageDataset) -> Tensor:
        """Return a data set's test images (n, height * width) in [0, 1], on the model's device."""
        pixels = torch.from_numpy(dataset.matrix("test"))
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        return pixels.to(self.model.device, torch.float32)
