"""dataset.json of the medical decathlon, MONAI and nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data import folds_by, iter_images, load_dataset
from nnmf_cuda.data.readers import decathlon, reader_of
from nnmf_cuda.data.reading import Account, ReadOptions
from tests.medical_files import save_nifti

pytest.importorskip("nibabel")

SHAPE = (10, 12, 8)


def save_case(root: Path, image: str, mask: str | None, n: int) -> None:
    rng = np.random.default_rng(n)
    save_nifti(root / image, rng.integers(0, 1000, size=SHAPE).astype(np.int16))
    if mask is not None:
        marked = np.zeros(SHAPE, np.uint8)
        marked[..., n % 8] = 1
        save_nifti(root / mask, marked)


def save_list(root: Path, **content: Any) -> Path:
    path = root / "dataset.json"
    path.write_text(json.dumps(content))
    return path


def expected(n_cases: int) -> list[bool]:
    return [k == n % 8 for n in range(n_cases) for k in range(8)]


@pytest.mark.parametrize("channel", ["", "_0000"])  # the decathlon, and nnU-Net 1
def test_decathlon(tmp_path: Path, channel: str) -> None:
    training = []
    for n in range(9):
        save_case(tmp_path, f"imagesTr/a_{n}{channel}.nii.gz", f"labelsTr/a_{n}.nii.gz", n)
        training.append({"image": f"./imagesTr/a_{n}.nii.gz", "label": f"./labelsTr/a_{n}.nii.gz"})
    save_case(tmp_path, "imagesTs/b.nii.gz", None, 1)
    save_list(
        tmp_path,
        modality={"0": "FLAIR", "1": "T1w"},
        labels={"0": "background", "1": "tumour"},
        training=training,
        test=["./imagesTs/b.nii.gz"],
    )
    assert reader_of(tmp_path) is reader_of(tmp_path / "dataset.json") is decathlon
    dataset = load_dataset(tmp_path)
    assert dataset.label_names == ("negative", "positive")
    np.testing.assert_array_equal(dataset.labels, expected(9))
    assert set(dataset.groups["patient"].tolist()) == {f"a_{n}" for n in range(9)}
    assert dataset.files[0] == f"imagesTr/a_0{channel}.nii.gz[0]"
    assert any("Of 2 channels (FLAIR, T1w) the first is read" in note for note in dataset.notes)
    assert len(list(iter_images(tmp_path))) == 10 * 8


def test_nnunet_2(tmp_path: Path) -> None:
    for n in range(9):
        save_case(tmp_path, f"imagesTr/c_{n}_0000.nii.gz", f"labelsTr/c_{n}.nii.gz", n)
        save_case(tmp_path, f"imagesTr/c_{n}_0001.nii.gz", None, n + 50)
    for n in range(2):
        save_case(tmp_path, f"imagesTs/t_{n}_0000.nii.gz", f"labelsTs/t_{n}.nii.gz", n)
    save_list(
        tmp_path,
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "tumour": 1},
        numTraining=9,
        file_ending=".nii.gz",
    )
    dataset = load_dataset(tmp_path)
    assert len(dataset.images) == 11 * 8
    assert len(dataset.labels_of("test")) == 2 * 8
    patients = dataset.groups["patient"][dataset.split == "test"]
    assert set(patients.tolist()) == {"t_0", "t_1"}
    assert len(list(iter_images(tmp_path))) == 11 * 8


def test_classes_and_folds_of_monai(tmp_path: Path) -> None:
    training = []
    for n in range(10):
        save_case(tmp_path, f"v{n}.nii", None, n)
        training.append({"image": f"v{n}.nii", "label": n % 2, "fold": n % 5})
    path = save_list(tmp_path, labels={"0": "well", "1": "ill"}, training=training)
    renamed = path.rename(tmp_path / "list.json")
    dataset = load_dataset(renamed, split_by="patient_fold", test_fold="2")
    assert dataset.label_names == ("well", "ill")
    assert len(dataset.labels_of("test")) == 2 * 8
    assert folds_by(renamed)["patient_fold"] == ["0", "1", "2", "3", "4"]


def test_splits_of_the_list(tmp_path: Path) -> None:
    sections: dict[str, list[dict[str, str]]] = {}
    for n, section in enumerate(("training", "validation", "test")):
        save_case(tmp_path, f"{n}.nii.gz", f"{n}_m.nii.gz", n)
        sections[section] = [{"image": f"{n}.nii.gz", "label": f"{n}_m.nii.gz"}]
    save_list(tmp_path, **sections)
    dataset = load_dataset(tmp_path)
    assert [len(dataset.labels_of(s)) for s in ("train", "valid", "test")] == [8, 8, 8]
    save_list(tmp_path, **{k: v for k, v in sections.items() if k != "test"})
    records = decathlon.read(tmp_path, ReadOptions(), Account())
    assert records.split is None
    assert any("those for validation are divided anew" in note for note in records.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read .*dataset.json"),
        ("[1]", "is no list of cases: expected 'training'"),
        ('{"training": [3]}', "3 is no case"),
        ('{"training": [{"label": "a.nii"}]}', "names no image"),
        ('{"training": []}', "lists no case"),
        ('{"training": [{"image": "../../x.nii"}]}', "'../../x.nii' lies outside of its folder"),
        ('{"training": [{"image": "/etc/x.nii"}]}', "lies outside of its folder"),
        ('{"training": [{"image": "a.txt"}]}', "'a.txt' is no .nii or .nii.gz"),
        ('{"training": [{"image": "a.nii", "label": {}}]}', "neither a mask nor a class"),
        ('{"training": ["a.nii", "b.nii"]}', "lists 2 files that are not there: a.nii, b.nii"),
        ('{"file_ending": ".png"}', "its images are .png, no NIfTI; name the folders"),
        ('{"file_ending": ".nii.gz"}', "there is no imagesTr/CASE_0000.nii.gz beside it"),
        ("[" * 100_000, "cannot read .*dataset.json"),
    ],
)
def test_broken_lists(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_dataset(path)
    with pytest.raises(ValueError, match=message):
        iter_images(path)


def test_another_dataset_json_is_none_of_a_folder(tmp_path: Path) -> None:
    assert not decathlon.recognises(tmp_path)
    (tmp_path / "dataset.json").write_text('{"name": "pictures", "licence": "CC0"}')
    assert not decathlon.recognises(tmp_path)


def test_unlabelled_lists(tmp_path: Path) -> None:
    save_case(tmp_path, "a.nii.gz", "m.nii.gz", 1)
    save_list(tmp_path, training=["a.nii.gz"])
    with pytest.raises(ValueError, match="no case has a label"):
        load_dataset(tmp_path)
    assert len(list(iter_images(tmp_path))) == 8
    mixed = [{"image": "a.nii.gz", "label": "m.nii.gz"}, {"image": "a.nii.gz", "label": 1}]
    save_list(tmp_path, training=mixed)
    with pytest.raises(ValueError, match="some labels are masks and others classes"):
        load_dataset(tmp_path)


def test_missing_files_are_skipped_where_told(tmp_path: Path) -> None:
    training = []
    for n in range(9):
        if n != 4:
            save_case(tmp_path, f"{n}.nii.gz", f"{n}_m.nii.gz", n)
        training.append({"image": f"{n}.nii.gz", "label": f"{n}_m.nii.gz"})
    save_list(tmp_path, training=training)
    with pytest.raises(ValueError, match=r"lists 2 files that are not there: 4\.nii\.gz"):
        load_dataset(tmp_path)
    account = Account()
    records = decathlon.read(tmp_path, ReadOptions(on_error="skip"), account)
    assert len(records.images) == 64
    assert [file.name for file, _ in account.skipped] == ["4.nii.gz"]
