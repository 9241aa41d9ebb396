"""The leakage audit finds what is planted, and agrees with independent oracles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from nnmf_cuda.cli.main import main
from nnmf_cuda.data import ImageDataset, audit_dataset, load_dataset
from nnmf_cuda.data.leakage import LeakageAudit, Neighbours, block_means, perceptual_hashes
from nnmf_cuda.data.phantom import phantom


def make(n: int = 60, side: tuple[int, int] = (40, 36), seed: int = 0, **groups) -> ImageDataset:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 256, (n, *side), dtype=np.uint8)
    split = np.repeat(["train", "valid", "test"], [n // 2, n // 4, n - n // 2 - n // 4])
    files = np.array([f"{i}.png" for i in range(n)])
    return ImageDataset(images, labels, ("a", "b"), split, groups, files, "here")


def test_unrelated_images_raise_no_alarm() -> None:
    audit = audit_dataset(make())
    assert audit.duplicates == 0
    assert [found.near_share for found in audit.splits.values()] == [0, 0]
    assert all(found.identical == 0 for found in audit.splits.values())
    assert audit.counts["train"] == {"a": 15, "b": 15}


def test_planted_copies_are_found() -> None:
    dataset = make()
    test = np.flatnonzero(dataset.split == "test")
    dataset.images[test[0]] = dataset.images[3]  # an equal one
    noisy = dataset.images[4].astype(int) + np.random.default_rng(1).integers(-4, 5, (40, 36))
    dataset.images[test[1]] = np.clip(noisy, 0, 255)  # a near one
    audit = audit_dataset(dataset)
    found = audit.splits["test"]
    assert found.near_share == pytest.approx(2 / len(test))
    assert found.identical == 1
    assert found.same_hash >= 2
    assert audit.splits["valid"].near_share == 0
    assert audit.duplicates == 2
    pairs = {(a, b) for _, a, _, b in audit.pairs[:2]}
    assert pairs == {(f"{test[0]}.png", "3.png"), (f"{test[1]}.png", "4.png")}
    assert len(audit.warnings()) == 1
    assert audit.warnings()[0].startswith("Leakage: ")
    assert "of test correlate above 0.95" in audit.warnings()[0]


def part(**changes) -> Neighbours:
    figures = {"n": 400, "near_share": 0.0, "nearest_accuracy": 0.9, "majority_accuracy": 0.5}
    return Neighbours(**figures | {"identical": 0, "same_hash": 0} | changes)


def warning(**changes) -> str:
    found = part(**changes)
    audit = LeakageAudit(
        {"test": found}, {}, {}, duplicates=0, pairs=[], resolution=32, threshold=0.95
    )
    return "\n".join(audit.warnings())


def test_memory_alone_is_no_leakage() -> None:
    text = warning()
    assert "eakage" not in text
    assert "names 90.0% of test rightly (constant answer 50.0%)" in text
    assert text.endswith("the task is easy, or the split asks for memory.")
    apart = warning(parted_by="patient")
    assert "eakage" not in apart
    assert apart.endswith("but no patient stands on both sides: the task is that easy.")


@pytest.mark.parametrize("changes", [{"near_share": 0.2}, {"identical": 80}])
def test_leakage_is_claimed_unless_groups_part_the_sides(changes) -> None:
    assert warning(**changes).startswith("Leakage: ")
    apart = warning(**changes, parted_by="patient_fold")
    assert "eakage" not in apart
    assert "but no patient_fold stands on both sides" in apart


def test_few_images_raise_no_alarm() -> None:
    assert warning(near_share=0.015, nearest_accuracy=0.5) == ""  # 6 of 400: Wilson from 0.7 %
    assert warning(n=8, nearest_accuracy=7 / 8) == ""
    assert warning(n=80, nearest_accuracy=70 / 80) != ""


def test_constant_answer_is_that_of_the_part_itself() -> None:
    dataset = make()
    dataset.labels[dataset.split == "test"] = 1
    dataset.labels[np.flatnonzero(dataset.split == "test")[:5]] = 0
    dataset.labels[dataset.split == "train"] = 0
    dataset.labels[0] = 1
    assert audit_dataset(dataset).splits["test"].majority_accuracy == pytest.approx(10 / 15)


def test_groups_that_part_the_sides_are_found() -> None:
    fold = np.repeat([1, 2, 3, 4], 15)  # train is 1 and 2
    shared = np.arange(60) % 7

    def parted_by(**groups) -> str | None:
        return audit_dataset(make(**groups)).splits["test"].parted_by

    assert parted_by() is None
    assert parted_by(patient_fold=fold, series=shared) == "patient_fold"
    assert parted_by(patient_fold=fold, patient=shared) is None  # patients are known, and shared
    assert parted_by(patient_fold=shared, series=np.arange(60)) == "series"
    drawn = audit_dataset(phantom((20, 10, 10), image_shape=(32, 32))).splits["test"]
    assert drawn.parted_by == "drawn image"


@pytest.mark.parametrize("resolution", [2, 7, 36])
def test_nearest_neighbour_is_scikit_learns(resolution: int) -> None:
    dataset = make(seed=3)
    means = block_means(dataset.images, resolution).reshape(60, -1)
    audit = audit_dataset(dataset, resolution=resolution)
    train = dataset.split == "train"
    oracle = KNeighborsClassifier(1, metric="correlation", algorithm="brute")
    oracle.fit(means[train], dataset.labels[train])
    for name, found in audit.splits.items():
        rows = dataset.split == name
        score = oracle.score(means[rows], dataset.labels[rows])
        assert found.nearest_accuracy == pytest.approx(score)
        highest = np.corrcoef(means)[rows][:, train].max(1)
        best = sorted((r for r, _, split, _ in audit.pairs if split == name), reverse=True)
        np.testing.assert_allclose(best, np.sort(highest)[::-1][: len(best)], atol=1e-12)


def test_block_means_of_an_odd_size() -> None:
    images = np.random.default_rng(0).random((2, 7, 5))
    means = block_means(images, 3)
    assert means[1, 1, 2] == pytest.approx(images[1, 2:4, 3:5].mean())
    assert means[0, 2, 0] == pytest.approx(images[0, 4:7, 0:1].mean())


def test_hashes_forgive_brightness_but_not_content() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.random((20, 8, 8)).repeat(8, 1).repeat(8, 2) * 200
    hashes = perceptual_hashes(smooth)
    brighter = perceptual_hashes(smooth * 1.2 + 5)
    assert (hashes != brighter).sum(1).max() == 0
    others = (hashes[:, None] != hashes[None]).sum(2)
    assert others[~np.eye(20, dtype=bool)].min() > 4


def test_images_of_one_gray_correlate_with_nothing() -> None:
    dataset = make()
    dataset.images[:5] = 100
    dataset.images[-1] = 100
    audit = audit_dataset(dataset)
    assert audit.splits["test"].near_share == 0
    assert audit.splits["test"].identical == 1
    assert "nan" not in audit.text()


def test_folds_are_compared_with_each_other() -> None:
    dataset = make(patient_fold=np.repeat([1, 2, 3], 20))
    dataset.images[0] = dataset.images[59]
    audit = audit_dataset(dataset)
    shares = {name: found.near_share for name, found in audit.folds.items()}
    assert shares == pytest.approx({"1": 1 / 20, "2": 0, "3": 1 / 20})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"resolution": 37}, "smaller side, 36"),
        ({"resolution": 1}, "resolution must be at least 2, got 1"),
        ({"threshold": 0.0}, "threshold must be"),
    ],
)
def test_misuse_is_named(option, message) -> None:
    with pytest.raises(ValueError, match=message):
        audit_dataset(make(), **option)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    assert main(["audit", f"--json={path}", "--resolution=16"]) == 0
    printed = capsys.readouterr().out
    assert "Correlation of 16x16 block means" in printed
    assert "1-NN: rightly named by the nearest image" in printed
    assert "eakage" not in printed
    found = json.loads(path.read_text())
    assert set(found["splits"]) == {"valid", "test"}


def test_command_says_what_is_wrong_before_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"--data={tmp_path / 'none.npz'}"
    for option, message in (
        (f"--json={tmp_path / 'none' / 'a.json'}", "give a file in a folder that exists"),
        (f"--json={tmp_path}", "give a file in a folder that exists"),
        ("--resolution=1", "resolution must be at least 2"),
    ):
        assert main(["audit", data, option]) == 2
        assert message in capsys.readouterr().err


def test_published_split_leaks_and_patient_folds_do_not(real_data: Path) -> None:
    audit = audit_dataset(load_dataset(real_data / "darabi.npz"))
    assert audit.splits["test"].near_share == pytest.approx(0.237, abs=0.0005)
    assert audit.splits["valid"].near_share == pytest.approx(0.296, abs=0.0005)
    assert audit.splits["test"].nearest_accuracy == pytest.approx(0.949, abs=0.0005)
    assert audit.splits["valid"].nearest_accuracy == pytest.approx(0.970, abs=0.0005)
    for found in audit.folds.values():
        assert found.near_share <= 0.02
        assert 0.835 <= found.nearest_accuracy <= 0.925
    assert np.mean([found.majority_accuracy for found in audit.folds.values()]) == pytest.approx(
        0.551, abs=0.0005
    )
    assert [text[:8] for text in audit.warnings()] == ["Leakage:"] * 2
    by_fold = audit_dataset(load_dataset(real_data / "darabi.npz", split_by="patient_fold"))
    assert by_fold.splits["test"].parted_by == "patient_fold"
    assert "eakage" not in str(by_fold.warnings())
