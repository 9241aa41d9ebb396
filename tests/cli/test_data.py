"""The command `nnmf-cuda data`, with a stand-in for Kaggle's library."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnmf_cuda.cli import main
from nnmf_cuda.data import darabi


def set_library(monkeypatch: pytest.MonkeyPatch, download: Callable[[str], str] | None) -> None:
    library = None if download is None else SimpleNamespace(dataset_download=download)
    monkeypatch.setitem(sys.modules, "kagglehub", library)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["data", *arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_checksum_is_of_the_images_of_the_records(real_data: Path) -> None:
    with np.load(real_data / "darabi.npz") as archive:
        names = [f"{s}/{f}" for s, f in zip(archive["split"], archive["file"], strict=True)]
        found = darabi.checksum(names, archive["labels"], archive["images"])
        changed = archive["images"]
        changed[1000, 5, 5] ^= 1
        assert found == darabi.CHECKSUM
        assert darabi.checksum(names, archive["labels"], changed) != found


def test_a_part_of_the_set_is_read_and_told_apart(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    inner = tmp_path / "versions" / "1"
    shutil.copytree(real_data / "darabi-sample", inner)
    with np.load(real_data / "darabi.npz") as archive:
        named = {f"{s}/{f}": row for row, (s, f) in enumerate(
            zip(archive["split"], archive["file"], strict=True))}  # fmt: skip
        files = sorted(f"{p.parent.name}/{p.name}" for p in inner.glob("*/*.jpg"))
        rows = [named[name] for name in files if name in named]
        assert len(rows) == 35
        kept = [name for name in files if name in named]
        want = darabi.checksum(kept, archive["labels"][rows], archive["images"][rows])
    handles: list[str] = []
    set_library(monkeypatch, lambda handle: handles.append(handle) or str(inner.parent))
    line = error_of(capsys, "darabi")
    assert handles == ["pkdarabi/brain-tumor-image-dataset-semantic-segmentation"]
    assert f"the checksum should be {darabi.CHECKSUM}" in line

    monkeypatch.setattr(darabi, "CHECKSUM", want)  # as if that were all
    assert main(["data", "darabi", f"--folder={inner}"]) == 0
    shown = capsys.readouterr().out
    assert want in shown
    assert "11 train, 12 valid, 12 test" in shown
    assert "CC BY 4.0" in shown
    assert f"--data '{inner}' --classes 2=Normal,1=Tumor" in shown


def test_without_the_library_both_ways_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_library(monkeypatch, None)
    line = error_of(capsys, "darabi")
    assert "pip install 'nnmf-cuda[data]'" in line
    assert "by hand: open https://www.kaggle.com/datasets/pkdarabi/" in line
    assert "--folder FOLDER" in line


def test_offline_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(handle: str) -> str:
        raise ConnectionError("Name or service\nnot known")

    set_library(monkeypatch, offline)
    line = error_of(capsys, "darabi")
    assert "cannot download pkdarabi/" in line
    assert "(Name or service not known); by hand: open https://" in line


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["other"], "there is no data set 'other'; there is: darabi"),
        (["darabi", "more"], "there is no data set 'darabi more'"),
        (["darabi", "--folder=none"], "no such folder: 'none'; by hand"),
        (["darabi", "--folder={empty}"], "has no train, valid or test folder with _annotations"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
) -> None:
    assert match in error_of(capsys, *(a.replace("{empty}", str(tmp_path)) for a in arguments))
