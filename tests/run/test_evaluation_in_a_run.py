"""A run that is evaluated: it is whole before that begins, and stays whatever becomes of it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from nnmf_cuda.cli.main import main
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.pipeline.run_directory import EVALUATED, RESULTS
from nnmf_cuda.pipeline.stages import run_stages
from nnmf_cuda.robustness.budgets import EVALUATION_BUDGETS
from tests.processes import exit_code, fork
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]

OF_EVALUATION = {"robustness.json", "robustness.npz", "robustness.html"}


@pytest.fixture(autouse=True)
def little_to_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "quick" be quicker: it counts again what the run's own attack has found."""
    monkeypatch.setitem(EVALUATION_BUDGETS, "quick", EVALUATION_BUDGETS["paper"])


def command(data: Path, out: Path, *more: str) -> list[str]:
    return ["run", f"--data={data}", f"--out={out}", *SMALL, "--evaluation=quick", *more]


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def is_whole_without_evaluation(out: Path, data: Path) -> bool:
    """Tell by the files of a run, by what they say, and by asking its model."""
    metrics = json.loads((out / "metrics.json").read_text())
    stages = [row["stage"] for row in json.loads((out / "timings.json").read_text())["rows"]]
    return (
        names(out) == {path for path in RESULTS if (out / path).exists()}
        and {"model", "report.html", "figures", "adversarial.npz", "features.npz"} <= names(out)
        and not OF_EVALUATION & names(out)
        and "writing_results" in stages
        and "robustness_evaluation" not in stages
        and len(metrics["not_run"]) > 0
        and 'id="robustness"' not in (out / "report.html").read_text()
        and main(["predict", str(data), f"--model={out}"]) == 0
    )


def test_an_evaluated_run_says_so_everywhere(
    small_npz: Path, tmp_path: Path, capsys: Printed
) -> None:
    out = tmp_path / "out"
    assert main(command(small_npz, out)) == 0
    assert "evaluation" in capsys.readouterr().out
    assert set(EVALUATED) <= set(RESULTS)
    assert EVALUATED[-1] == RESULTS[-1]
    assert names(out) >= {*EVALUATED, "model", "features.npz", "adversarial.npz", "config.yaml"}
    assert not [name for name in names(out) if name.startswith(".")]
    assert json.loads((out / "metrics.json").read_text())["not_run"] == []
    rows = json.loads((out / "timings.json").read_text())["rows"]
    stages = [row["stage"] for row in rows]
    assert stages[-4:-1] == ["writing_results", "robustness_evaluation", "writing_evaluation"]
    assert 'id="robustness"' in (out / "report.html").read_text()


def test_a_run_whose_evaluation_fails_is_kept_and_can_go_on(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    def fail(*_args: object, **_settings: object) -> None:
        raise RuntimeError("CUDA out of memory")  # which no command ends well with otherwise

    out = tmp_path / "an out"
    with monkeypatch.context() as failing:
        failing.setattr("nnmf_cuda.run.experiment.evaluate_robustness", fail)
        assert main(command(small_npz, out)) == 2
    printed = capsys.readouterr()
    (line,) = [x for x in printed.err.splitlines() if "error: " in x]
    assert line == printed.err.splitlines()[-1]
    said, _, go_on = line.partition(": go on with ")
    assert said.startswith(
        f"nnmf-cuda: error: --out {out} holds the run, but its evaluation failed"
    )
    assert "Robust_Defended" in printed.out
    assert is_whole_without_evaluation(out, small_npz)
    name, *arguments = shlex.split(go_on)
    assert name == "nnmf-cuda"
    assert main(arguments) == 0
    assert names(out) >= OF_EVALUATION


def test_of_several_runs_one_that_lacks_its_evaluation_is_evaluated_and_not_run_again(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    def fail(*_args: object, **_settings: object) -> None:
        raise RuntimeError("deliberate")

    out, ran = tmp_path / "out", []
    several = command(small_npz, out, "--seeds=2")
    with monkeypatch.context() as failing:
        failing.setattr("nnmf_cuda.run.experiment.evaluate_robustness", fail)
        assert main(several) == 2
    assert names(out) == {"seed_0"}
    trained = (out / "seed_0" / "model" / "model.safetensors").stat().st_mtime_ns

    def stages(dataset: object, config: ExperimentConfig, **settings: object) -> object:
        ran.append(config.seed)
        return run_stages(dataset, config, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("nnmf_cuda.run.experiment.run_stages", stages)
    assert main([*several, "--resume"]) == 0
    assert "run 1 of 2: seed 0: to be evaluated" in capsys.readouterr().err
    assert ran == [1]
    assert (out / "seed_0" / "model" / "model.safetensors").stat().st_mtime_ns == trained
    for seed in (0, 1):
        assert names(out / f"seed_{seed}") >= OF_EVALUATION
    assert "robustness" in json.loads((out / "summary.json").read_text())


def test_a_run_that_is_killed_while_it_is_evaluated_is_whole(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, reach = os.pipe()

    def hang(*_args: object, **_settings: object) -> None:
        os.write(reach, b"x")
        time.sleep(600)

    out = tmp_path / "out"
    with monkeypatch.context() as hanging:
        hanging.setattr("nnmf_cuda.run.experiment.evaluate_robustness", hang)
        process = fork(lambda: main(command(small_npz, out)), said=tmp_path / "said.txt")
    os.close(reach)
    assert os.read(reached, 1) == b"x", (tmp_path / "said.txt").read_text()
    os.close(reached)
    # Nobody else may write there while it goes on.
    assert main(command(small_npz, out, "--overwrite")) == 2
    assert main(["evaluate", f"--model={out}", "--preset=paper"]) == 2
    os.kill(process, signal.SIGKILL)
    assert exit_code(process) == -signal.SIGKILL
    assert main(["evaluate", f"--model={out}", f"--data={small_npz}", "--preset=paper"]) == 0
    for name in OF_EVALUATION:
        (out / name).unlink()
    assert is_whole_without_evaluation(out, small_npz)


def test_a_run_whose_evaluation_cannot_be_written_is_kept(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    def full(*_args: object, **_settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nnmf_cuda.robustness.Robustness.write", full)
    out = tmp_path / "out"
    assert main(command(small_npz, out)) == 2
    printed = capsys.readouterr()
    assert (
        "holds the run, but its evaluation, which is above, could not be written (No space"
        in (printed.err.splitlines()[-1])
    )
    assert "worst case" in printed.out.lower()
    assert is_whole_without_evaluation(out, small_npz)
