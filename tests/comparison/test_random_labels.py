"""The control with random labels: it finds leakage where there is, and none where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nnmf_cuda.baselines import ImageClassifier
from nnmf_cuda.comparison.random_labels import (
    _labels,
    _split,
    n_trainings,
    quick_controls,
    random_label_control,
)
from nnmf_cuda.comparison.references import ConstantAnswer, NearestNeighbour
from nnmf_cuda.data import ImageDataset
from nnmf_cuda.data.splits import make_split
from nnmf_cuda.evaluation.compared import RandomLabels
from tests.comparison.conftest import images_of


def dataset_of(n_patients: int, *, groups: bool = True) -> ImageDataset:
    arrays = images_of(n_patients, 4, 2)
    patients = {"patient": arrays["patient"]} if groups else {}
    split, _ = make_split(
        arrays["labels"],
        label_names=("a", "b"),
        split=None,
        groups={"patient": arrays["patient"]},
        split_by="patient",
        seed=0,
        source="test",
    )
    return ImageDataset(
        images=arrays["images"],
        labels=arrays["labels"],
        label_names=("a", "b"),
        split=split,
        groups=patients,
        files=np.array([f"{i}.png" for i in range(len(split))]),
        source="test",
    )


def uneven(*sizes: int, n_classes: int = 2) -> ImageDataset:
    """Return images of patients that have so many each, dealt one by one."""
    patients = np.repeat(np.arange(len(sizes)), sizes)
    n = len(patients)
    return ImageDataset(
        images=np.zeros((n, 2, 2), np.uint8),
        labels=np.arange(n) // 4 % n_classes,
        label_names=tuple("abc"[:n_classes]),
        split=np.array(["train", "train", "valid", "test"])[np.arange(n) % 4],
        groups={"patient": patients},
        files=np.array([f"{i}.png" for i in range(n)]),
        source="test",
    )


def by_cell(found: list[RandomLabels]) -> dict[tuple[str, str], RandomLabels]:
    return {(one.labels_by, one.split_by): one for one in found}


def test_memory_scores_on_labels_of_patients_split_by_image_alone() -> None:
    found = by_cell(
        random_label_control(
            dataset_of(60), lambda seed: NearestNeighbour(), name="nearest", n_draws=10, seed=2
        )
    )
    leaking = found["patient", "image"]
    assert leaking.accuracy.estimate > 0.95
    assert leaking.leaks
    assert leaking.shared > 0.9
    for cell in (("image", "image"), ("patient", "patient"), ("patient", "the given split")):
        assert not found[cell].leaks, cell
        assert found[cell].accuracy.low <= 0.5 <= found[cell].accuracy.high
        assert found[cell].shared == 0


def test_an_answer_that_does_not_look_is_at_chance() -> None:
    found = random_label_control(
        dataset_of(40), lambda seed: ConstantAnswer(), name="constant", n_draws=20, seed=1
    )
    for one in found:
        assert one.accuracy.low <= one.chance <= one.accuracy.high


def test_the_interval_counts_patients_not_images() -> None:
    (image, _, patient, _) = random_label_control(
        dataset_of(40), lambda seed: ConstantAnswer(), name="constant", n_draws=5, seed=1
    )
    width = [one.accuracy.high - one.accuracy.low for one in (image, patient)]
    assert width[1] > 1.2 * width[0]


def test_without_groups_there_is_one_cell() -> None:
    data = dataset_of(20, groups=False)
    calls: list[int] = []

    def make(seed: int) -> ImageClassifier:
        calls.append(seed)
        return ConstantAnswer()

    found = random_label_control(data, make, name="constant", n_draws=3, seed=0)
    assert [(one.labels_by, one.split_by) for one in found] == [("image", "image")]
    assert len(calls) == len(set(calls)) == n_trainings(data, 3) == 3


def test_too_few_groups_are_refused() -> None:
    data = dataset_of(20)
    others = np.array(["b", "c"])[np.arange(len(data.split)) % 2]
    patients = np.where(data.split == "train", "a", np.char.add(data.split, others))
    few = ImageDataset(
        **{
            **{name: getattr(data, name) for name in ("images", "labels", "label_names", "split")},
            "groups": {"patient": patients},
            "files": data.files,
            "source": "few",
        }
    )
    with pytest.raises(ValueError, match="random labels of 1 training groups hardly have 2"):
        random_label_control(few, lambda seed: ConstantAnswer(), name="c", n_draws=1, seed=0)


@pytest.mark.parametrize(
    ("sizes", "n_classes"),
    [
        ((1, 1, 1, 97), 2),
        ((2, 2, 2, 2, 2, 90), 2),
        ((90, 2, 2, 2, 2, 2), 3),
        ((5, 5, 5, 5), 2),
        ((40, 1, 40, 1, 18), 3),
        ((20,) * 10, 2),
    ],
)
@pytest.mark.parametrize("split_by", ["patient", "image"])
def test_every_made_split_can_be_trained_on(
    sizes: tuple[int, ...], n_classes: int, split_by: str
) -> None:
    data = uneven(*sizes, n_classes=n_classes)
    patients = data.groups["patient"]
    for draw in range(100):
        rng = np.random.default_rng([0, draw])
        split = _split(data, split_by, patients, rng)
        assert set(split) == {"train", "valid", "test"}, draw
        assert len(np.unique(patients[split == "train"])) >= n_classes, draw
        labels = _labels(patients, split, n_classes, rng)
        assert len(np.unique(labels[split == "train"])) == n_classes
        if split_by == "patient":
            assert all(len(set(split[patients == one])) == 1 for one in np.unique(patients))


def test_what_is_too_few_to_be_divided_gets_no_labels() -> None:
    few = uneven(1, 1, 98)
    assert n_trainings(few, 1) == 1  # one patient each for training, validation and test
    assert n_trainings(uneven(1, 1, 1, 97), 1) == 4
    series = {"series": np.arange(100) // 10}
    (_, by_series, *_) = random_label_control(
        dataclasses.replace(few, groups=few.groups | series),
        lambda seed: ConstantAnswer(),
        name="constant",
        n_draws=1,
        seed=0,
    )
    assert by_series.labels_by == "series"


def test_the_quick_controls_of_an_audit_find_the_same() -> None:
    told: list[None] = []
    found = quick_controls(dataset_of(24), seed=0, each=lambda: told.append(None))
    assert len(found) == 8
    assert len(told) == 4 * 10 + 4 * 3
    nearest = by_cell([one for one in found if one.system == "nearest neighbour"])
    assert nearest["patient", "image"].leaks
    assert not nearest["patient", "patient"].leaks
