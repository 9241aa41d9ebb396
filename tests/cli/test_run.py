"""What `nnmf-cuda run` prints: a summary of one screen, for one run or for several presets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from nnmf_cuda import load_model
from nnmf_cuda.cli.main import main
from nnmf_cuda.cli.run import Run, RunOptions
from nnmf_cuda.cli.summary import Outcome, Shares, outcome_of, run_summary
from nnmf_cuda.pipeline.config import PRESETS, DataConfig, ExperimentConfig
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]


def assert_one_screen(text: str) -> list[str]:
    """Check that a text fits on a terminal of 80 x 24, but for long paths; returns its lines."""
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(len(line) for line in lines if not line.startswith("report: ")) <= 80
    return lines


def row_of(lines: list[str], label: str) -> list[str]:
    """Return the cells of the row of a table."""
    (found,) = [line for line in lines if line.startswith(f"{label}  ")]
    return found.removeprefix(label).split()


def test_summary_of_a_run_says_what_its_files_say(small_run: tuple[Path, str]) -> None:
    home, printed = small_run
    metrics = json.loads((home / "metrics.json").read_text())
    rows, outcome = metrics["rows"], outcome_of(home)
    text = run_summary(outcome, preset="paper", evaluation="paper", home=Path("out"))
    lines = assert_one_screen(text)
    assert row_of(lines, "undefended") == [
        f"{rows['Clean_Baseline']['accuracy']:.3f}",
        f"{rows['Robust_Baseline']['accuracy']:.3f}",
        "not",
        "run",
    ]
    assert row_of(lines, "defended (preset paper)")[:2] == [
        f"{rows[name]['accuracy']:.3f}" for name in ("Clean_Defended", "Robust_Defended")
    ]
    assert row_of(lines, "the constant answer") == [f"{metrics['majority_class_accuracy']:.3f}"] * 3
    assert "worst case: not run; --evaluation honest does" in text
    assert "apgd-ce + square, Linf eps 0.1" in text
    assert "Synthetic" not in text
    assert outcome.all_seconds > outcome.seconds["total"] > 0
    # After the tables that --verbose asks for, the same.
    assert f"report:  {home / 'report.html'}" in printed
    assert "Accuracy on 15 test images:" in printed


def test_summary_of_an_evaluated_run() -> None:
    outcome = Outcome(
        undefended=Shares(0.8, 0.03, 0.02),
        defended=Shares(0.7, 0.27, 0.055),
        constant=0.5,
        n_test=200,
        n_predictions=20,
        protocol="apgd-ce + square, Linf eps 0.1",
        line="ceiling 0.900 >= attacked 0.055",
        verdict="The worst case, 0.0550, is below the constant answer.",
        warnings=("Steps have not been enough.",),
        seconds={"nnmf_feature_extraction": 1.0, "total": 1.0, "robustness_evaluation": 2.0},
        synthetic=True,
    )
    text = run_summary(outcome, preset="paper", evaluation="quick", home=Path("out"))
    lines = assert_one_screen(text)
    assert lines[0] == "Synthetic images: this says that the software works, nothing else."
    assert row_of(lines, "undefended") == ["0.800", "0.030", "0.020"]
    assert row_of(lines, "defended (preset paper)") == ["0.700", "0.270", "0.055"]
    assert outcome.line in text
    for said in (outcome.verdict, "! Steps have", "That is a first look", "in all 3.0"):
        assert said in text


def test_worst_case_is_that_of_the_evaluation(small_run: tuple[Path, str], tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(small_run[0], home)
    content = {
        "worst_case_accuracy": 0.25,
        "others": {"undefended": {"worst_case_accuracy": 0.125}},
        "line": "attacked 0.250",
        "verdict": "It stands.",
        "warnings": ["Doubt it."],
    }
    (home / "robustness.json").write_text(json.dumps(content))
    outcome = outcome_of(home)
    assert (outcome.defended.worst_case, outcome.undefended.worst_case) == (0.25, 0.125)
    assert (outcome.line, outcome.verdict) == ("attacked 0.250", "It stands.")
    assert outcome.warnings[-1] == "Doubt it."
    clean = outcome_of(small_run[0]).defended.clean
    assert outcome.defended == Shares(clean, outcome.defended.attacked, 0.25)


def test_presets_side_by_side(small_npz: Path, tmp_path: Path, capsys: Printed) -> None:
    out = tmp_path / "out"
    options = [*SMALL, "--defence.epochs=1", "--selection.n_selected=3", f"--data={small_npz}"]
    command = ["run", "--preset=paper", "--preset=robust", *options, f"--out={out}"]
    assert main(command) == 0
    printed = capsys.readouterr()
    lines = assert_one_screen(printed.out)
    assert "run 2 of 2: preset robust\n" in printed.err
    assert sorted(path.name for path in out.iterdir()) == [
        "preset_paper",
        "preset_robust",
        "summary.json",
    ]
    summary = json.loads((out / "summary.json").read_text())["presets"]
    for preset in ("paper", "robust"):
        home = out / f"preset_{preset}"
        config = yaml.safe_load((home / "config.yaml").read_text())
        assert config["preset"] == preset
        # What is given counts for every preset, what is not is that preset's.
        assert config["nnmf"]["n_components"] == 4
        assert config["nnmf"]["init"] == PRESETS[preset].nnmf.init
        assert load_model(home).defence.kind == PRESETS[preset].defence.kind
        outcome = outcome_of(home)
        assert summary[preset]["defended"]["clean"] == outcome.defended.clean
        cells = " ".join(row_of(lines, f"preset {preset}"))
        assert cells.startswith(" ".join([*outcome.defended.cells(), f"{outcome.constant:.3f}"]))
        assert f"report: {home / 'report.html'}" in lines
    assert main([*command, "--resume"]) == 0
    assert "run 1 of 2: preset paper: finished before" in capsys.readouterr().err
    # One run in their place leaves nothing of them.
    assert main(["run", *options, f"--out={out}", "--overwrite"]) == 0
    assert not any(path.name.startswith("preset_") for path in out.iterdir())


@pytest.mark.parametrize("option", ["--seeds=2", "--cross_validate"])
def test_presets_are_not_run_over_seeds_or_folds(option: str, capsys: Printed) -> None:
    assert main(["run", "--preset=paper", "--preset=robust", option]) == 2
    assert "are for one preset: give --preset once" in capsys.readouterr().err


def test_settings_are_read_back_as_they_were(tmp_path: Path, capsys: Printed) -> None:
    config = ExperimentConfig(
        data=DataConfig(
            path="x.npz",
            classes="2=Größe,1=b",
            split_by="patient",
            test_fold="3",
            window="p1:p99",
            axis="coronal",
            on_error="skip",
            mask_area=0.25,
        ),
        defence=PRESETS["smoothing"].defence,
        seed=7,
    )
    options = RunOptions(data="x.npz", preset="smoothing", evaluation="honest", device="cpu")
    saved = tmp_path / "config.yaml"
    saved.write_text(Run(options, config).config_yaml(), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["run", f"--config={saved}", "--print_config"])
    read, wrote = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(saved.read_text("utf-8"))
    assert {name: read[name] for name in wrote} == wrote
    assert set(read) - set(wrote) == {
        "out",
        "overwrite",
        "resume",
        "seeds",
        "cross_validate",
        "eps_curve",
        "bench_records",
        "verbose",
    }
