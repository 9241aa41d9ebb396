"""Errors of the command line: exit code 2 and one line, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nnmf_cuda.cli.main import main
from nnmf_cuda.ops import OPS
from tests.helpers import DEVICES


def make(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def error_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Run a command that must fail; returns its one line."""
    assert main(list(command)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("nnmf-cuda: error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 128, 128), dtype=np.uint8)
LABELS = np.arange(12) % 2
SPLIT = np.array(["train"] * 8 + ["valid"] * 2 + ["test"] * 2)
NAN = np.where(np.arange(12 * 128 * 128).reshape(12, 128, 128) == 5, np.nan, 0.5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES - 128.0, "labels": LABELS}, "images"),
        ({"images": NAN, "labels": LABELS}, "NaN"),
        ({"images": IMAGES / 0.5, "labels": LABELS}, "images"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images"),
        ({"images": IMAGES, "labels": np.zeros(12, int)}, "only one class"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "labels"),
        ({"images": IMAGES[:, 0], "labels": LABELS}, "images"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "pickle"),
        ({"labels": LABELS}, "images"),
    ],
)
def test_bad_data(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make(tmp_path / "data.npz", **arrays), tmp_path / "out"
    line = error_of(capsys, "run", f"--data={data}", f"--out={out}")
    assert "data.npz" in line
    assert message in line
    assert not out.exists()


def test_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "run", f"--data={tmp_path / 'no.npz'}", f"--out={tmp_path / 'out'}")
    assert "no.npz" in line


def test_too_many_components(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "data.npz", images=IMAGES, labels=LABELS, split=SPLIT)
    line = error_of(capsys, "run", f"--data={data}", f"--out={tmp_path / 'out'}")
    assert "n_components=15 is above min(n_samples, n_features) = 8" in line
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_or_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    assert "is a file" in error_of(capsys, "run", f"--out={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "kept"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("{}")
    line = error_of(capsys, "run", f"--out={tmp_path / 'run'}")
    assert "already holds a run (metrics.json)" in line
    assert "--overwrite" in line


def test_out_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = error_of(capsys, "run", f"--out={tmp_path / 'file' / 'below'}")
    assert "cannot be written" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_without_the_right_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in error_of(capsys, "run", f"--out={tmp_path / 'out'}")
    finally:
        tmp_path.chmod(0o700)


def test_no_room_for_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nnmf_cuda.pipeline.places.tempfile.mkdtemp", full)
    line = error_of(capsys, "run", f"--out={tmp_path / 'out'}")
    assert "cannot be written (No space left on device)" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "run", "--device=cuda", f"--out={tmp_path / 'out'}")
    assert "sees 0 CUDA devices: use --device cpu" in line
    assert not (tmp_path / "out").exists()


def test_unknown_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a device" in error_of(capsys, "run", "--device=gpu", f"--out={tmp_path / 'o'}")


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "predict", "x.png", f"--model={tmp_path}")
    assert "no model here" in line


def test_bad_number_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "run", "--seeds=0", f"--out={tmp_path / 'o'}")
    assert "--seeds must be > 0; got 0" in line


@pytest.mark.parametrize("options", [["--seed=-1"], [f"--seed={2**32 - 1}", "--seeds=2"]])
def test_bad_seed(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "run", *options, f"--out={tmp_path / 'o'}")
    assert "--seed must lie in [0, 2**32)" in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run", "--nnmf.n_componentz=3"], "unrecognized arguments: --nnmf.n_componentz=3"),
        (["run", "--attack.n_iter=ab"], "--attack.n_iter must be int; got ab"),
        (["run", "--attack.attacks=ab"], "--attack.attacks must be a list such as '[1,2]'; got ab"),
        (["run", "--attack.n_iter=0"], "attack.n_iter must be an integer >= 1; got 0"),
        (["run", "--evaluation=zz"], "must be one of 'paper', 'quick', 'honest', 'thorough'; got"),
        (["run", "--split_by=zz"], "--split_by must be one of 'split', 'patient_fold', 'patient',"),
        (["extract", "x.png"], "the following arguments are required: model, out"),
        (["predict", "x.png", "--model=m", "--batch_size=0"], "--batch_size must be > 0; got 0"),
        (["evaluate", "--model=m", "--preset=honest"], "--preset must be one of 'paper', 'quick',"),
        (["audit", "--seed=-1"], "--seed must be >= 0; got -1"),
        (["predict", "x.png", "--model=run", "--seed=-1"], "--seed must be >= 0; got -1"),
        (["rum"], "invalid choice: 'rum'"),
        ([], "run,extract,predict,audit,evaluate"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("nnmf-cuda: error: ")
    assert message in line
    assert ("--help" in line) == ("attack.n_iter must be an" not in line)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["extract"],
        ["predict"],
        ["audit"],
        ["evaluate"],
        ["verify"],
        ["export"],
        ["cnmf"],
        ["bench"],
        ["info"],
    ],
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "usage: nnmf-cuda" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert set(config["ops"]) == set(OPS)
    assert {"nnmf_mu", "project", "purify", "defended_logits"} <= set(OPS)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for op, served in config["ops"].items():
        assert any(
            line.split() == [op, served["cpu"], served["cuda"]] for line in printed.splitlines()
        )


@pytest.mark.needs_ext
@pytest.mark.parametrize("device", DEVICES)
def test_info_says_kernel_for_compiled_ops(device: str) -> None:
    from nnmf_cuda import show_config

    served = {op: by[device] for op, by in show_config()["ops"].items()}
    assert {op for op, by in served.items() if by != "kernel"} == set()
