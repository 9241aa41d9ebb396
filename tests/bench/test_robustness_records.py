"""The scripts that make the records of robustness, on small runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nnmf_cuda.models import FeatureExtractor
from nnmf_cuda.pipeline.config import AttackConfig
from nnmf_cuda.robustness import SavedRun

BENCH = Path(__file__).parents[2] / "bench"


def script(name: str) -> ModuleType:
    if not BENCH.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write what the record reads of a run that only counted the paper's protocol."""
    attacks = [{"name": "clean", "fresh": 0.9, "majority": 0.9, "all": 0.9, "seconds": 0.0}]
    kept = dict.fromkeys(script("robustness_record").KEPT, 0.5)
    points = [{"id": i, "value": "not run"} for i in range(1, 21)]
    points[0]["value"] = {"pixel_space": "not run"}
    points[17]["value"] = {"splits": {"test": {"n": 5}}, "most_similar_pairs": ["long"]}
    write(
        tmp_path / "robustness.json",
        **{**kept, "attacks": attacks, "points": points, "worst_points": None},
        others={"undefended": {"worst_case_accuracy": 0.1, "attacks": attacks}},
        about={"threads": 1},
    )
    info = {"seed": 3, "data": {"split_by": "patient_fold", "test_fold": "2"}}
    write(tmp_path / "model" / "model.json", defence={"kind": "joint"}, n_features=15, info=info)
    write(tmp_path / "metrics.json")
    write(tmp_path / "environment.json", commit="abc", uncommitted_changes=False, data_sha256="0")
    return tmp_path


def write(path: Path, **content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_line_holds_what_was_found(run: Path) -> None:
    line = script("robustness_record").line_of(run)
    assert line["worst_case_accuracy"] == 0.5
    assert line["attacks"] == {"clean": 0.9}
    assert line["others"]["undefended"]["attacks"] == {"clean": 0.9}
    assert (line["seed"], line["test_fold"], line["threads"]) == (3, "2", 1)
    assert line["planted"] == "not run"
    assert line["worst_points"] is None
    assert line["leakage"] == {"splits": {"test": {"n": 5}}, "patient_folds": None}


def test_certificates_are_those_of_smoothing() -> None:
    kept = {"clean_accuracy": 0.8, "certified_at_attack_eps": 0.5}
    found = {"denoised": {**kept, "sigma": 0.1}, "branch and bound": {"proven_accuracy": 0.7}}
    certificates_of = script("robustness_record").certificates_of
    assert certificates_of(found) == {"denoised": kept}
    assert certificates_of("not run") == {}


def test_the_text_is_json_with_a_line_a_run() -> None:
    record = {"runs": [{"a": 1}, {"b": [2, 3]}], "validation_trials": [{"c": None}]}
    text = script("robustness_record").as_text(record)
    assert json.loads(text) == record
    assert text.count("\n") == 8


@pytest.mark.parametrize("commit", [("", False), ("abc", True)])
def test_a_run_of_no_commit_is_refused(run: Path, commit: tuple[str, bool]) -> None:
    write(
        run / "environment.json", commit=commit[0], uncommitted_changes=commit[1], data_sha256="0"
    )
    with pytest.raises(ValueError, match="is no commit"):
        script("robustness_record").line_of(run)


def test_proofs_of_several_runs_are_summed_up(run: Path) -> None:
    record = script("proofs_record")
    shares = dict.fromkeys(record.SHARES, 0.5)
    lines = []
    for proven in (0.25, 0.75):
        write(
            run / "verification.json",
            **{**shares, "proven_accuracy": proven, "eps": 0.1, "norm": "Linf", "n": 4},
            n_boxes=[1, 2, 3, 4],
            seconds={"attack": [0.25] * 4, "search": [0.5] * 4},
        )
        write(run / "timings.json", rows=[{"stage": "defence_training", "seconds": 7.0}])
        settings = {"kind": "adversarial", "method": "trades", "network": "mlp"}
        model = json.loads((run / "model" / "model.json").read_text())
        write(run / "model" / "model.json", **{**model, "defence": settings})
        lines.append(record.line_of(run))
    assert [line["proven_accuracy"] for line in lines] == [0.25, 0.75]
    assert (lines[0]["n_boxes"], lines[0]["seconds"], lines[0]["test_fold"]) == (10, 3.0, "2")
    assert lines[0]["training_seconds"] == 7.0
    of_folds, of_fold = record.summary(lines).splitlines()[2:]
    assert of_folds.startswith("adversarial, trades, mlp  all folds")
    assert of_fold.startswith("adversarial, trades, mlp  fold 2")
    assert all("0.500 ± 0.354" in row for row in (of_folds, of_fold))


def test_saturation_deceives_autoattack_and_not_the_suite() -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 2), torch.rand(40, 6)
    torch.nn.init.normal_(model.weight)
    model.bias.data = -model.weight.data.sum(1) / 2  # the boundary goes through the middle
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    # Beyond a margin of 104 the gradient of the cross-entropy is zero in float32.
    saturating = 104 / float((logits[:, 0] - logits[:, 1]).abs().median())
    run = SavedRun(
        model=None,  # type: ignore[arg-type]
        x={"test": x},
        y={"test": y},
        attack=AttackConfig(attack_eps=0.15),
        paper={},
        seed=0,
    )
    module = script("against_autoattack")
    plain, scaled = (
        module.line_of(run, module.Scaled(model, factor).eval(), factor=factor)
        for factor in (1.0, saturating)
    )
    assert scaled["worst_case_accuracy"] == pytest.approx(plain["worst_case_accuracy"], abs=0.051)
    assert scaled["autoattack"]["apgd-ce"] > plain["autoattack"]["apgd-ce"]
    assert plain["broken_by_autoattack_alone"] <= 1


def test_lengths_of_moves() -> None:
    moves = torch.tensor([[3.0, -4.0], [0.0, 2.0]])
    assert script("pixel_reach").lengths(moves) == {"mean_linf": 3.0, "mean_l2": 3.5}


def test_pixels_reach_a_classifier_of_one_coefficient() -> None:
    """One component of equal pixels: 8/255 moves the share of two by what can be worked out."""
    components = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    extractor = FeatureExtractor(components, torch.tensor([0, 1]), image_shape=(2, 2))

    class Model:
        classifier = torch.nn.Linear(2, 2)

    Model.extractor = extractor  # type: ignore[attr-defined]
    Model.classifier.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    Model.classifier.bias.data.zero_()
    run = SavedRun(
        model=Model(),  # type: ignore[arg-type]
        x={},
        y={},
        attack=AttackConfig(attack_eps=0.1),
        paper={},
        seed=0,
    )
    near, far = [0.5, 0.5, 0.48, 0.48], [0.9, 0.9, 0.2, 0.2]
    images, y = torch.tensor([near, far]), torch.zeros(2, dtype=torch.int64)
    found = script("pixel_reach").reach_of(run, images, y, {"n_iter": 20, "n_restarts": 1})
    assert found["robust_accuracy"] == 0.5
    assert 0 < found["mean_linf"] < found["mean_l2"]


def test_pixels_are_summed_up_by_defence_and_split() -> None:
    settings = {"kind": "pixel", "method": "trades", "network": "cnn"}
    lines = [
        {
            "defence": settings,
            "test_fold": fold,
            "eps_255": [0.0, 8.0],
            "defended": [0.9, attacked],
            "after_twice_the_steps": attacked,
        }
        for fold, attacked in ((None, 0.8), (None, 0.7), ("1", 0.6), ("2", 0.5))
    ]
    rows = script("pixels_record").summary(lines).splitlines()
    assert "8/255" in rows[0]
    assert len(rows) == 2 + 4
    assert any("all folds" in row and "0.550 ± 0.071" in row for row in rows)
    assert any("published split" in row and "0.750 ± 0.071" in row for row in rows)
