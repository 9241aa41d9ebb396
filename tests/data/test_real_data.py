"""Checks on the real sets, against what is known about them from elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnmf_cuda.data import load_dataset


def test_sample_files_equal_their_rows_in_the_archive(real_data: Path) -> None:
    """The archive was made from the same files by another program."""
    sample = load_dataset(real_data / "darabi-sample", classes="2=Normal,1=Tumor")
    archive = load_dataset(real_data / "darabi.npz")
    rows = {file: row for row, file in enumerate(archive.files.tolist())}
    at = [rows[file] for file in sample.files.tolist()]
    assert len(at) == 35
    np.testing.assert_array_equal(sample.images, archive.images[at])
    np.testing.assert_array_equal(sample.labels, archive.labels[at])
    np.testing.assert_array_equal(sample.split, archive.split[at])
    assert sample.label_names == archive.label_names == ("Normal", "Tumor")
    assert "train: 1 images without annotation are left out" in sample.notes


def test_darabi_has_the_published_counts(real_data: Path) -> None:
    dataset = load_dataset(real_data / "darabi.npz")
    counts = {
        name: np.bincount(dataset.labels_of(name)).tolist() for name in ("train", "valid", "test")
    }
    assert counts == {"train": [730, 771], "valid": [219, 210], "test": [97, 118]}


def test_darabi_by_patient_fold(real_data: Path) -> None:
    dataset = load_dataset(real_data / "darabi.npz", split_by="patient_fold")
    folds = dataset.groups["patient_fold"]
    for split, expected in (("train", {3, 4, 5}), ("valid", {2}), ("test", {1})):
        assert set(folds[dataset.split == split].tolist()) == expected
    assert np.bincount(dataset.labels_of("test")).tolist() == [197, 198]


def test_darabi_has_three_diagnoses(real_data: Path) -> None:
    dataset = load_dataset(real_data / "darabi.npz", label_key="class_labels")
    assert dataset.label_names == ("meningioma", "glioma", "pituitary")
    assert np.bincount(dataset.labels).tolist() == [215, 1090, 840]


def test_btp_is_split_by_patient(real_data: Path) -> None:
    dataset = load_dataset(real_data / "btp.npz")
    patients = dataset.groups["patient"]
    parts = [set(patients[dataset.split == name].tolist()) for name in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 11
    overall = dataset.labels.mean()
    assert abs(dataset.labels_of("train").mean() - overall) < 0.05
