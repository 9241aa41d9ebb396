"""What names of DICOM files show of a patient."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from nnmf_cuda.data.readers.dicom_names import NamesNearby, masked

SECRETS = frozenset(
    {"müller^jürgen", "müller", "jürgen", "nagy^béla", "nagy", "béla", "ott^øre", "ott", "øre"}
    | {"yamada^tarou=山田^太郎", "山田", "太郎", "林"}
    | {"0019610017", "mrn-00452", "19620319", "20240317"}
)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("MÜLLER_1.dcm", "müller"),
        (unicodedata.normalize("NFD", "Müller 1.dcm"), "ller"),
        ("MUELLER-JUERGEN.dcm", "uergen"),
        ("Muller001", "muller"),
        ("JuergenMueller", "mueller"),
        ("NagyBela", "nagy"),
        ("NAGYBELA", "bela"),
        ("xnagy_bela", "bela"),
        ("IM1_Nagy.pdf", "nagy"),
        ("OTT_OERE", "oere"),
        ("山田太郎", "山"),
        ("x太郎01", "太郎"),
        ("林_1", "林"),
        ("19610017", "19610017"),
        ("pat19610017a", "19610017"),
        ("1961-0017", "0017"),
        ("MRN00452_a", "452"),
        ("1962-03-19", "1962"),
        ("19.3.1962", "1962"),
        ("03-19-1962", "1962"),
        ("190362", "190362"),
        ("1.2.840.20240317101500.7", "20240317"),
        ("T1 17.03.24", "17.03"),
    ],
)
def test_secrets_are_found_however_they_are_written(name: str, secret: str) -> None:
    assert secret not in masked(name, SECRETS).casefold()
    assert masked(name, frozenset()) == name


@pytest.mark.parametrize(
    "name",
    ["IM00017.dcm", "T1_AX", "Schotter", "benagyt", "lotto", "1962", "Ähre", "2024.dcm", "林檎"],
)
def test_other_words_and_numbers_stay(name: str) -> None:
    assert masked(name, SECRETS) == name


def test_what_stands_around_a_secret_stays() -> None:
    shown = masked("ab_Müller_7.dcm", SECRETS)
    assert shown.startswith("ab_")
    assert shown.endswith("_7.dcm")


def test_a_file_without_a_header_is_named_by_its_neighbours() -> None:
    root = Path("scans")
    near = NamesNearby(
        {root / "a" / "1": frozenset({"weiss"}), root / "b" / "2": frozenset({"braun"})}, root
    )
    assert near.masked(root / "a" / "weiss.pdf").name != "weiss.pdf"
    assert near.masked(root / "a" / "more" / "weiss.pdf").name != "weiss.pdf"
    assert near.masked(root / "a" / "braun.pdf").name == "braun.pdf"
    for name in ("weiss.txt", "braun.txt"):
        assert near.masked(root / name).name != name
