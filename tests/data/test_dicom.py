"""Folders of DICOM: patients, series, the order of slices, classes, and what is left out."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data import iter_image_batches, iter_images, load_dataset
from nnmf_cuda.data.readers import dicom, reader_of
from nnmf_cuda.data.reading import Account, ReadOptions
from tests.medical_files import save_dicom

pytest.importorskip("pydicom")

SHAPE = (16, 16)


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flat(value: int) -> np.ndarray:
    return np.full(SHAPE, value, dtype=np.uint16)


def save_series(
    folder: Path,
    *,
    patient: str = "PID-4711",
    series: str = "1.2.3.1",
    n_slices: int = 4,
    suffix: str = "",
    **elements: Any,
) -> None:
    """Write slices whose files are named against their order in the patient."""
    rng = np.random.default_rng(sum(map(ord, patient + series)))
    for n in range(n_slices):
        pixels = rng.integers(0, 4096, size=SHAPE, dtype=np.uint16)
        pixels[0, 0] = n
        save_dicom(
            folder / f"IM{n_slices - n:03d}{suffix}",
            pixels,
            **{
                "PatientID": patient,
                "SeriesInstanceUID": series,
                "StudyInstanceUID": f"2.{series}",
                "InstanceNumber": n_slices - n,
                "ImagePositionPatient": [0, 0, -30 + 3 * n],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            }
            | elements,
        )


def save_classes(root: Path, n_patients: int = 10) -> None:
    """Write two classes; every second file without a suffix, every third patient MONOCHROME1."""
    for n in range(n_patients):
        save_series(
            root / ("tumour" if n % 2 else "normal") / f"p{n}",
            patient=f"PID-{n:04d}",
            series=f"1.2.{n}",
            suffix=".dcm" if n % 4 < 2 else "",
            PhotometricInterpretation="MONOCHROME1" if n % 3 == 0 else "MONOCHROME2",
        )


def test_a_data_set_of_class_folders(tmp_path: Path) -> None:
    save_classes(tmp_path)
    assert reader_of(tmp_path) is dicom
    dataset = load_dataset(tmp_path)
    assert dataset.label_names == ("normal", "tumour")
    assert dataset.images.shape == (40, 128, 128)
    assert len(set(dataset.groups["patient"].tolist())) == 10
    assert set(dataset.groups["patient"].tolist()) == {hashed(f"PID-{n:04d}") for n in range(10)}
    assert len(set(dataset.groups["series"].tolist())) == 10
    for split in ("train", "valid", "test"):
        others = dataset.groups["patient"][dataset.split != split]
        assert not set(dataset.groups["patient"][dataset.split == split]) & set(others)


def test_slices_come_in_the_order_of_their_positions(tmp_path: Path) -> None:
    save_series(tmp_path)
    names = [image.name.name for image in iter_images(tmp_path)]
    assert names == ["IM004", "IM003", "IM002", "IM001"]
    # Without positions the instance number counts.
    for file in tmp_path.iterdir():
        file.unlink()
    save_series(tmp_path, ImagePositionPatient=None)
    assert [image.name.name for image in iter_images(tmp_path)] == sorted(names)


def test_positions_are_along_the_normal(tmp_path: Path) -> None:
    # Sagittal: the normal of (posterior, down) runs to the patient's right, -x in DICOM.
    for n, x in enumerate((5.0, -5.0, 0.0)):
        save_dicom(
            tmp_path / f"{n}",
            flat(n),
            ImagePositionPatient=[x, 0, 0],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        )
    assert [image.name.name for image in iter_images(tmp_path)] == ["0", "2", "1"]


def test_mixed_series_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    save_series(tmp_path, series="1.2.1", suffix=".a")
    save_series(tmp_path, series="1.2.2", suffix=".b")
    images = list(iter_images(tmp_path))
    assert [image.name.suffix for image in images] == [".a"] * 4 + [".b"] * 4
    assert [image.columns["series"] for image in images] == [hashed("1.2.1")] * 4 + [
        hashed("1.2.2")
    ] * 4


def test_percentiles_are_of_the_series(tmp_path: Path) -> None:
    for n, value in enumerate((100, 200, 300)):
        save_dicom(tmp_path / f"{n}", flat(value), InstanceNumber=n)
    save_dicom(tmp_path / "other", flat(9000), SeriesInstanceUID="1.2.9")
    (batch,) = iter_image_batches(iter_images(tmp_path, reading=ReadOptions(window="p0:p100")))
    np.testing.assert_allclose(batch.images.mean(axis=(1, 2)), [0, 0.5, 1, 0], atol=1e-6)


def test_localisers_and_slices_across_are_left_out_and_said(tmp_path: Path) -> None:
    save_series(tmp_path)
    axial, coronal = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
    save_dicom(tmp_path / "loc", flat(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save_dicom(
        tmp_path / "across",
        flat(1),
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=coronal,
    )
    account = Account()
    names = [i.name.name for i in iter_images(tmp_path, account=account)]
    assert "loc" not in names
    assert "across" not in names
    assert len(names) == 4
    reasons = {file.name: message for file, message in account.skipped}
    assert reasons == {"loc": "localiser", "across": "of another orientation than its series"}
    # Alone, a localiser is what was asked for.
    assert len(list(iter_images(tmp_path / "loc"))) == 1
    # As many slices of each orientation (a scout in three planes, radial slices): all are kept.
    for n, orientation in enumerate((axial, coronal)):
        save_dicom(
            tmp_path / "three" / f"{n}",
            flat(1),
            SeriesInstanceUID="1.2.7",
            ImagePositionPatient=[0, 0, 0],
            ImageOrientationPatient=orientation,
        )
    assert len(list(iter_images(tmp_path / "three"))) == 2


def test_what_is_no_image_is_counted(tmp_path: Path) -> None:
    save_series(tmp_path / "a")
    save_dicom(tmp_path / "report", flat(1), Modality="SR")
    save_dicom(tmp_path / "DICOMDIR", flat(1), SOPClassUID="1.2.840.10008.1.3.10")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._a").write_text("x")
    account = Account()
    assert len(list(iter_images(tmp_path, account=account))) == 4
    reasons = {file.name: message for file, message in account.skipped}
    assert reasons == {
        "report": "no image (SR)",
        "DICOMDIR": "a directory of other files (DICOMDIR)",
        "readme.txt": "no DICOM file",
        "__MACOSX": "hidden",
    }
    assert account.by_ending == {"no ending": 6, ".txt": 1}
    # A DICOMDIR stands for the folder that it lists.
    for n in range(70):
        (tmp_path / "Preview").mkdir(exist_ok=True)
        (tmp_path / "Preview" / f"{n}.png").touch()
    assert reader_of(tmp_path) is dicom
    shutil.rmtree(tmp_path / "Preview")
    listed = Account()
    assert len(list(iter_images(tmp_path / "DICOMDIR", account=listed))) == 4
    assert listed.by_ending == account.by_ending


def test_a_source_without_images_says_why(tmp_path: Path) -> None:
    save_dicom(tmp_path / "report", flat(1), Modality="SR")
    with pytest.raises(ValueError, match=r"no DICOM images .*1 no image \(SR\)"):
        iter_images(tmp_path)
    with pytest.raises(ValueError, match="no DICOM images"):
        load_dataset(tmp_path)


def test_no_name_date_or_id_of_a_patient_is_shown(tmp_path: Path) -> None:
    for n in range(10):
        save_series(
            tmp_path / ("yes" if n % 2 else "no") / f"MUSTERMANN_ERIKA_19640812 PID-{n:04d}",
            patient=f"PID-{n:04d}",
            series=f"1.2.20240105.{n}",
            suffix=f"_Mustermann^Erika_PID-{n:04d}_20240105.dcm",
        )
    dataset = load_dataset(tmp_path)
    shown = " ".join(
        [*dataset.files, *dataset.notes, *dataset.groups["patient"], *dataset.groups["series"]]
    )
    account = Account()
    for image in iter_images(tmp_path, account=account):
        shown += f" {image.name.relative_to(tmp_path)} {dict(image.columns)}"
    shown += " ".join(account.lines())
    for secret in ("mustermann", "erika", "pid-", "19640812", "20240105"):
        assert secret not in shown.casefold(), secret
    assert len(set(dataset.files)) == 40
    assert all(file.split("/")[0] in ("yes", "no") for file in dataset.files)
    assert any("SHA-256" in note for note in dataset.notes)
    as_they_are = load_dataset(tmp_path, reading=ReadOptions(keep_ids=True))
    assert "PID-0003" in as_they_are.groups["patient"]
    assert any("MUSTERMANN" in file for file in as_they_are.files)


def test_names_of_whatever_lies_beside_dicom_files_are_hashed_too(tmp_path: Path) -> None:
    folder = tmp_path / "Müller Jürgen" / "1964-08-12"
    who = {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100"}
    save_series(folder, suffix="_MuellerJuergen.dcm", **who)
    save_dicom(folder / "Mueller_loc", flat(1), ImageType=["ORIGINAL", "LOCALIZER"], **who)
    whole = save_dicom(folder / "bad_Mueller", flat(1), **who).read_bytes()
    (folder / "bad_Mueller").write_bytes(whole[:-9])
    for name in ("Befund_Mueller.pdf", ".Mueller"):
        (folder / name).touch()

    for source in (tmp_path, folder, *folder.glob("*Juergen.dcm")):
        account = Account()
        (batch,) = iter_image_batches(iter_images(source, account=account), on_error="skip")
        names = [Path(name).relative_to(tmp_path) for name in batch.files]
        shown = " ".join(map(str, [*names, *batch.failures, *account.lines(), account.skipped]))
        shown = shown.replace(str(tmp_path), "").casefold()
        for secret in ("müller", "jürgen", "mueller", "juergen", "1964"):
            assert secret not in shown, secret
    # What is reached twice is given once, though its name is another.
    twice = list(iter_images([tmp_path, folder, next(folder.glob("*Juergen.dcm"))]))
    assert len(twice) == 5
    for wrong in (None, "{label}/{patient}/x/y"):
        (folder / "bad_Mueller").unlink(missing_ok=True)
        with pytest.raises(ValueError, match="no class folder|does not fit") as caught:
            load_dataset(folder, reading=ReadOptions(patient_from=wrong))
        assert "uergen" not in str(caught.value).replace(str(tmp_path), "").split(": ", 1)[-1]
    with pytest.raises(ValueError, match="cut short.*--keep_ids shows its whole name"):
        twice[0].read(SHAPE)  # type: ignore[union-attr]


def test_errors_of_pixels_show_no_name_either(tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate

    rle = {"syntax": "1.2.840.10008.1.2.5", "PixelData": encapsulate([b"no RLE"])}
    save_dicom(tmp_path / "Mustermann" / "a", flat(1), **rle)
    (image,) = iter_images(tmp_path)
    with pytest.raises(ValueError, match="cannot read DICOM file") as caught:
        image.read(SHAPE)
    assert "Mustermann" not in str(caught.value)


def test_missing_ids_give_way_to_studies(tmp_path: Path) -> None:
    for n in range(6):
        save_series(
            tmp_path / ("yes" if n % 2 else "no") / f"{n}",
            patient="" if n < 3 else f"P{n}",
            series=f"1.{n}",
        )
    dataset = load_dataset(tmp_path, split_by="random")
    assert len(set(dataset.groups["patient"].tolist())) == 6
    assert any("12 DICOM images have no PatientID; their study" in n for n in dataset.notes)


@pytest.mark.parametrize("name", ["", "ANONYMOUS"])
def test_one_id_for_everybody_gives_way_to_studies(tmp_path: Path, name: str) -> None:
    for n in range(10):
        save_series(tmp_path / ("yes" if n % 2 else "no") / f"{n}", patient=name, series=f"1.{n}")
    dataset = load_dataset(tmp_path)
    assert len(set(dataset.groups["patient"].tolist())) == 10
    told = "no PatientID" if not name else "one PatientID"
    assert any(told in note and "studies are taken" in note for note in dataset.notes)


def test_split_folders(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val", "test")):
        for m, label in enumerate(("no", "yes")):
            save_series(tmp_path / split / label, patient=f"{n}.{m}", series=f"1.{n}.{m}")
    dataset = load_dataset(tmp_path)
    assert [len(dataset.labels_of(split)) for split in ("train", "valid", "test")] == [8, 8, 8]


def test_split_folders_beside_others_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "weird"):
        save_series(tmp_path / folder / "yes")
    with pytest.raises(ValueError, match="mixes split folders and others, e.g. 'weird'"):
        load_dataset(tmp_path)


def test_patient_folders_are_no_classes(tmp_path: Path) -> None:
    for n in range(5):
        save_series(tmp_path / f"p{n}", patient=f"PID-{n}", series=f"1.{n}")
    with pytest.raises(ValueError, match=r"its 5 folders holds one patient.*\{label\}.*CSV"):
        load_dataset(tmp_path)
    dataset = load_dataset(
        tmp_path, reading=ReadOptions(patient_from="{label}/{name}"), split_by="random"
    )
    assert dataset.n_classes == 5


def test_loose_files_have_no_class(tmp_path: Path) -> None:
    save_series(tmp_path)
    with pytest.raises(ValueError, match=r"'IM001'.* lie in no class folder.*CSV"):
        load_dataset(tmp_path)


def test_patient_and_class_from_a_pattern(tmp_path: Path) -> None:
    for n in range(10):
        save_series(tmp_path / f"s{n}_{'ill' if n % 2 else 'well'}", patient="x", series=f"1.{n}")
    reading = ReadOptions(patient_from="{patient}_{label}/{name}", keep_ids=True)
    dataset = load_dataset(tmp_path, reading=reading)
    assert dataset.label_names == ("ill", "well")
    assert set(dataset.groups["patient"].tolist()) == {f"s{n}" for n in range(10)}


def test_unreadable_files_are_named_or_skipped(tmp_path: Path) -> None:
    save_classes(tmp_path)
    for n in (1, 2):
        whole = save_dicom(tmp_path / "normal" / f"bad{n}.dcm", flat(1)).read_bytes()
        (tmp_path / "normal" / f"bad{n}.dcm").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"bad1\.dcm.*cut short.*; and 1 more file"):
        load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, reading=ReadOptions(on_error="skip"))
    assert len(dataset.images) == 40
    batches = list(iter_image_batches(iter_images(tmp_path), on_error="skip"))
    assert {f.file.name for b in batches for f in b.failures} == {"bad1.dcm", "bad2.dcm"}
    assert sum(len(batch.images) for batch in batches) == 40


def test_several_windows_are_said(tmp_path: Path) -> None:
    save_series(tmp_path, WindowCenter=["40", "400"], WindowWidth=["80", "2000"])
    account = Account()
    list(iter_images(tmp_path, account=account))
    assert any("4 DICOM files have several windows; the first" in n for n in account.notes)


def test_frames_of_one_file_are_images(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 4096, size=(3, *SHAPE), dtype=np.uint16)
    path = save_dicom(tmp_path / "cine.dcm", pixels, NumberOfFrames=3)
    names = [image.name for image in iter_images(path)]
    assert names == [tmp_path / f"cine.dcm[{n}]" for n in range(3)]


def test_a_folder_of_pictures_with_one_dicom_file_is_none_of_dicom(tmp_path: Path) -> None:
    from PIL import Image

    save_dicom(tmp_path / "a.dcm", flat(1))
    for n in range(3):
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / f"{n}.png")
    assert not dicom.recognises(tmp_path)
    assert not dicom.recognises(tmp_path / "0.png")
    assert not dicom.recognises(tmp_path / "missing")


def test_pipes_are_left_out(tmp_path: Path) -> None:
    import os

    save_series(tmp_path)
    os.mkfifo(tmp_path / "pipe.dcm")
    account = Account()
    assert len(list(iter_images(tmp_path, account=account))) == 4
    assert [file.name for file, _ in account.skipped] == ["pipe.dcm"]


def test_a_link_that_leads_nowhere_is_unreadable(tmp_path: Path) -> None:
    save_series(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (batch,) = iter_image_batches(iter_images(tmp_path), on_error="skip")
    assert len(batch.images) == 4
    assert [failure.file.name for failure in batch.failures] == ["link"]


def test_many_files_by_name_say_a_thing_once(tmp_path: Path) -> None:
    save_series(tmp_path)
    account = Account()
    assert len(list(iter_images(sorted(tmp_path.iterdir()), account=account))) == 4
    assert len(account.notes) == len(set(account.notes)) > 0
