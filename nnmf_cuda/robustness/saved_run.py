"""What is evaluated: a model with its features, as a run has left them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.data import SPLITS, ImageDataset, groupings_of_test
from nnmf_cuda.pipeline.artifacts import TrainedModel, load_model
from nnmf_cuda.pipeline.stages import Features

__all__ = ["FEATURES_FILE", "Subject", "save_features"]


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
class Subject:
    """A trained model, the features of every split, and the threat that it is tested against.

    Attributes
    ----------
    model : TrainedModel
    x, y : mapping of str to Tensor
        Features (n, n_features) and labels (n,) of "train", "valid" and "test", on the model's
        device.
    attack_eps, norm : float, str
        The threat model, in the box [0, 1].
    paper : mapping of str to mapping
        For "baseline" and "defended" what the paper's protocol found: "points" (n, n_features) and
        "flags" (n,), AutoAttack's own count.
    findings : mapping of str to Any
        Content of the run's `metrics.json`.
    seed : int
        Of the run.
    groupings : mapping of str to array of shape (n_test,)
        Patient and series of each test image, where they are known.
    """

    model: TrainedModel
    x: Mapping[str, Tensor]
    y: Mapping[str, Tensor]
    attack_eps: float
    norm: str
    paper: Mapping[str, Mapping[str, Tensor]]
    findings: Mapping[str, Any]
    seed: int
    groupings: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def defended(self) -> nn.Module:
        """The defence."""
        return self.model.defended

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """Features, put into the box where rounding has left it, and labels of the test split."""
        return self.x["test"].clamp(0, 1), self.y["test"]

    @classmethod
    def of_run(cls, directory: str | Path, *, device: torch.device | str = "cpu") -> Subject:
        """Read what `nnmf-cuda run` has written.

        Raises
        ------
        ValueError
            If the directory is not a whole run's.
        """
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
        paper = {
            name: {
                "points": torch.from_numpy(attacked[f"x_adv_{name}"]).to(device),
                "flags": torch.from_numpy(attacked[f"robust_flags_{name}"]).to(device),
            }
            for name in ("baseline", "defended")
        }
        settings = metrics["attacks"]["defended"]
        return cls(
            model=model,
            x={split: torch.from_numpy(features[f"x_{split}"]).to(device) for split in SPLITS},
            y={split: torch.from_numpy(features[f"y_{split}"]).to(device) for split in SPLITS},
            attack_eps=settings["attack_eps"],
            norm=settings["norm"],
            paper=paper,
            findings=metrics,
            seed=int(model.info["seed"]),
            groupings={
                name.removeprefix(_GROUPING): features[name]
                for name in features.files
                if name.startswith(_GROUPING)
            },
        )
