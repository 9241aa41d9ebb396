"""Which systems are compared, on which splits, from which seeds; and what they may spend."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnmf_cuda.baselines import SYSTEMS, System
from nnmf_cuda.comparison.measure import in_turn_of_classes
from nnmf_cuda.comparison.pixels import Spending
from nnmf_cuda.comparison.references import REFERENCES
from nnmf_cuda.data import ImageDataset, folds_by, load_dataset
from nnmf_cuda.data.splits import SplitBy
from nnmf_cuda.pipeline.config import DataConfig
from nnmf_cuda.report.repeats import OWN_SPLIT
from nnmf_cuda.run.repeats import plan_folds

SMOKE = Spending(
    n_images=10, eps_255=(2.0, 8.0), n_iter=3, eot_iter=1, n_queries=10, n_check_queries=3
)
_SMOKE_IMAGES = {"train": 96, "valid": 32, "test": 48}


@dataclass(frozen=True)
class PlannedSplit:
    """One way in which the images are divided."""

    name: str
    split_by: SplitBy | None = None
    test_fold: int | str | None = None


@dataclass(frozen=True)
class Plan:
    """All that a comparison shall do.

    Attributes
    ----------
    systems : sequence of System
        In the order of the table.
    data : DataConfig
    splits : sequence of PlannedSplit
    seeds : sequence of int
        Of trainings and attacks; the first also of a split that is made here.
    spending : Spending
    device : torch.device
    smoke : bool
        Whether it shall only show that it works: few images, and systems as small as can be.
    random_labels : bool
        Whether each system is also trained on labels that are drawn.
    """

    systems: Sequence[System]
    data: DataConfig
    splits: Sequence[PlannedSplit]
    seeds: Sequence[int] = (0,)
    spending: Spending = field(default_factory=Spending)
    device: torch.device = torch.device("cpu")
    smoke: bool = False
    random_labels: bool = False

    def key(self) -> dict[str, Any]:
        """Return what must be the same for a comparison to be gone on with."""
        data = {f"data.{name}": value for name, value in asdict(self.data).items()}
        return {
            **data,
            "systems": [system.name for system in self.systems],
            **{f"model.{s.name}": s.fingerprint for s in self.systems if s.fingerprint},
            "splits": [split.name for split in self.splits],
            "seeds": list(self.seeds),
            **{f"spending.{name}": value for name, value in asdict(self.spending).items()},
            "smoke": self.smoke,
            # Times of two devices are no column of one table. Nothing is the processor.
            **({} if self.device.type == "cpu" else {"device": self.device.type}),
        }

    def load(self, split: PlannedSplit, *, progress: bool = False) -> ImageDataset:
        """Return the images, divided in one of the ways; few of them for smoke."""
        data = replace(self.data, split_by=split.split_by, test_fold=split.test_fold)
        found = load_dataset(**data.of_load(), seed=self.seeds[0], progress=progress)
        return _few(found) if self.smoke else found


def chosen_systems(
    names: Sequence[str], given: Sequence[System] = (), *, known: Sequence[System] | None = None
) -> tuple[System, ...]:
    """Return the systems of these names, or all where none is named; the given ones come last.

    Raises ValueError for a name that there is not, or a name that is there twice.
    """
    table = {s.name: s for s in (*REFERENCES, *(SYSTEMS.values() if known is None else known))}
    for name in names:
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"--systems {name}: {hint}choose from {', '.join(table)}")
    chosen = [table[name] for name in table if not names or name in names]
    found = (*chosen, *given)
    twice = {s.name for s in found if sum(other.name == s.name for other in found) > 1}
    if twice:
        raise ValueError(f"{sorted(twice)[0]} is given twice: name each model once")
    return found


def planned_splits(data: DataConfig, *, folds: bool, seed: int) -> tuple[PlannedSplit, ...]:
    """Return the split at hand, or with `folds` the source's own beside all folds."""
    if not folds:
        by = data.split_by
        ways: list[str] = []
        if by is None and data.path is not None:
            ways = list(folds_by(data.path, label_key=data.label_key, reading=data))
        if data.test_fold is not None:
            name = f"fold {data.test_fold}"
        else:
            way = (by, *ways, "split")[0 if by else 1]
            name = OWN_SPLIT if way == "split" else f"by {way}"
        return (PlannedSplit(name, data.split_by, data.test_fold),)
    if data.path is None:
        raise ValueError("--folds needs --data: the built-in images have no folds")
    if data.test_fold is not None:
        raise ValueError(f"--test_fold {data.test_fold} is one fold, --folds all: leave out one")
    planned = plan_folds(
        data.path,
        [seed],
        split_by=data.split_by,
        label_key=data.label_key,
        reading=data,
        option="--folds",
    )
    return tuple(PlannedSplit(one.split, one.split_by, one.test_fold) for one in planned)


def _few(dataset: ImageDataset) -> ImageDataset:
    """Return a few images of each part, in shares of the classes."""
    chosen = []
    for part, n in _SMOKE_IMAGES.items():
        rows = np.flatnonzero(dataset.split == part)
        chosen.append(rows[in_turn_of_classes(dataset.labels[rows], n)])
    rows = np.sort(np.concatenate(chosen))
    groups = {name: members[rows] for name, members in dataset.groups.items()}
    parts = {name: getattr(dataset, name)[rows] for name in ("images", "labels", "split", "files")}
    note = f"Smoke: {len(rows)} of {len(dataset.images)} images"
    return replace(dataset, **parts, groups=groups, notes=(*dataset.notes, note))


def check_place(out: Path, *, resume: bool, overwrite: bool, names: Sequence[str]) -> list[str]:
    """Return which results are in a folder; ValueError where they are neither kept nor replaced."""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: give one")
    present = [name for name in names if (out / name).exists()]
    if present and not (resume or overwrite):
        raise ValueError(
            f"{out} already holds {', '.join(present)}: give --resume to go on, --overwrite to"
            " replace them, or another --out"
        )
    return present
