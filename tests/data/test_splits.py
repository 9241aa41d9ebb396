from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data.splits import make_split


def split_of(labels: np.ndarray, **changes: Any) -> tuple[np.ndarray, list[str]]:
    arguments: dict[str, Any] = {
        "label_names": ("a", "b", "c"),
        "split": None,
        "groups": {},
        "split_by": None,
        "seed": 0,
        "source": "here",
    }
    return make_split(labels, **{**arguments, **changes})


LABELS = np.repeat([0, 1, 2], [200, 100, 20])


def test_a_random_split_has_the_same_share_of_every_class() -> None:
    split, notes = split_of(LABELS)
    for label, (train, valid, test) in enumerate([(140, 30, 30), (70, 15, 15), (14, 3, 3)]):
        of_class = split[label == LABELS]
        counts = [int((of_class == name).sum()) for name in ("train", "valid", "test")]
        assert counts == [train, valid, test]
    assert "70/15/15, stratified by class, seed 0" in notes[0]
    assert "names no patients" in notes[0]


def test_the_seed_decides() -> None:
    first, again, other = (split_of(LABELS, seed=seed)[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_small_classes_get_one_image_in_every_split() -> None:
    split, _ = split_of(np.array([0, 0, 0, 1, 1, 1]))
    assert sorted(split[:3].tolist()) == sorted(split[3:].tolist()) == ["test", "train", "valid"]
    with pytest.raises(ValueError, match="here: class 'b' has 2 images, too few for one in each"):
        split_of(np.array([0, 0, 0, 1, 1]))


def patients_and_labels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return 60 patients of 1 to 20 images, most of whom have one class only."""
    patients = np.repeat(np.arange(60), rng.integers(1, 21, size=60))
    labels = (patients % 3 == 0).astype(np.int64)
    labels ^= rng.random(len(labels)) < 0.05
    return np.array([f"P{patient}" for patient in patients]), labels


def test_no_patient_is_in_two_splits(rng: np.random.Generator) -> None:
    patients, labels = patients_and_labels(rng)
    split, notes = split_of(labels, groups={"patient": patients})
    for patient in np.unique(patients):
        assert len(set(split[patients == patient].tolist())) == 1
    for label in (0, 1):
        shares = [(split[labels == label] == name).mean() for name in ("train", "valid", "test")]
        np.testing.assert_allclose(shares, [0.70, 0.15, 0.15], atol=0.05)
    assert "by patient: none is in two splits (60 of them)" in notes[0]


def test_patients_may_be_ignored_on_demand(rng: np.random.Generator) -> None:
    patients, labels = patients_and_labels(rng)
    split, notes = split_of(labels, groups={"patient": patients}, split_by="random")
    assert any(len(set(split[patients == patient].tolist())) > 1 for patient in patients)
    assert "images of one patient may be in several splits" in notes[0]


def test_too_few_patients_are_refused() -> None:
    groups = {"patient": np.array(["a", "b"] * 10)}
    with pytest.raises(ValueError, match="its 2 patients .* cannot be divided .*split_by='random'"):
        split_of(np.arange(20) % 2, groups=groups)


def test_a_class_of_one_patient_is_refused() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    with pytest.raises(ValueError, match="its 4 patients or series.*: 1 of them have class 'b'"):
        split_of(labels, groups={"patient": np.repeat([1, 2, 3, 4], 10)})


def test_the_lowest_fold_tests_and_the_next_validates() -> None:
    folds = np.array([7, 3, 5, 9, 3, 5, 7, 9])
    split, notes = split_of(
        np.arange(8) % 2, groups={"patient_fold": folds}, split_by="patient_fold"
    )
    expected = {3: "test", 5: "valid", 7: "train", 9: "train"}
    assert split.tolist() == [expected[fold] for fold in folds.tolist()]
    assert notes == ["Split by patient_fold: 7, 9 train, 5 validates, 3 tests"]


@pytest.mark.parametrize(
    ("folds", "message"),
    [([1, 2, 1, 2], "needs at least 3 folds .*here has 2"), ([0.5, 1, 2, 3], "is float64")],
)
def test_folds_that_cannot_split_are_refused(folds: list[float], message: str) -> None:
    groups = {"patient_fold": np.array(folds)}
    with pytest.raises(ValueError, match=message):
        split_of(np.array([0, 1, 0, 1]), groups=groups, split_by="patient_fold")


def test_the_sources_own_split_comes_first() -> None:
    own = np.array(["train", "valid", "test"] * 4)
    groups = {"patient": np.arange(12), "patient_fold": np.arange(12)}
    split, notes = split_of(np.arange(12) % 2, split=own, groups=groups)
    assert (split == own).all()
    assert notes == []


def test_validation_images_are_taken_patient_by_patient(rng: np.random.Generator) -> None:
    patients, labels = patients_and_labels(rng)
    own = np.where(patients < "P3", "test", "train")
    split, notes = split_of(labels, split=own, groups={"patient": patients})
    assert ((split == "test") == (own == "test")).all()
    valid = set(patients[split == "valid"].tolist())
    assert valid
    assert not valid & set(patients[split == "train"].tolist())
    assert "no validation images" in notes[0]


@pytest.mark.parametrize("split_by", ["split", "patient", "patient_fold"])
def test_a_key_that_the_source_lacks_is_named(split_by: str) -> None:
    with pytest.raises(ValueError, match=f"needs '{split_by}' .*here does not have; choose 'rand"):
        split_of(np.arange(8) % 2, split_by=split_by)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="split_by='fold': choose one of split, patient_fold"):
        split_of(np.arange(8) % 2, split_by="fold")


def test_any_fold_can_test() -> None:
    folds = np.arange(300) % 5 + 1
    labels = np.arange(300) % 2
    for test, valid in ((1, 2), (3, 4), (5, 1)):
        split, notes = split_of(
            labels, groups={"patient_fold": folds}, split_by="patient_fold", test_fold=test
        )
        assert set(folds[split == "test"]) == {test}
        assert set(folds[split == "valid"]) == {valid}
        assert f"{test} tests" in notes[0]
    with pytest.raises(ValueError, match="test_fold=6: here has the folds 1, 2, 3, 4, 5"):
        split_of(labels, groups={"patient_fold": folds}, split_by="patient_fold", test_fold=6)
    own = np.array(["train", "valid", "test"] * 100)
    with pytest.raises(ValueError, match="test_fold=1: split_by='split' takes the split of here"):
        split_of(labels, split=own, split_by="split", test_fold=1)


@pytest.mark.parametrize("split_by", ["patient", "series"])
def test_dealt_folds_keep_groups_together(split_by: str, rng: np.random.Generator) -> None:
    patients, labels = patients_and_labels(rng)
    groups = {split_by: patients}
    tested = np.zeros(len(labels), dtype=int)
    for fold in range(1, 6):
        split, notes = split_of(labels, groups=groups, split_by=split_by, test_fold=fold)
        again, _ = split_of(labels, groups=groups, split_by=split_by, test_fold=fold, seed=9)
        assert (split == again).all()
        assert f"5 folds by {split_by}" in notes[0]
        for name in ("train", "valid", "test"):
            assert set(labels[split == name]) == {0, 1}
        for patient in np.unique(patients):
            assert len(set(split[patients == patient].tolist())) == 1
        tested += split == "test"
    assert (tested == 1).all()


def test_folds_are_dealt_image_by_image_without_groups() -> None:
    shares = []
    for fold in range(1, 6):
        split, _ = split_of(LABELS, split_by="random", test_fold=fold)
        shares.append([(split[label == LABELS] == "test").mean() for label in range(3)])
    np.testing.assert_allclose(shares, 0.2)
    with pytest.raises(ValueError, match="cannot be dealt into 5 folds by random"):
        split_of(np.array([0, 1] * 4), split_by="random", test_fold=1)
    with pytest.raises(ValueError, match="cannot be dealt into 5 folds by patient"):
        split_of(np.arange(20) % 2, groups={"patient": np.repeat([1, 2], 10)}, test_fold=1)
