"""From class folders to a report, features and predictions; what is left out is said everywhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.cli.main import main
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]

MERGED = "--classes=notumor=no,glioma=tumor,meningioma=tumor,pituitary=tumor"


def save(path: Path, rng: np.random.Generator, *, tumor: bool) -> None:
    pixels = rng.integers(0, 120, (40, 40), dtype=np.uint8)
    pixels[10:20, 12:22] += 110 * np.uint8(tumor)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_four_classes_of_which_two_are_wanted(
    tmp_path: Path, rng: np.random.Generator, capsys: Printed
) -> None:
    data, out, features = tmp_path / "data", tmp_path / "run", tmp_path / "features.npz"
    for split, n in (("Training", 9), ("Testing", 3)):
        for name in ("glioma", "meningioma", "notumor", "pituitary"):
            for number in range(n):
                path = data / split / name / f"{number}.jpg"
                save(path, rng, tumor=name != "notumor")
    (data / "Training" / "glioma" / "bad.jpg").write_text("no image")
    (data / "Training" / "glioma" / "film.gif").write_text("no image")
    (data / "__MACOSX" / "no").mkdir(parents=True)
    (data / "__MACOSX" / "no" / "._x.png").write_text("no image")
    command = ["run", f"--data={data}", f"--out={out}", MERGED, *SMALL]
    assert main(command) == 2
    assert "glioma/bad.jpg" in capsys.readouterr().err
    assert main([*command, "--on_error=skip"]) == 0
    expected = (
        "Files: 49 .jpg, 1 .gif",
        "Images read: 48",
        "Left out, hidden: 1 (__MACOSX)",
        "Left out, no image by its ending .gif: 1 (film.gif)",
        "Left out, unreadable: 1 (bad.jpg)",
        "Labels: 12 no, 36 tumor; patients: unknown; splits: ",
    )
    told = capsys.readouterr().err
    report = (out / "report.html").read_text(encoding="utf-8")
    notes = "\n".join(json.loads((out / "metrics.json").read_text(encoding="utf-8"))["notes"])
    for where in (told, report, notes):
        assert [line for line in expected if line not in where] == []

    model = [f"--model={out}", "--on_error=skip"]
    assert main(["extract", str(data), *model, f"--out={features}"]) == 0
    with np.load(features) as arrays:
        assert arrays["features"].shape == (48, 4)
    assert "Left out, no image by its ending .gif: 1 (film.gif)" in capsys.readouterr().err
    assert main(["predict", str(data), *model]) == 0
    _, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert len(rows) == 48
    assert {row[1] for row in rows} <= {"no", "tumor"}


def test_folders_of_patients_end_with_the_remedy(
    tmp_path: Path, rng: np.random.Generator, capsys: Printed
) -> None:
    for patient in range(12):
        save(tmp_path / "data" / f"P{patient:02}" / "1.png", rng, tumor=False)
    assert main(["run", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "12 folders, such as 'P00', 'P01', 'P02' and 9 more, which look like patients" in error
    assert "--patient_from '{patient}/{label}/{name}'" in error
    assert not (tmp_path / "run").exists()


def test_a_rare_class_is_named_before_any_work(
    tmp_path: Path, rng: np.random.Generator, capsys: Printed
) -> None:
    for name, n in (("no", 8), ("rare", 3), ("yes", 8)):
        for number in range(n):
            save(tmp_path / "data" / name / f"{number}.png", rng, tumor=name != "no")
    command = ["run", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'run'}", *SMALL]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "class 'rare' has 1 train image of 2 needed (no 6, rare 1, yes 6)" in error
    assert main([*command, "--classes=no,rare=yes,yes"]) == 0  # the remedy that it names


@pytest.mark.parametrize("window", [["--window", "-160:240"], ["--window=-.5:7"]])
def test_a_window_may_begin_below_zero(
    window: list[str], tmp_path: Path, rng: np.random.Generator, capsys: Printed
) -> None:
    for name in ("no", "yes"):
        for number in range(4):
            save(tmp_path / name / f"{number}.png", rng, tumor=name == "yes")
    assert main(["audit", *window, f"--data={tmp_path}"]) == 0
    assert "Images read: 8" in capsys.readouterr().err
    assert main(["audit", f"--data={tmp_path}", "--window", "--seed=1"]) == 2
    assert "expected one argument" in capsys.readouterr().err
