"""Several runs: they can be resumed, leave nothing stale, and print little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nnmf_cuda import load_model
from nnmf_cuda.cli.main import main
from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.run import experiment
from nnmf_cuda.run.repeats import is_finished, result_line, summarize_seeds
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run from two seeds, once."""
    out = tmp_path_factory.mktemp("several") / "out"
    assert main(["run", f"--data={small_npz}", f"--out={out}", *SMALL, "--seeds=2"]) == 0
    return out


@pytest.fixture
def several(made: Path, small_npz: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Return the directory of two runs from two seeds, and the command that made them."""
    out = tmp_path / "out"
    shutil.copytree(made, out)
    return out, ["run", f"--data={small_npz}", f"--out={out}", *SMALL]


def changed(home: Path) -> int:
    return (home / "metrics.json").stat().st_mtime_ns


def test_resume_runs_what_is_missing(several: tuple[Path, list[str]], capsys: Printed) -> None:
    out, command = several
    first, summary = changed(out / "seed_0"), (out / "summary.json").read_text()
    # Stopped while it wrote: metrics.json comes last.
    (out / "seed_1" / "metrics.json").unlink()
    (out / "summary.json").unlink()
    capsys.readouterr()
    assert main([*command, "--seeds=2", "--resume"]) == 0
    printed = capsys.readouterr()
    assert "run 1 of 2: seed 0: finished before\n" in printed.err
    assert "run 2 of 2: seed 1\n" in printed.err
    assert changed(out / "seed_0") == first
    assert (out / "summary.json").read_text() == summary
    assert main([*command, "--seeds=3", "--resume"]) == 0
    assert changed(out / "seed_0") == first
    assert (out / "seed_2" / "metrics.json").exists()


def test_resume_prints_a_line_a_run(several: tuple[Path, list[str]], capsys: Printed) -> None:
    out, command = several
    capsys.readouterr()
    assert main([*command, "--seeds=2", "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for seed in (0, 1):
        assert lines[seed].startswith(f"seed {seed}: accuracy clean ")
        assert lines[seed].endswith(str(out / f"seed_{seed}" / "report.html"))
    assert lines[3].startswith("Mean and standard deviation over seeds 0, 1")
    assert "NNMF feature extraction" not in "".join(lines)


def test_resume_with_other_settings_names_them(
    several: tuple[Path, list[str]], capsys: Printed
) -> None:
    out, command = several
    before = changed(out / "seed_0")
    assert main([*command, "--seeds=2", "--resume", "--nnmf.n_components=5"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "seed_0 is a finished run with other settings" in line
    assert "(nnmf.n_components is 4 there and 5 here)" in line
    assert main([*command, "--seeds=2", "--seed=1", "--resume"]) == 2
    assert "seed_0 holds a run that is none of those asked for" in capsys.readouterr().err
    assert changed(out / "seed_0") == before
    assert (out / "summary.json").exists()


def test_a_run_is_finished_where_all_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert not is_finished(tmp_path, "seed: 1\n")
    (tmp_path / "metrics.json").write_text("{}")
    assert is_finished(tmp_path, "seed: 1\n")
    (tmp_path / "config.yaml").write_text("{seed: 1}\n")  # the same, written in another way
    assert is_finished(tmp_path, "seed: 1\n")
    assert not is_finished(tmp_path / "none", "seed: 1\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "--resume is for several runs: give --seeds or --cross_validate"),
        (["--resume", "--overwrite", "--seeds=2"], "leave out one of them"),
    ],
)
def test_resume_that_makes_no_sense(options: list[str], message: str, capsys: Printed) -> None:
    assert main(["run", *options]) == 2
    assert message in capsys.readouterr().err


def test_overwrite_leaves_nothing_stale(several: tuple[Path, list[str]], capsys: Printed) -> None:
    out, command = several
    (out / "seed_1" / "mine.txt").write_text("kept")
    assert main([*command]) == 2
    assert "already holds a run (summary.json, seed_0, seed_1)" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--attack.n_iter=0"]) == 2
    assert main([*command, "--overwrite", "--device=gpu", "--seeds=2"]) == 2
    assert (out / "summary.json").exists()
    assert (out / "seed_1" / "metrics.json").exists()
    assert main([*command, "--overwrite", "--seeds=2", "--seed=4"]) == 0
    found = {path.name for path in out.iterdir()}
    assert found == {"seed_1", "seed_4", "seed_5", "summary.json"}
    assert [path.name for path in (out / "seed_1").iterdir()] == ["mine.txt"]
    assert main([*command, "--overwrite"]) == 0
    assert not {"seed_4", "seed_5", "summary.json"} & {path.name for path in out.iterdir()}
    assert (out / "metrics.json").exists()


def test_overwrite_keeps_the_old_runs_if_the_first_new_one_fails(
    several: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, command = several

    def fail(*_args: object, **_kwargs: object) -> None:
        raise ValueError("deliberate")

    monkeypatch.setattr(experiment, "run_stages", fail)
    assert main([*command, "--overwrite", "--seeds=2", "--seed=4"]) == 2
    assert {path.name for path in out.iterdir()} == {"seed_0", "seed_1", "summary.json"}


def test_loading_several_runs_names_one(several: tuple[Path, list[str]], capsys: Printed) -> None:
    out, _ = several
    message = f"2 runs: give one of its runs, such as {out / 'seed_0'}"
    with pytest.raises(ValueError, match=message):
        load_model(out)
    shutil.move(out / "seed_0", out / "fold_1" / "seed_0")
    for command in (["predict", "x.png"], ["evaluate"]):
        assert main([*command, f"--model={out}"]) == 2
        assert f"such as {out / 'fold_1' / 'seed_0'}" in capsys.readouterr().err
    assert load_model(out / "seed_1").image_shape == (128, 128)


def headline(proven: float | None) -> dict[str, object]:
    figures = {"attacked": 0.75, "clean": 0.875, "constant": 0.5, "ceiling": 1.0}
    undecided = None if proven is None else 0.75 - proven
    proof = "not verified" if proven is None else "branch and bound"
    made = Headline(**figures, proven=proven, undecided=undecided, proof=proof)
    return {**made.as_dict(), "all_right_accuracy": 0.75}


def test_evaluated_runs_are_summarised_by_the_evaluations_line(
    several: tuple[Path, list[str]],
) -> None:
    homes = {seed: several[0] / f"seed_{seed}" for seed in (0, 1)}
    assert "attacked 0.750" not in result_line(homes[0])
    assert summarize_seeds(homes).headline is None
    for home, proven in zip(homes.values(), (0.75, 0.5), strict=True):
        (home / "robustness.json").write_text(json.dumps(headline(proven)))
    assert "\n  ceiling 1.000 >= attacked 0.750 >= proven 0.750, " in result_line(homes[0])
    summary = summarize_seeds(homes)
    assert summary.as_dict()["line"] == (
        "ceiling 1.000 >= attacked 0.750 >= proven 0.625, clean 0.875, constant answer 0.500,"
        " undecided 0.125"
    )
    assert summary.robustness["proven_accuracy"].low == 0.5
    (homes[1] / "robustness.json").write_text(json.dumps(headline(None)))
    assert "proven_accuracy" not in summarize_seeds(homes).robustness
    assert "proven none (not verified)" in summarize_seeds(homes).as_dict()["line"]
    (homes[1] / "robustness.json").write_text('{"worst_case_accuracy": 0.25}')
    with pytest.raises(ValueError, match=r"has no .*ceiling.*evaluate it again"):
        summarize_seeds(homes)


def test_a_run_without_one_of_the_metrics_is_named(tmp_path: Path) -> None:
    """A summary of runs of an earlier version must not end in a KeyError."""
    (tmp_path / "metrics.json").write_text(
        json.dumps({"rows": {"Clean_Baseline": {"accuracy": 0.5}}}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="metrics.json has no .*brier.*earlier version"):
        summarize_seeds({0: tmp_path})
