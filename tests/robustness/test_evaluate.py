"""The evaluation of a saved run: twenty points, the worst case, what is written."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnmf_cuda import load_model
from nnmf_cuda.attacks import Budget
from nnmf_cuda.attacks.surrogates import FixedNoise
from nnmf_cuda.cli.main import main
from nnmf_cuda.data import load_dataset
from nnmf_cuda.evaluation.headline import ContradictionError
from nnmf_cuda.evaluation.robustness import NOT_RUN
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.features import FeatureExtractor, ImageChain
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from nnmf_cuda.robustness import EVALUATION_BUDGETS, EvaluationBudget, SavedRun, evaluate_robustness
from nnmf_cuda.robustness.baselines import LinearDenoiser, WithoutNoise
from nnmf_cuda.robustness.budgets import PixelBudget
from nnmf_cuda.robustness.points import _POINTS
from nnmf_cuda.robustness.verification import Verification
from nnmf_cuda.robustness.verify import verify
from tests.saved_runs import SMALL, make_npz

robustness_evaluate = importlib.import_module("nnmf_cuda.robustness.evaluate")

LIGHT = EvaluationBudget(
    suite=Budget(n_iter=5, n_restarts=1, eot_iter=2, surrogate_draws=16, pgd_iter=5, n_queries=10),
    curve_iter=5,
    attack_eps=(0.0, 0.1, 1.0),
    n_iter=(5, 10),
    n_restarts=(1, 2),
    eot_iter=(1, 2),
    pixels=PixelBudget(eps_255=(4.0, 8.0), n_iter=5),
    n_estimation=200,
)
KEYS = {"worst_case_accuracy", "threat_model", "points", "attacks"}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVALUATION_BUDGETS, "standard", LIGHT)  # type: ignore[arg-type]


@pytest.fixture
def run_copy(small_run: tuple[Path, str], tmp_path: Path) -> Path:
    shutil.copytree(small_run[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def without_noise(small_run: tuple[Path, str]) -> SavedRun:
    """A run whose defence is the plain classifier, in a ball in which some samples hold."""
    run = SavedRun.load(small_run[0])
    small = replace(run.attack, attack_eps=0.01)
    nothing = {name: replace(found, points=run.x["test"]) for name, found in run.paper.items()}
    model = replace(run.model, defended=run.model.classifier)
    return replace(run, model=model, attack=small, paper=nothing)


PROVING = replace(LIGHT, verify_seconds=5.0)


def test_a_defence_without_noise_is_proven_and_agrees_with_attacks(
    without_noise: SavedRun,
) -> None:
    result = evaluate_robustness(without_noise, budget=PROVING)
    line, found = result.report.headline, result.measured.verification
    assert found is not None
    assert not found.undecided.any()  # a network of a few features
    assert found.proven.any()
    assert found.broken.any()
    assert line.proven == line.attacked == found.proven_accuracy
    assert line.undecided == 0
    assert line.ceiling is not None
    assert line.ceiling >= line.attacked
    names = [outcome.name for outcome in result.measured.suites["defended"].outcomes]
    assert names[-1] == "branch and bound"
    assert result.arrays()["status"].tolist() == found.status.tolist()
    assert "branch and bound" in result.report.points[18].value


def test_pixels_are_certified_where_features_are_proven(
    without_noise: SavedRun, small_npz: Path
) -> None:
    images = without_noise.images_of(load_dataset(small_npz))
    result = evaluate_robustness(without_noise, budget=PROVING, images=images)
    pixels, found = result.report.pixels, result.measured.verification
    assert pixels is not None
    assert pixels.certified is not None
    assert found is not None
    assert pixels.certified.robust_accuracy[0] == found.proven_accuracy
    assert pixels.certified.median_radius_255 is not None
    assert pixels.certified.median_radius_255 > 0
    both = zip(pixels.certified.robust_accuracy, pixels.defended.robust_accuracy, strict=True)
    assert all(certified <= attacked for certified, attacked in both)
    shown = result.report.points[0].value["pixel_space"]["certified"]
    assert shown["robust_accuracy"] == pixels.certified.robust_accuracy


def test_a_wrong_proof_stops_the_evaluation_and_names_the_sample(
    without_noise: SavedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = []

    def lie(*args: object, **settings: object) -> Verification:
        honest = verify(*args, **settings)  # type: ignore[arg-type]
        broken.append(int(np.flatnonzero(honest.broken)[0]))
        return replace(honest, status=np.full_like(honest.status, "proven"))

    monkeypatch.setattr(robustness_evaluate, "verify", lie)
    with pytest.raises(ContradictionError, match="test sample") as raised:
        evaluate_robustness(without_noise, budget=PROVING)
    assert f"sample {broken[0]}" in str(raised.value)


def test_evaluate_answers_every_point(
    light: None, run_copy: Path, small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", f"--model={run_copy}", f"--data={small_npz}", "--device=cpu"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    content = json.loads((run_copy / "robustness.json").read_text())
    assert set(content) > KEYS
    assert [point["id"] for point in content["points"]] == list(range(1, 21))
    assert [point["name"] for point in content["points"]] == [name for name, _ in _POINTS]
    assert NOT_RUN not in [point["value"] for point in content["points"]]
    assert "worst case over all" in printed
    lowest = min(line["majority"] for line in content["attacks"])
    assert content["all_right_accuracy"] <= content["worst_case_accuracy"] <= lowest
    assert "constant answer" in content["verdict"]
    assert set(content["others"]) == {
        "undefended",
        "noise only",
        "linear denoiser",
        "denoiser without noise",
        "adversarially trained",
    }
    assert 0 <= content["worst_case_interval"][0] <= content["worst_case_interval"][1] <= 1
    rounds = content["worst_case_rounds"]
    assert rounds["low"] <= content["worst_case_accuracy"] <= rounds["high"]
    rows = content["worst_points"]["rows"]
    assert rows["Robust_Baseline"]["accuracy"] == pytest.approx(
        content["others"]["undefended"]["worst_case_accuracy"], abs=1e-6
    )
    pixels = content["points"][0]["value"]["pixel_space"]
    for name in ("undefended", "defended"):
        curve = [*pixels[name]["robust_accuracy"], pixels[name]["after_twice_the_steps"]]
        assert curve == sorted(curve, reverse=True)
    page = (run_copy / "robustness.html").read_text()
    assert "Twenty points" in page
    assert page.count("data:image/png") >= 1  # images too, where one was broken
    with np.load(run_copy / "robustness.npz") as saved:
        x = np.load(run_copy / "adversarial.npz")["x_clean"]
        assert saved["points"].shape == (len(content["attacks"]), *x.shape)
        assert np.abs(saved["points"] - x).max() <= 0.1 + 1e-6
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_papers_preset_only_counts_again(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"--model={run_copy}", "--preset=paper", "--device=cpu"]) == 0
    content = json.loads((run_copy / "robustness.json").read_text())
    assert [line["name"] for line in content["attacks"]] == ["clean", "the paper's protocol"]
    values = {point["id"]: point["value"] for point in content["points"]}
    for i in (6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 19):
        assert values[i] == NOT_RUN
    assert values[1]["pixel_space"] == NOT_RUN
    assert values[20]["model_calls"] == 0
    assert "Not run: 6 Gradient" in capsys.readouterr().out


def test_run_with_an_honest_evaluation_of_a_robust_preset(
    light: None, tmp_path: Path, small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = [*SMALL, "--preset=trades", "--evaluation=honest", "--defence.epochs=3", "--seeds=2"]
    assert main(["run", f"--data={small_npz}", f"--out={out}", *options]) == 0
    home = out / "seed_1"
    model = load_model(home)
    assert type(model.defended) is FeatureCNN
    assert model.defended is model.robust_classifier
    content = json.loads((home / "robustness.json").read_text())
    names = [line["name"] for line in content["attacks"]]
    assert "APGD-margin" in names
    assert not any("EOT" in name or "purifier" in name for name in names)
    assert content["threat_model"]["noise"] == "none"
    assert 'id="robustness"' in (home / "report.html").read_text()
    summary = json.loads((out / "summary.json").read_text())
    worst = summary["robustness"]["worst_case_accuracy"]
    assert worst["low"] <= worst["mean"] <= worst["high"]
    assert "worst case over all attacks" in capsys.readouterr().out
    metrics = json.loads((home / "metrics.json").read_text())
    assert metrics["n_predictions"] == 1
    assert "defence_training" in (home / "timings.json").read_text()
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128), dtype=np.uint8)
    assert np.array_equal(model.predict_proba(images), model.predict_proba(images, seed=5))


@pytest.mark.parametrize("preset", ["smoothing", "purified"])
def test_validation_chooses_the_noise_level(preset: str, tmp_path: Path, small_npz: Path) -> None:
    out = tmp_path / "run"
    options = [*SMALL, f"--preset={preset}", "--defence.epochs=2"]
    options += ["--defence.candidate_timesteps=[3,900]", "--defence.n_steps=2"]
    assert main(["run", f"--data={small_npz}", f"--out={out}", *options]) == 0
    levels = json.loads((out / "metrics.json").read_text())["noise_levels"]
    assert [level["timestep"] for level in levels] == [3, 900]
    best = max(levels, key=lambda level: level["clean"] + level["attacked"])
    model = load_model(out)
    assert model.purifier.timesteps.tolist() == [best["timestep"]]
    assert model.defended.purifier is model.purifier
    assert model.defended.classifier is model.robust_classifier
    assert model.diffusion.timesteps == (best["timestep"],)


def test_three_classes_a_noisy_chain_and_an_l2_ball(light: None, tmp_path: Path) -> None:
    """What few runs have: DLR, every step of a chain, certificates of L2 left out for a chain."""
    out, data = tmp_path / "run", make_npz(tmp_path / "three.npz", n_classes=3, n=90)
    options = [
        "--attack.norm=L2",
        "--attack.attack_eps=0.2",
        "--attack.attacks=[apgd-ce,apgd-dlr]",
        "--diffusion.timesteps=[41,20]",
        "--diffusion.eta=0.5",
        "--evaluation=honest",
    ]
    assert main(["run", f"--data={data}", f"--out={out}", *SMALL, *options]) == 0
    content = json.loads((out / "robustness.json").read_text())
    names = [line["name"] for line in content["attacks"]]
    assert "APGD-DLR, EOT 2" in names
    assert "APGD on the purifier's every step" in names
    values = {point["id"]: point["value"] for point in content["points"]}
    assert values[2]["largest_move"] == pytest.approx(0.2, abs=1e-4)
    assert values[4]["dlr"] == "run"
    assert values[19] == NOT_RUN
    assert content["worst_points"]["comparisons"]["robust"]["delong"] is None


def test_groups_of_the_test_images_come_back_from_a_saved_run(light: None, tmp_path: Path) -> None:
    out, data = tmp_path / "run", make_npz(tmp_path / "grouped.npz")
    with np.load(data) as saved:
        arrays = dict(saved)
    np.savez(data, **arrays, series=np.arange(60) // 3)
    assert main(["run", f"--data={data}", f"--out={out}", *SMALL]) == 0
    saved_run = SavedRun.load(out)
    np.testing.assert_array_equal(saved_run.groupings["series"], np.arange(45, 60) // 3)
    result = evaluate_robustness(saved_run, preset="paper")
    assert result.report.verdict.drawn == "series"


def test_the_joint_classifier_stands_alone(
    light: None, tmp_path: Path, small_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = [*SMALL, "--preset=joint", "--defence.epochs=2", "--evaluation=honest"]
    assert main(["run", f"--data={small_npz}", f"--out={out}", *options]) == 0
    model = load_model(out)
    assert model.defended is model.robust_classifier
    content = json.loads((out / "robustness.json").read_text())
    assert {"undefended", "adversarially trained", "noise only"} < set(content["others"])
    options = [f"--data={small_npz}", f"--out={tmp_path / 'other'}", "--defence.kind=joint"]
    assert main(["run", *options, "--defence.candidate_timesteps=[5]"]) == 2
    assert "defence.candidate_timesteps=(5,)" in capsys.readouterr().err


def test_other_images_are_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = SavedRun.load(run_copy)
    with pytest.raises(ValueError, match="does not hold the images"):
        run.test_images(str(_shifted(run_copy)))
    with pytest.raises(ValueError, match="images must have shape"):
        evaluate_robustness(run, budget=LIGHT, images=torch.rand(3, 16384))
    (run_copy / "features.npz").unlink()
    assert main(["evaluate", f"--model={run_copy}"]) == 2
    assert "features.npz missing" in capsys.readouterr().err


def _shifted(home: Path) -> Path:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60, 128, 128), dtype=np.uint8)
    split = np.repeat(["train", "valid", "test"], [30, 15, 15])
    np.savez(home / "other.npz", images=images, labels=np.arange(60) % 2, split=split)
    return home / "other.npz"


def test_gradcheck_from_pixels_through_the_whole_chain() -> None:
    """Image, NNLS, selection, normalisation, purifier and CNN, in float64; the noise is held."""
    generator = torch.Generator().manual_seed(0)
    components = torch.rand(5, 20, generator=generator, dtype=torch.float64)
    extractor = FeatureExtractor(components, torch.tensor([3, 0, 1, 4]), image_shape=(4, 5))
    torch.manual_seed(1)
    purifier = DiffusionPurifier(
        FeatureDenoiser(4, hidden=8, embedding_dim=4),
        NoiseSchedule.linear(50),
        timesteps=(20, 5),
        n_draws=2,
        eta=0.5,
    )
    defended = DefendedClassifier(purifier, FeatureCNN(4, 3)).double()
    chain = ImageChain(extractor, FixedNoise(defended, 7))
    images = torch.rand(3, 20, generator=generator, dtype=torch.float64).requires_grad_()
    assert bool((extractor(images) == 0).any())  # some coefficients lie on the boundary
    assert torch.autograd.gradcheck(chain, images, eps=1e-7, atol=1e-5)


def defended_of(n_features: int, **settings: object) -> DefendedClassifier:
    torch.manual_seed(0)
    purifier = DiffusionPurifier(
        FeatureDenoiser(n_features), NoiseSchedule.linear(100), **{"n_draws": 2, **settings}
    )
    return DefendedClassifier(purifier, FeatureCNN(n_features, 2)).eval()


def test_linear_denoiser_is_the_best_linear_guess() -> None:
    """Least squares from noisy to clean features, on a sample, finds the same map."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    x = 0.1 * torch.randn(20000, 4, generator=generator, dtype=torch.float64) @ mix + 0.5
    model = LinearDenoiser(defended_of(4), x)
    noisy = x + model.scale * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    fitted = torch.linalg.lstsq(torch.cat((noisy, ones), 1), x).solution
    torch.testing.assert_close(model.filter, fitted[:4], rtol=0, atol=0.02)
    torch.testing.assert_close(model.denoised(x.mean(0)), x.mean(0))


@pytest.mark.parametrize("settings", [{}, {"timesteps": (60, 20), "eta": 1.0}])
def test_the_denoiser_without_noise_is_not_random(settings: dict[str, object]) -> None:
    defended = defended_of(5, **settings)
    model, x = WithoutNoise(defended), torch.rand(6, 5)
    assert torch.equal(model(x), model(x))
    noise = torch.zeros_like(defended.purifier.draw_noise(x))
    torch.testing.assert_close(model(x), defended(x, noise=noise))


def test_the_chain_from_pixels_has_the_right_gradient(small_run: tuple[Path, str]) -> None:
    model = load_model(small_run[0])
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((2, 16384)) * 0.5 + 0.25).requires_grad_()
    chain = ImageChain(model.extractor.double(), model.classifier.double())
    directions = torch.from_numpy(rng.standard_normal((3, 2, 16384)))
    (gradient,) = torch.autograd.grad(chain(images)[:, 0].sum(), images)
    assert bool((gradient.abs().amax(1) > 0).all())
    for direction in directions:
        with torch.no_grad():
            ahead, behind = (chain(images + s * 1e-5 * direction)[:, 0].sum() for s in (1, -1))
        difference = float(ahead - behind) / 2e-5
        assert difference == pytest.approx(float((gradient * direction).sum()), rel=1e-5)
