"""The command `verify`: what it writes, prints, goes on with and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnmf_cuda import load_model
from nnmf_cuda.cli.main import main

WRITTEN = ("verification.json", "verification.npz", "verification.jsonl")


def test_verify_writes_what_it_finds(
    small_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["verify", f"--model={small_run[0]}", "--device=cpu", "--undefended", f"--out={out}"]
    assert main([*command, "--eps=0.03", "--seconds=5"]) == 0
    printed = capsys.readouterr().out
    assert "test split, Linf ball of 0.03: ceiling" in printed
    content = json.loads((out / "verification.json").read_text())
    saved = np.load(out / "verification.npz")
    assert content["line"] in printed
    assert content["of"] == "the undefended classifier"
    n = content["n"]
    assert content["status"] == saved["status"].tolist()
    assert content["proven_accuracy"] == (saved["status"] == "proven").mean() > 0
    assert content["ceiling"] >= content["worst_case_accuracy"] >= content["proven_accuracy"]
    # Points that break samples do so to the model as it is loaded.
    features = np.load(small_run[0] / "features.npz")
    broken = saved["status"] == "broken"
    points = torch.from_numpy(saved["counterexample"][broken]).float()
    answers = load_model(small_run[0]).classifier(points).argmax(1).numpy()
    assert (answers != features["y_test"][broken]).all()
    assert len((out / "verification.jsonl").read_text().splitlines()) == 1 + n

    before = {name: (out / name).read_bytes() for name in WRITTEN[1:]}
    assert main([*command, "--eps=0.03", "--seconds=5"]) == 2
    assert "give --resume to go on" in capsys.readouterr().err
    assert main([*command, "--eps=0.03", "--seconds=5", "--resume"]) == 0
    assert before["verification.jsonl"] == (out / "verification.jsonl").read_bytes()
    before = {name: (out / name).read_bytes() for name in WRITTEN}
    assert main([*command, "--eps=0.04", "--resume"]) == 2
    assert "record of another verification" in capsys.readouterr().err
    for refused in ("--eps=-1", "--eps=0", "--eps=0.04 --seconds=-1"):
        assert main([*command, *refused.split(), "--overwrite"]) == 2
    assert "--seconds must be >= 0" in capsys.readouterr().err
    assert before == {name: (out / name).read_bytes() for name in before}
    assert main([*command, "--eps=0.04", "--seconds=5", "--overwrite"]) == 0
    assert json.loads((out / "verification.json").read_text())["eps"] == 0.04


def test_verify_refuses_a_random_defence(
    small_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["verify", f"--model={small_run[0]}", "--device=cpu", f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert "a DefendedClassifier cannot be verified" in error
    assert "certificate of smoothing" in error
    assert not out.exists()
    assert main(["verify", f"--model={small_run[0]}", "--norm=L1"]) == 2
    assert main(["verify", f"--model={tmp_path}"]) == 2
    assert "no model here" in capsys.readouterr().err
