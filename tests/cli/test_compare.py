"""The command `compare`, and `audit --random_labels`: what they write, print and refuse."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.cli.compare import compare_parser
from nnmf_cuda.cli.main import main
from nnmf_cuda.evaluation.compared import Compared

MODEL = """
import numpy as np


def by_light(images):
    light = images.mean((1, 2))
    return np.stack([0.3 - light, light - 0.3], 1)
"""


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Write forty images of ten patients, of which one kind is brighter."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10) % 2, 4)
    images = rng.integers(0, 100, (40, 16, 16)) + 60 * labels[:, None, None]
    path = tmp_path / "images.npz"
    np.savez(
        path, images=images.astype(np.uint8), labels=labels, patient=np.repeat(np.arange(10), 4)
    )
    return path


def test_compare_writes_what_it_finds(
    npz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "users_light.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    systems = ["--systems=nearest,constant", "--model=[users_light:by_light]"]
    command = ["compare", f"--data={npz}", *systems, "--smoke", f"--out={out}", "--device=cpu"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "compare.json: " in printed.out
    assert "users_light:by_light" in printed.out
    found = Compared.from_dict(json.loads((out / "compare.json").read_text()))
    assert [one.system for one in found.measured] == ["constant", "nearest", "users_light:by_light"]
    assert found.measured[-1].metrics["accuracy"].estimate == 1
    assert found.measured[-1].n_parameters is None
    page = (out / "compare.html").read_text()
    assert "Smoke." in page
    assert "your own" in page
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.html",
        "compare.json",
        "compare.jsonl",
    ]

    assert main(command) == 2
    assert "give --resume to go on" in capsys.readouterr().err
    before = (out / "compare.jsonl").read_bytes()
    assert main([*command, "--resume"]) == 0
    assert "finished before" in capsys.readouterr().err
    assert (out / "compare.jsonl").read_bytes() == before
    assert main([*command, "--resume", "--seed=1"]) == 2
    assert "comparison with another data, seeds" in capsys.readouterr().err
    assert main([*command, "--resume", "--overwrite"]) == 2
    assert main([*command, "--overwrite", "--seed=1"]) == 0
    capsys.readouterr()
    for refused, said in {
        "--systems=nearst": "did you mean nearest",
        "--model=[nowhere:net]": "no module nowhere",
        "--eps_255=[8,2]": "must be growing",
    }.items():
        assert main(["compare", f"--data={npz}", f"--out={tmp_path / 'no'}", refused]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_compare_names_its_own_option_where_nothing_can_be_folded(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(npz) as arrays:
        np.savez(tmp_path / "bare.npz", images=arrays["images"], labels=arrays["labels"])
    for name, more, said in (
        ("bare.npz", [], "--folds needs to know whose the images are"),
        ("images.npz", ["--split_by=series"], "cannot be folded by series; give --split_by"),
    ):
        command = ["compare", f"--data={tmp_path / name}", f"--out={tmp_path / 'no'}", "--folds"]
        assert main([*command, *more]) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert "--folds" in printed
        assert "--cross_validate" not in printed


def test_compare_says_where_trained_systems_stay_when_one_fails(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(self: object, X: object) -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr("nnmf_cuda.comparison.references.ConstantAnswer.predict_proba", no)
    out = tmp_path / "out"
    command = ["compare", f"--data={npz}", f"--out={out}", "--smoke", "--systems=constant,nearest"]
    assert main(command) == 0
    assert f"trained systems stay in {out / 'compare.work'}" in capsys.readouterr().err
    assert (out / "compare.work").is_dir()
    monkeypatch.undo()
    assert main([*command, "--resume"]) == 0
    assert "trained systems stay" not in capsys.readouterr().err
    assert not (out / "compare.work").exists()


def test_compare_lists_its_systems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("constant")
    assert "the nearest training image" in lines[1]


def test_audit_trains_on_random_labels_where_asked(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "audit.json"
    command = ["audit", f"--data={npz}", f"--json={target}"]
    assert main(command) == 0
    assert "random_labels" not in json.loads(target.read_text())
    assert main([*command, "--random_labels"]) == 0
    assert "above chance is leakage" in capsys.readouterr().out
    drawn = json.loads(target.read_text())["random_labels"]
    assert {one["system"] for one in drawn} == {"nearest neighbour", "NNMF and light CNN"}
    assert {one["chance"] for one in drawn} == {0.5}


def test_every_command_of_the_page_can_be_read() -> None:
    page = Path(__file__).parents[2] / "docs" / "comparison.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    lines = re.findall(r"^\$ nnmf-cuda compare (.*)$", page.read_text("utf-8"), flags=re.M)
    assert len(lines) >= 9
    for line in lines:
        compare_parser().parse_args(shlex.split(line, comments=True))
