"""Headers without pydicom: whatever is not left to pydicom is what pydicom says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data.readers import dicom_file
from nnmf_cuda.data.readers.dicom_elements import Elements, read_elements
from nnmf_cuda.data.readers.dicom_file import DicomFile, read_header
from tests.medical_files import save_dicom

pydicom = pytest.importorskip("pydicom")

FULL = {
    "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
    "IssuerOfPatientID": "Ward",
    "OtherPatientIDs": ["A1", "A2"],
    "ImagePositionPatient": [-1.5, 2.25, 1e-3],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "WindowCenter": ["40", "400"],
    "WindowWidth": ["80", "2000"],
    "VOILUTFunction": "SIGMOID",
    "RescaleSlope": "1.5",
    "RescaleIntercept": "-1024",
    "PixelPaddingValue": 63536,
    "PixelPaddingRangeLimit": 65000,
    "AcquisitionDate": "20240106",
    "AccessionNumber": "ACC-1",
}


def sequences(*, undefined: bool) -> dict[str, Any]:
    """Return elements with sequences in sequences, as most scanners write some."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    inner, outer = Dataset(), Dataset()
    inner.WindowCenter = "1"  # is none of the image's
    outer.ReferencedSOPInstanceUID = "1.2.3"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, Dataset()])
    for item in (inner, outer):
        item.is_undefined_length_sequence_item = undefined
    made = Sequence([outer, Dataset(), outer])
    return {"ReferencedImageSequence": made, "RequestAttributesSequence": Sequence([])}


def header_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DicomFile, bool]:
    """Return what pydicom says, after comparing, and whether it was asked anyway."""
    taken: list[Elements | None] = []

    def tell(*arguments: Any) -> Elements | None:
        taken.append(read_elements(*arguments))
        return taken[-1]

    with monkeypatch.context() as patch:
        patch.setattr(dicom_file, "read_elements", tell)
        fast = read_header(path)
        patch.setattr(dicom_file, "read_elements", lambda *_: None)
        slow = read_header(path)
    assert fast == slow
    return slow, taken[0] is None


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    pixels = np.random.default_rng(0).integers(0, 4096, size=(12, 10), dtype=np.uint16)
    for name, syntax in (("implicit", "1.2.840.10008.1.2"), ("explicit", "1.2.840.10008.1.2.1")):
        for undefined in (False, True):
            path = folder / f"{name}{undefined}"
            more = sequences(undefined=undefined)
            yield name, save_dicom(path, pixels, syntax=syntax, **FULL, **more)
        yield name, save_dicom(folder / f"{name}1", pixels.astype(np.int16), syntax=syntax)
        yield name, save_dicom(folder / f"{name}2", np.stack([pixels] * 2), NumberOfFrames=2)
        yield name, save_dicom(folder / f"{name}3", np.zeros((4, 4, 3), np.uint8), syntax=syntax)
        bare = {"PatientID": None, "PatientName": "", "SeriesInstanceUID": None}
        yield name, save_dicom(folder / f"{name}4", pixels, syntax=syntax, **bare)


def test_headers_are_those_of_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in files(tmp_path):
        header, left = header_of(path, monkeypatch)
        assert not left, (name, path)
    header, _ = header_of(tmp_path / "explicitTrue", monkeypatch)
    assert header.patient == "Ward/PID-4711"
    assert header.localiser
    assert header.transforms[0].windows == ((40, 80), (400, 2000))
    assert header.padding == (63536, 65000)
    assert {"a1", "a2", "erika", "20240106", "acc-1"} <= header.secrets


@pytest.mark.parametrize(
    "changes",
    [
        {"syntax": "1.2.840.10008.1.2.2"},
        {"syntax": "1.2.840.10008.1.2.1.99"},
        {"preamble": False},
        {"PatientID": "Mü", "SpecificCharacterSet": "ISO_IR 192"},
        {"PatientName": "Müller^Änne", "SpecificCharacterSet": "ISO_IR 100"},
        {"ImageComments": "x" * 9000, "PatientComments": "y" * 9000, "TextValue": "z" * 40_000},
    ],
)
def test_the_unusual_is_left_to_pydicom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    path = save_dicom(tmp_path / "a", np.ones((4, 4), np.uint16), **changes)
    header, left = header_of(path, monkeypatch)
    assert left
    if "PatientName" in changes:
        assert {"müller", "änne"} <= header.secrets


def test_damaged_headers_are_those_of_pydicom_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    whole = [path.read_bytes() for _, path in files(tmp_path)]
    path = tmp_path / "damaged"
    n_equal = n_fast = 0
    for n in range(600):
        content = bytearray(whole[n % len(whole)])
        for _ in range(1 + n % 3):
            at = int(rng.integers(132, len(content) - 200))
            if n % 4 == 3:
                del content[at : at + int(rng.integers(1, 9))]
            else:
                content[at] = int(rng.integers(256))
        path.write_bytes(content)
        try:
            _, left = header_of(path, monkeypatch)
        except ValueError:
            continue
        n_equal += 1
        n_fast += not left
    assert n_equal > 200
    assert n_fast > 100
