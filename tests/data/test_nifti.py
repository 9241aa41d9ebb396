"""Folders of NIfTI: masks, BIDS, classes, patients, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.data import iter_image_batches, iter_images, load_dataset
from nnmf_cuda.data.readers import nifti, reader_of
from nnmf_cuda.data.reading import Account, ReadOptions
from tests.medical_files import save_nifti

pytest.importorskip("nibabel")

SHAPE = (10, 12, 8)


def save_case(
    folder: Path,
    name: str,
    *,
    mask: str | None = "mask",
    kinds: tuple[str, ...] = ("",),
    seed: int = 0,
    suffix: str = ".nii.gz",
) -> np.ndarray:
    """Write volumes and their mask, and return which axial slices it marks."""
    rng = np.random.default_rng(seed + sum(map(ord, name)))
    marked = np.zeros(SHAPE, np.uint8)
    marked[2:5, 3:6, 2:5] = 1 + rng.integers(0, 4)
    for kind in kinds:
        voxels = rng.integers(0, 1000, size=SHAPE).astype(np.int16)
        save_nifti(folder / f"{name}{'_' if kind else ''}{kind}{suffix}", voxels)
    if mask is not None:
        save_nifti(folder / f"{name}_{mask}{suffix}", marked)
    return marked.any(axis=(0, 1))


def skipped(account: Account) -> dict[str, str]:
    return {file.name: message for file, message in account.skipped}


def test_masks_beside_volumes_label_slices(tmp_path: Path) -> None:
    marks = [save_case(tmp_path, f"case{n}") for n in range(10)]
    assert reader_of(tmp_path) is nifti
    dataset = load_dataset(tmp_path)
    assert dataset.label_names == ("negative", "positive")
    assert dataset.images.shape == (80, 128, 128)
    np.testing.assert_array_equal(dataset.labels, np.concatenate(marks))
    assert dataset.files[9] == "case1.nii.gz[1]"
    assert set(dataset.groups["patient"].tolist()) == {f"case{n}" for n in range(10)}
    assert set(dataset.groups["series"].tolist()) == {f"case{n}.nii.gz" for n in range(10)}
    # No slices of one patient in two splits.
    for split in ("train", "valid", "test"):
        rows = dataset.split == split
        patients = dataset.groups["patient"]
        assert not set(patients[rows].tolist()) & set(patients[~rows].tolist())


@pytest.mark.parametrize(("axis", "n_slices", "first"), [("coronal", 12, 3), ("sagittal", 10, 2)])
def test_other_axes(tmp_path: Path, axis: str, n_slices: int, first: int) -> None:
    for n in range(8):
        save_case(tmp_path, f"case{n}")
    dataset = load_dataset(tmp_path, reading=ReadOptions(axis=axis))  # type: ignore[arg-type]
    assert len(dataset.images) == 8 * n_slices
    of_first = dataset.labels[:n_slices]
    assert np.flatnonzero(of_first).tolist() == [first, first + 1, first + 2]


def test_area_of_the_mask(tmp_path: Path) -> None:
    for n in range(8):
        save_case(tmp_path, f"case{n}")
    share = 9 / 120  # 3 x 3 of 10 x 12 pixels
    below = load_dataset(tmp_path, reading=ReadOptions(mask_area=share - 1e-9))
    assert below.labels.sum() == 8 * 3
    assert any("more than 0.075 of its pixels" in note for note in below.notes)
    with pytest.raises(ValueError, match="only one class"):
        load_dataset(tmp_path, reading=ReadOptions(mask_area=share))


def test_several_volumes_of_one_mask_are_one_patient(tmp_path: Path) -> None:
    for n in range(8):
        name = f"BraTS_{n:03d}"
        save_case(tmp_path / name, name, mask="seg", kinds=("t1", "flair"))
    dataset = load_dataset(tmp_path)
    assert len(dataset.images) == 8 * 2 * 8
    assert set(dataset.groups["patient"].tolist()) == {f"BraTS_{n:03d}" for n in range(8)}
    flat = tmp_path / "flat"
    for n in range(8):
        save_case(flat, f"c{n}", mask="seg", kinds=("t1", "flair"))
    records = nifti.read(flat, ReadOptions(), Account())
    assert set(records.groups["patient"].tolist()) == {f"c{n}" for n in range(8)}


@pytest.mark.parametrize(("of_images", "of_masks"), [("images", "masks"), ("imagesTr", "labelsTr")])
def test_folders_of_images_and_masks(tmp_path: Path, of_images: str, of_masks: str) -> None:
    rng = np.random.default_rng(1)
    for n in range(9):
        save_nifti(
            tmp_path / of_images / f"case_{n}_0000.nii.gz", rng.random(SHAPE).astype(np.float32)
        )
        marked = np.zeros(SHAPE, np.uint8)
        marked[..., n % 8] = 1
        save_nifti(tmp_path / of_masks / f"case_{n}.nii.gz", marked)
    records = nifti.read(tmp_path, ReadOptions(), Account())
    assert len(records.images) == 9 * 8
    expected = [k == n % 8 for n in range(9) for k in range(8)]
    np.testing.assert_array_equal(records.values == "positive", expected)
    assert set(records.groups["patient"].tolist()) == {f"case_{n}" for n in range(9)}


def test_bids(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for n in range(9):
        subject = f"sub-{n:02d}"
        for session in ("1", "2"):
            stem = f"{subject}_ses-{session}"
            anat = tmp_path / subject / f"ses-{session}" / "anat"
            save_nifti(anat / f"{stem}_T1w.nii.gz", rng.random(SHAPE).astype(np.float32))
            marked = np.zeros(SHAPE, np.uint8)
            marked[..., int(session)] = 1
            derived = tmp_path / "derivatives" / "manual" / subject / f"ses-{session}" / "anat"
            save_nifti(derived / f"{stem}_label-lesion_mask.nii.gz", marked)
            save_nifti(derived / f"{stem}_desc-brain_mask.nii.gz", np.ones(SHAPE, np.uint8))
            save_nifti(derived / f"{stem}_desc-preproc_T1w.nii.gz", np.ones(SHAPE, np.uint8))
        func = tmp_path / subject / "ses-1" / "func"
        save_nifti(func / f"{subject}_ses-1_bold.nii.gz", np.ones((*SHAPE, 2), np.int16))
    (tmp_path / "dataset_description.json").write_text("{}")
    account = Account()
    records = nifti.read(tmp_path, ReadOptions(), account)
    assert len(records.images) == 9 * 2 * 8
    assert set(records.groups["patient"].tolist()) == {f"sub-{n:02d}" for n in range(9)}
    expected = [k == session for _ in range(9) for session in (1, 2) for k in range(8)]
    np.testing.assert_array_equal(records.values == "positive", expected)
    reasons = {message for _, message in account.skipped}
    assert reasons == {
        "a mask of the brain or its tissues",
        "derived from other volumes (BIDS derivatives)",
        "BIDS data of another kind (func)",
        "no NIfTI file",
    }
    streamed = list(iter_images(tmp_path))
    assert len(streamed) == len(records.images)
    assert streamed[0].columns == {"patient": "sub-00"}


def test_bids_with_a_table_of_participants(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for n in range(10):
        path = tmp_path / f"sub-{n:02d}" / "anat" / f"sub-{n:02d}_T1w.nii.gz"
        save_nifti(path, rng.random(SHAPE).astype(np.float32))
    with pytest.raises(ValueError, match="BIDS without lesion masks and without participants"):
        load_dataset(tmp_path)
    rows = [f"sub-{n:02d}\t{40 + n}\t{'ill' if n % 2 else 'well'}" for n in range(9)]
    (tmp_path / "participants.tsv").write_text(
        "\n".join(["participant_id\tage\tdiagnosis", *rows, "sub-09\t3\tn/a"])
    )
    with pytest.raises(ValueError, match=r"no column 'label'.*--columns label=.*age, diagnosis"):
        load_dataset(tmp_path)
    dataset = load_dataset(
        tmp_path, reading=ReadOptions(columns="label=diagnosis"), split_by="random"
    )
    assert dataset.label_names == ("ill", "well")
    assert len(dataset.images) == 9 * 8
    assert set(dataset.groups["patient"].tolist()) == {f"sub-{n:02d}" for n in range(9)}
    # Masks tell slices apart, unless the column is asked for.
    mask = np.zeros(SHAPE, np.uint8)
    mask[..., :3] = 1
    for path in tmp_path.rglob("*_T1w.nii.gz"):
        save_nifti(path.with_name(path.name.replace("T1w", "T1w_mask")), mask)
    assert load_dataset(tmp_path).label_names == ("negative", "positive")
    again = load_dataset(
        tmp_path, reading=ReadOptions(columns="label=diagnosis"), split_by="random"
    )
    assert again.label_names == ("ill", "well")
    assert again.files.tolist() == dataset.files.tolist()
    assert any(note.startswith("Files: 20 .nii.gz, 1 .tsv") for note in again.notes)


def test_class_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for n in range(10):
        name = "ill" if n % 2 else "well"
        save_nifti(tmp_path / name / f"v{n}.nii.gz", rng.random(SHAPE).astype(np.float32))
    dataset = load_dataset(tmp_path)
    assert dataset.label_names == ("ill", "well")
    assert len(set(dataset.groups["patient"].tolist())) == 10
    assert any("class of its volume" in note for note in dataset.notes)
    # A patient's folder below the class joins its volumes.
    for n in range(10):
        for kind in ("t1", "t2"):
            path = tmp_path / "more" / ("ill" if n % 2 else "well") / f"p{n}" / f"{kind}.nii"
            save_nifti(path, rng.random(SHAPE).astype(np.float32))
    records = nifti.read(tmp_path / "more", ReadOptions(), Account())
    assert set(records.groups["patient"].tolist()) == {f"p{n}" for n in range(10)}


def test_split_folders(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for n in range(2):
            save_case(tmp_path / split, f"{split}{n}")
    dataset = load_dataset(tmp_path)
    assert [len(dataset.labels_of(s)) for s in ("train", "valid", "test")] == [16, 16, 16]
    assert len(set(dataset.groups["patient"].tolist())) == 6


def test_patient_and_class_from_a_pattern(tmp_path: Path) -> None:
    for n in range(8):
        save_case(tmp_path / f"s{n % 4}_{'a' if n < 4 else 'b'}", f"v{n}", mask=None)
    reading = ReadOptions(patient_from="{patient}_{label}/{name}")
    records = nifti.read(tmp_path, reading, Account())
    assert set(records.groups["patient"].tolist()) == {f"s{n}" for n in range(4)}
    assert records.names == {"a": "a", "b": "b"}


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    for n in range(8):
        save_case(tmp_path, f"case{n}")
    save_case(tmp_path, "healthy", mask=None)
    save_nifti(tmp_path / "gone_mask.nii.gz", np.ones(SHAPE, np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    account = Account()
    records = nifti.read(tmp_path, ReadOptions(), account)
    assert len(records.images) == 64
    told = skipped(account)
    assert "no mask, as other volumes have" in told["healthy.nii.gz"]
    assert told["gone_mask.nii.gz"] == "a mask without a volume"
    assert told["notes.txt"] == "no NIfTI file"
    account = Account()
    images = list(iter_images(tmp_path, account=account))
    assert len(images) == 9 * 8
    assert skipped(account)["case0_mask.nii.gz"] == "a mask"


def test_masks_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    save_nifti(tmp_path / "a.nii.gz", np.ones(SHAPE, np.uint8))
    save_nifti(tmp_path / "b_mask.nii.gz", np.ones(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="no volume belongs to the masks b_mask"):
        load_dataset(tmp_path)


def test_a_mask_of_another_shape_is_refused_or_skipped(tmp_path: Path) -> None:
    for n in range(8):
        save_case(tmp_path, f"case{n}")
    for n in range(2):
        save_nifti(tmp_path / f"case{n}_mask.nii.gz", np.ones((10, 12, 9), np.uint8))
    with pytest.raises(ValueError, match=r"case0_mask.*10 x 12 x 9 voxels.*; and 1 more volumes"):
        load_dataset(tmp_path)
    account = Account()
    records = nifti.read(tmp_path, ReadOptions(on_error="skip"), account)
    assert len(records.images) == 48
    assert set(skipped(account)) == {"case0.nii.gz", "case1.nii.gz"}


def test_unreadable_volumes_are_named_or_skipped(tmp_path: Path) -> None:
    for n in range(8):
        save_case(tmp_path, f"case{n}", suffix=".nii")
    content = (tmp_path / "case3.nii").read_bytes()
    (tmp_path / "case3.nii").write_bytes(content[:-50])
    with pytest.raises(ValueError, match=r"cannot read volume .*case3\.nii"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path, reading=ReadOptions(on_error="skip")).images) == 56
    batches = list(iter_image_batches(iter_images(tmp_path), on_error="skip"))
    assert [f.file.name for b in batches for f in b.failures] == ["case3.nii"]
    assert sum(len(batch.images) for batch in batches) == 56


def test_several_volumes_and_oblique_ones_are_noted(tmp_path: Path) -> None:
    turned = np.eye(4)
    turned[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    save_nifti(tmp_path / "a.nii.gz", np.ones((*SHAPE, 4), np.int16), turned)
    account = Account()
    assert len(list(iter_images(tmp_path / "a.nii.gz", account=account))) == 8
    assert any(
        "several volumes (4D), of which the first is read: a.nii.gz" in n for n in account.notes
    )
    assert any("1 volumes lie oblique" in note for note in account.notes)


def test_a_mask_alone_is_what_was_asked_for(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "x_mask.nii.gz", np.ones(SHAPE, np.uint8))
    assert len(list(iter_images(path))) == 8
    with pytest.raises(ValueError, match="its 1 files are masks"):
        iter_images(tmp_path)
