"""The preset counts wherever it is named, and a typing error costs one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nnmf_cuda.cli.main import main
from nnmf_cuda.cli.run import asked_presets


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def printed_config(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *options, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_preset_of_a_config_file_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.yaml", "preset: robust\nnnmf:\n  max_iter: 7\n")
    config = printed_config(capsys, f"--config={file}")
    assert config["preset"] == "robust"
    assert config["nnmf"]["n_components"] == 30
    assert config["nnmf"]["max_iter"] == 7
    assert config["defence"]["kind"] == "adversarial"


@pytest.mark.parametrize("first", [True, False])
def test_preset_of_the_command_line_comes_before_the_files(
    first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", write(tmp_path / "a.yaml", "preset: robust\n"), "--preset", "joint"]
    config = printed_config(capsys, *(options[2:] + options[:2] if first else options))
    assert config["preset"] == "joint"
    assert config["defence"]["kind"] == "joint"
    assert config["nnmf"]["n_components"] == 15


def test_last_of_several_files_counts(tmp_path: Path) -> None:
    robust = write(tmp_path / "a.yaml", "preset: robust\n")
    joint = write(tmp_path / "b.yaml", "preset: joint\n")
    none = write(tmp_path / "c.yaml", "seed: 1\n")
    files = ["--config", robust, f"--config={joint}", "--config", none]
    assert asked_presets(files) == ("joint",)
    assert asked_presets(["--seed", "1"]) == ("paper",)


def test_several_of_the_command_line_all_count_once(tmp_path: Path) -> None:
    robust = write(tmp_path / "a.yaml", "preset: robust\n")
    asked = ["--preset", "joint", f"--config={robust}", "--preset=pgd", "--preset=joint"]
    assert asked_presets(asked) == ("joint", "pgd")


def test_saved_config_is_read_back_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = printed_config(capsys, "--preset=robust", "--nnmf.max_iter=9")
    saved = write(tmp_path / "saved.yaml", yaml.safe_dump(config))
    assert printed_config(capsys, f"--config={saved}") == config


def test_unknown_preset_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--preset=robst"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "--preset robst: no such preset; did you mean robust? choose one of paper, " in line
    file = write(tmp_path / "a.yaml", "preset: zzz\n")
    assert main(["run", f"--config={file}"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"{file}: preset zzz: no such preset; choose one of paper, " in line


@pytest.mark.parametrize("text", ["- a list", "preset: [", None])
def test_files_that_are_no_settings_are_left_to_the_parser(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    if text is not None:
        write(file, text)
    assert asked_presets([f"--config={file}"]) == ("paper",)
    assert main(["run", f"--config={file}"]) == 2
    assert "config" in capsys.readouterr().err
