"""The whole experiment through the command line, on small images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nnmf_cuda import load_model
from nnmf_cuda.cli.main import main
from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES, classification_metrics
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from tests.saved_runs import SMALL, make_npz

STAGES = [
    "nnmf_feature_extraction",
    "cnn_training",
    "denoiser_training",
    "autoattack_baseline",
    "autoattack_defended",
    "total",
]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_run_writes_every_file(small_run: tuple[Path, str]) -> None:
    out, _ = small_run
    found = {path.name for path in out.iterdir()}
    assert found == {
        "adversarial.npz", "config.yaml", "environment.json", "features.npz", "figures",
        "metrics.json", "model", "report.html", "timings.json",
    }  # fmt: skip
    assert {p.name for p in (out / "model").iterdir()} == {"model.json", "model.safetensors"}
    assert any((out / "figures").glob("*.png"))


def test_run_metrics_have_the_documented_keys(small_run: tuple[Path, str]) -> None:
    metrics = read(small_run[0] / "metrics.json")
    assert list(metrics["rows"]) == list(ROW_NAMES)
    for row in metrics["rows"].values():
        assert set(row) == {*METRIC_NAMES, "n"}
        assert row["n"] == 15
    assert metrics["majority_class_accuracy"] == pytest.approx(8 / 15)
    assert isinstance(metrics["notes"], list)


def test_run_says_how_uncertain_its_rows_are(small_run: tuple[Path, str]) -> None:
    metrics, printed = read(small_run[0] / "metrics.json"), " ".join(small_run[1].split())
    intervals = metrics["intervals"]
    assert (intervals["clustered_by"], intervals["n_clusters"]) == ("image", 15)
    for name, row in metrics["rows"].items():
        for metric in METRIC_NAMES:
            ends = intervals["rows"][name][metric]
            assert ends["low"] <= row[metric] <= ends["high"]
        wilson = metrics["wilson"][name]
        assert wilson["low"] < row["accuracy"] < wilson["high"] or row["accuracy"] in (0, 1)
        assert 0 <= metrics["calibration"]["expected_calibration_error"][name] <= 1
    rows = metrics["rows"]
    for name in ("clean", "robust"):
        difference = metrics["comparisons"][name]["difference"]["accuracy"]["estimate"]
        apart = [rows[f"{name.capitalize()}_{m}"]["accuracy"] for m in ("Defended", "Baseline")]
        assert difference == pytest.approx(apart[0] - apart[1])
        assert set(metrics["comparisons"][name]["mcnemar"]) == {"n_only_a", "n_only_b", "p_value"}
        assert metrics["comparisons"][name]["delong"] is not None
    assert "95 % interval" in printed
    assert "2000 resamples of single images (15), taken as independent" in printed
    report = (small_run[0] / "report.html").read_text(encoding="utf-8")
    assert "95 % interval" in report
    assert "Defended against Baseline, robust" in report


def test_run_counts_the_attacks_success_in_every_way(small_run: tuple[Path, str]) -> None:
    out, printed = small_run
    metrics = read(out / "metrics.json")
    with np.load(out / "adversarial.npz") as saved:
        for name in ("baseline", "defended"):
            found = metrics["attacks"][name]
            unchanged = (saved[f"x_adv_{name}"] == saved["x_clean"]).all(1)
            assert found["n_unchanged"] == unchanged.sum()
            flags = saved[f"robust_flags_{name}"]
            assert found["accuracy_after"]["square"] == pytest.approx(flags.mean())
            row = metrics["rows"][f"Robust_{name.capitalize()}"]
            assert found["fresh_accuracy"] == pytest.approx(row["accuracy"])
            assert found["all_right_accuracy"] <= found["majority_accuracy"]
    assert "points are returned unchanged" in " ".join(printed.split())


def test_evaluation_noise_is_not_the_attacks() -> None:
    """On the CPU, torch's generator reads 32 bits of a seed: sums above them would collide."""
    for seed in (0, 1, 7):
        streams = [
            torch.randn(8, generator=torch.Generator().manual_seed(s))
            for s in (
                seed,
                seed_word(seed, Purpose.EVALUATION),
                seed_word(seed + 1, Purpose.EVALUATION),
            )
        ]
        assert seed_word(seed, Purpose.EVALUATION) < 2**32
        for i in (1, 2):
            assert not torch.equal(streams[0], streams[i])
        assert not torch.equal(streams[1], streams[2])


def test_run_timings_have_the_documented_keys(small_run: tuple[Path, str]) -> None:
    timings = read(small_run[0] / "timings.json")
    assert timings["device"] == "cpu"
    stages = {row["stage"]: row for row in timings["rows"]}
    assert [stage for stage in stages if stage in STAGES] == STAGES
    assert {"reading_images", "writing_results"} <= set(stages)
    for row in stages.values():
        assert set(row) == {"stage", "seconds", "n_items", "peak_bytes"}
        assert row["seconds"] > 0
    five = sum(stages[stage]["seconds"] for stage in STAGES[:-1])
    assert stages["total"]["seconds"] == pytest.approx(five)


def test_run_prints_both_tables(small_run: tuple[Path, str]) -> None:
    printed = small_run[1]
    for text in (*ROW_NAMES, "Constant answer", "NNMF feature extraction"):
        assert text in printed
    assert "17.03" not in printed  # the paper's seconds are of its own data


def test_run_environment_and_config(small_run: tuple[Path, str], small_npz: Path) -> None:
    environment = read(small_run[0] / "environment.json")
    assert environment["packages"]["torch"] == torch.__version__
    assert len(environment["data_sha256"]) == 64
    assert environment["threads"] == torch.get_num_threads()
    config = yaml.safe_load((small_run[0] / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"] == str(small_npz)
    assert config["nnmf"]["n_components"] == 4
    assert config["diffusion"]["timesteps"] == [41]


def test_run_again_from_its_config_gives_the_same_numbers(
    small_run: tuple[Path, str], tmp_path: Path
) -> None:
    config = small_run[0] / "config.yaml"
    assert main(["run", f"--config={config}", f"--out={tmp_path / 'again'}"]) == 0
    again = read(tmp_path / "again" / "metrics.json")
    assert again == read(small_run[0] / "metrics.json")
    with np.load(small_run[0] / "adversarial.npz") as a:
        with np.load(tmp_path / "again" / "adversarial.npz") as b:
            for name in ("x_clean", "y", "x_adv_baseline", "x_adv_defended"):
                assert np.array_equal(a[name], b[name])


def test_run_adversarial_features_lie_within_the_threat_model(
    small_run: tuple[Path, str],
) -> None:
    with np.load(small_run[0] / "adversarial.npz") as saved:
        clean = saved["x_clean"]
        assert clean.dtype == np.float32
        assert clean.shape == (15, 4)
        for name in ("x_adv_baseline", "x_adv_defended"):
            assert np.abs(saved[name] - clean).max() <= 0.1 + 1e-6
            assert saved[name].min() >= 0
            assert saved[name].max() <= 1


RECOMPUTE = """
import json, sys
import numpy as np, torch
from nnmf_cuda import load_model
model, saved = load_model(sys.argv[1]), np.load(sys.argv[1] + "/adversarial.npz")
y = saved["y"]
with torch.no_grad():
    baseline = model.classifier(torch.tensor(saved["x_adv_baseline"])).argmax(1).numpy()
    x = torch.tensor(saved["x_adv_defended"])
    defended = [float((model.defended(x).argmax(1).numpy() == y).mean()) for _ in range(20)]
print(json.dumps({"baseline": float((baseline == y).mean()), "defended": defended}))
"""


def test_run_can_be_checked_in_a_separate_process(small_run: tuple[Path, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECOMPUTE, str(small_run[0])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, metrics = json.loads(done.stdout), read(small_run[0] / "metrics.json")
    rows = metrics["rows"]
    assert found["baseline"] == pytest.approx(rows["Robust_Baseline"]["accuracy"])
    spread = max(metrics["spread"]["Robust_Defended"]["accuracy"], 1 / 15)
    difference = np.mean(found["defended"]) - rows["Robust_Defended"]["accuracy"]
    assert abs(difference) < 4 * spread / np.sqrt(20) + 1 / 15


def test_run_model_reproduces_the_clean_row(small_run: tuple[Path, str], small_npz: Path) -> None:
    model = load_model(small_run[0])
    with np.load(small_npz) as data, np.load(small_run[0] / "adversarial.npz") as saved:
        test = data["split"] == "test"
        features = model.features(data["images"][test])
        np.testing.assert_allclose(features.numpy(), saved["x_clean"], atol=1e-5)
        probabilities = model.predict_proba(data["images"][test], defended=False)
        got = classification_metrics(data["labels"][test], probabilities)
    want = read(small_run[0] / "metrics.json")["rows"]["Clean_Baseline"]
    assert got["accuracy"] == want["accuracy"]
    assert got["log_loss"] == pytest.approx(want["log_loss"], rel=1e-4)


def test_run_with_three_classes(tmp_path: Path) -> None:
    data = make_npz(tmp_path / "three.npz", n_classes=3)
    assert main(["run", f"--data={data}", f"--out={tmp_path / 'out'}", *SMALL]) == 0
    rows = read(tmp_path / "out" / "metrics.json")["rows"]
    assert 0 <= rows["Robust_Defended"]["roc_auc"] <= 1
    metrics = read(tmp_path / "out" / "metrics.json")
    assert metrics["comparisons"]["clean"]["delong"] is None
    assert "macro means" in str(metrics["notes"])
    assert "positive class" not in str(metrics["notes"])


def test_run_plots_the_newest_stage_benchmark_of_its_images(
    small_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnmf_cuda.benchmarks.stages import run_stage_benchmarks
    from nnmf_cuda.pipeline import config

    settings = config.ExperimentConfig(
        nnmf=config.NNMFConfig(n_components=4, max_iter=5),
        classifier=config.ClassifierConfig(epochs=2),
        diffusion=config.DiffusionConfig(epochs=2, n_draws=2),
        attack=config.AttackConfig(n_iter=3, n_restarts=1, n_queries=10),
        n_predictions=2,
    )
    records = tmp_path / "records.jsonl"
    measured = run_stage_benchmarks(
        data=str(small_npz), config=settings, device="cpu", repeats=1, json_path=records
    )
    older = measured | {"date": "2001-01-01T00:00:00", "commit": "f" * 40}
    other = measured | {"date": "2999-01-01T00:00:00", "data_sha256": "0" * 64}
    with records.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in (older, other))
    run = ["run", f"--data={small_npz}", *SMALL, f"--bench_records={records}"]
    assert main([*run, f"--out={tmp_path / 'run'}"]) == 0
    report = " ".join((tmp_path / "run" / "report.html").read_text(encoding="utf-8").split())
    assert f"commit {measured['commit'][:10]}, {measured['date'][:10]}" in report
    assert (tmp_path / "run" / "figures" / "stage_benchmark.png").exists()
    assert "bench_records" not in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")

    records.write_text(json.dumps(other) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    capsys.readouterr()
    for arguments, said in (
        (run, "bench_records hold none of the stages on"),
        ([*run, f"--bench_records={empty}"], "has no records of bench stages"),
        ([*run, "--seeds=2"], "leave out --seeds"),
    ):
        out = tmp_path / "refused"
        assert main([*arguments, f"--out={out}"]) == 2
        assert said in capsys.readouterr().err
        assert not (out / "metrics.json").exists()


def test_run_with_several_seeds_writes_a_summary(
    small_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        main(["run", f"--data={small_npz}", f"--out={out}", "--seeds=2", "--seed=3", *SMALL]) == 0
    )
    summary = read(out / "summary.json")
    assert summary["seeds"] == [3, 4]
    both = [
        read(out / f"seed_{seed}" / "metrics.json")["rows"]["Clean_Baseline"]["accuracy"]
        for seed in (3, 4)
    ]
    cell = summary["rows"]["Clean_Baseline"]["accuracy"]
    assert cell["mean"] == pytest.approx(np.mean(both))
    assert cell["std"] == pytest.approx(np.std(both, ddof=1))
    captured = capsys.readouterr()
    printed = captured.out
    assert "run 2 of 2: seed 4\n" in captured.err
    assert "NNMF feature extraction" not in printed  # the tables of each are in its report
    assert "Mean and standard deviation over seeds 3, 4" in printed
    assert "All seeds share one test split" in printed
    again = ["run", f"--data={small_npz}", f"--out={tmp_path / 'random'}", "--seeds=2", *SMALL]
    assert main([*again, "--split_by=random"]) == 0
    assert "All seeds share one test split" not in capsys.readouterr().out


def test_run_on_the_phantom_says_synthetic(tmp_path: Path) -> None:
    assert main(["run", f"--out={tmp_path / 'out'}", *SMALL]) == 0
    notes = read(tmp_path / "out" / "metrics.json")["notes"]
    assert any("synthetic" in note for note in notes)
    assert "eakage" not in str(notes)
    assert "synthetic" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8").lower()
    assert read(tmp_path / "out" / "model" / "model.json")["info"]["synthetic"] is True


def test_run_on_the_sample_export(real_data: Path, tmp_path: Path) -> None:
    """24 training images, 5 components, original JPEG files."""
    command = ["run", f"--data={real_data / 'darabi-sample'}", f"--out={tmp_path / 'out'}", *SMALL]
    assert main([*command, "--classes=2=Normal,1=Tumor", "--nnmf.n_components=5"]) == 0


def test_a_run_that_fails_leaves_nothing(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ValueError("deliberate")

    monkeypatch.setattr("nnmf_cuda.run.experiment.run_stages", fail)
    out = tmp_path / "out"
    assert main(["run", f"--data={small_npz}", f"--out={out}", *SMALL]) == 2
    assert not out.exists()


def test_cross_validation_tests_every_image_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_npz(tmp_path / "small.npz", n=90)
    with np.load(source) as arrays:
        patients = np.arange(90) // 3
        np.savez(tmp_path / "data.npz", **dict(arrays), patient=patients)
    out = tmp_path / "out"
    command = ["run", f"--data={tmp_path / 'data.npz'}", f"--out={out}", "--cross_validate"]
    assert main([*command, *SMALL]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["splits"]) == ["own split", *(f"fold {k}" for k in range(1, 6))]
    assert (summary["split_by"], summary["seeds"]) == ("patient", [0])
    accuracies, n = [], 0
    for fold in range(1, 6):
        metrics = json.loads((out / f"fold_{fold}" / "metrics.json").read_text())
        accuracies.append(metrics["rows"]["Clean_Baseline"]["accuracy"])
        n += metrics["rows"]["Clean_Baseline"]["n"]
        assert "0.0% by patient" in str(metrics["notes"])
        assert f"test_fold: {fold}" in (out / f"fold_{fold}" / "config.yaml").read_text()
    assert n == 90
    found = summary["folds"]["rows"]["Clean_Baseline"]["accuracy"]
    assert found["mean"] == pytest.approx(np.mean(accuracies))
    assert (found["low"], found["high"]) == (min(accuracies), max(accuracies))
    printed = capsys.readouterr().out
    assert "own split beside 5 folds by patient" in printed
    assert f"{found['mean']:.4f}" in (out / "summary.html").read_text()
    assert main([*command, *SMALL]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_cross_validation_that_cannot_be(
    small_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "--cross_validate", f"--out={tmp_path / 'o'}"]
    data = f"--data={small_npz}"
    for command, message in (
        (run, "--cross_validate needs --data"),
        ([*run, data], "names no patient and no series: give --split_by random"),
        ([*run, data, "--split_by=split"], "cannot be folded by split; give --split_by random"),
        ([*run, data, "--split_by=random", "--test_fold=1"], "leave out one"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_an_attack_for_more_classes_is_refused_before_training(
    tmp_path: Path, small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--out={tmp_path / 'run'}", *SMALL, "--attack.attacks=[apgd-ce,apgd-dlr]"]
    assert main(["run", f"--data={small_npz}", *options]) == 2
    said = capsys.readouterr().err
    assert "'apgd-dlr' needs at least 3 classes" in said
    assert "NNMF" not in said
    assert not (tmp_path / "run").exists()
