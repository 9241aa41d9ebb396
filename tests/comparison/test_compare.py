"""A whole comparison of stand-ins: what it measures, notes, goes on with, and shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnmf_cuda.baselines import System
from nnmf_cuda.comparison.compare import _measured, compare
from nnmf_cuda.comparison.journal import JOURNAL, WORK
from nnmf_cuda.comparison.measure import Finished, SplitImages, _check_proofs, fit_system
from nnmf_cuda.comparison.pixels import Spending
from nnmf_cuda.comparison.plan import Plan, PlannedSplit, chosen_systems, planned_splits
from nnmf_cuda.comparison.references import REFERENCES
from nnmf_cuda.evaluation.compared import GRADIENTS, QUERIES, Compared, Failed
from nnmf_cuda.evaluation.headline import ContradictionError
from nnmf_cuda.pipeline.config import DataConfig
from nnmf_cuda.report.comparison import comparison_page, comparison_text, folds_rows, main_rows
from tests.comparison.conftest import BROKEN, CENTROID, CNN, NearestCentroid, images_of

SPENDING = Spending(
    n_images=8, eps_255=(2.0, 30.0), n_iter=5, n_queries=12, n_check_queries=4, eot_iter=1
)


def plan_of(path: Path, *systems: System, **more: object) -> Plan:
    data = DataConfig(path=str(path))
    splits = (PlannedSplit("by patient"),)
    settings = {"spending": SPENDING, "splits": splits} | more
    return Plan(systems=systems, data=data, **settings)


def test_a_comparison_measures_every_system_and_names_what_fails(npz: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = compare(plan_of(npz, *REFERENCES, CENTROID, BROKEN, CNN), tmp_path, say=said.append)
    by_name = {one.system: one for one in found.measured}
    assert list(by_name) == ["constant", "nearest", "centroid", "cnn"]
    assert [(one.system, "pip install it" in one.reason) for one in found.failed] == [
        ("broken", True)
    ]
    assert any("broken failed" in line for line in said)
    # The two kinds differ in a bright place, which both learn.
    assert by_name["cnn"].metrics["accuracy"].estimate > 0.9
    assert by_name["centroid"].metrics["accuracy"].estimate > 0.9
    constant = by_name["constant"]
    shares = [share.estimate for share in constant.robust.accuracy]
    assert shares == [shares[0]] * 3  # nothing breaks an answer that does not look
    for one in found.measured:
        shares = [share.estimate for share in one.robust.accuracy]
        assert shares == sorted(shares, reverse=True)
        broken = sum(sum(counts) for counts in one.robust.broken_by.values())
        assert broken == round((shares[0] - shares[-1]) * one.robust.n)
        assert one.n_parameters is not None
        assert one.inference_ms > 0
        assert one.clustered_by == "patient"
    assert by_name["cnn"].robust.how == GRADIENTS
    assert by_name["centroid"].robust.how == QUERIES
    assert by_name["cnn"].robust.accuracy[-1].estimate < 0.5

    matrices = {one.attack: one for one in found.transfer}
    assert set(matrices) == {"strongest", "FGSM", "PGD"}
    assert matrices["FGSM"].sources == ("cnn",)  # whose authors transferred these
    main = matrices["strongest"]
    assert main.sources == main.targets == tuple(by_name)
    for name, share in main.worst.items():
        assert share.estimate <= by_name[name].robust.accuracy[-1].estimate
        column = main.targets.index(name)
        assert share.estimate <= min(row[column] for row in main.accuracy)

    # What failed may work the next time: the systems are kept.
    assert (tmp_path / WORK).is_dir()
    again = json.loads(json.dumps(found.as_dict()))
    assert Compared.from_dict(again) == found
    page = comparison_page(found, home=tmp_path)
    for text in ("A. Author 2020", "Deem et al. 2026", "pip install it", "99 %", "data:image/png"):
        assert text in page
    assert "could not be drawn" not in page
    assert "broken failed: ImportError" in comparison_text(found)


def test_a_comparison_goes_on_where_it_was_stopped(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(npz, CENTROID, CNN)
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    whole = compare(plan, other)
    assert not (other / WORK).exists()

    def stop(setting: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(replace(plan, systems=(CENTROID, replace(CNN, make=stop))), out)
    journal = out / JOURNAL
    with journal.open("a") as file:
        file.write('{"kind": "measured", "cut sh')
    said: list[str] = []
    monkeypatch.setattr("nnmf_cuda.comparison.compare._commit", lambda plan: "c0ffee")
    found = compare(plan, out, say=said.append)
    assert any("centroid finished before" in line for line in said)
    assert [line for line in said if line.startswith("results kept") and "c0ffee" in line]
    for mine, theirs in zip(found.measured, whole.measured, strict=True):
        assert mine.robust == theirs.robust
        assert mine.metrics == theirs.metrics
    assert found.transfer == whole.transfer
    # A transfer that was found without one of the systems is no end.
    cut = tmp_path / "cut"
    cut.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("nnmf_cuda.comparison.compare._measured", _without("cnn"))
        assert [one.targets for one in compare(plan, cut).transfer] == [("centroid",)]
    assert compare(plan, cut).transfer == whole.transfer
    # Finished, it is only read.
    lines = journal.read_text()
    assert compare(plan, out).measured == found.measured
    assert journal.read_text() == lines
    with pytest.raises(ValueError, match="comparison with another data, seeds"):
        compare(replace(plan, seeds=(1,)), out)
    with np.load(npz) as arrays:
        np.savez(npz, **{**arrays, "images": arrays["images"] // 2})
    with pytest.raises(ValueError, match="comparison with another data "):
        compare(plan, out)
    moved = images_of(12, 5, 2)
    np.savez(npz, **{**moved, "patient": moved["patient"] + 100})  # to whom intervals belong
    with pytest.raises(ValueError, match="comparison with another data "):
        compare(plan, out)
    np.savez(npz, **moved)
    journal.write_text(lines.splitlines()[0] + '\n{"kind": "none"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*compare.jsonl is not one that compare"):
        compare(plan, out)


def _without(name: str) -> Callable[..., Finished | None]:
    def measured(plan: Plan, system: System, *more: Any, **told: Any) -> Finished | None:
        return None if system.name == name else _measured(plan, system, *more, **told)

    return measured


def test_splits_are_looked_at_before_anything_is_trained(npz: Path, tmp_path: Path) -> None:
    with np.load(npz) as arrays:
        folds = arrays["patient"] // 2 % 4
        np.savez(npz, **{**arrays, "patient_fold": folds})
    data = DataConfig(path=str(npz))
    splits = planned_splits(data, folds=True, seed=0)
    plan = plan_of(npz, CENTROID, splits=splits)
    compare(plan, tmp_path)
    with np.load(npz) as arrays:  # only what later folds hold changes
        swapped = np.select([folds == 2, folds == 3], [3, 2], folds)
        np.savez(npz, **{**arrays, "patient_fold": swapped})
    with pytest.raises(ValueError, match="comparison with another data "):
        compare(plan, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with np.load(npz) as arrays:
        labels = np.where(folds == 3, 0, arrays["labels"])
        np.savez(npz, **{**arrays, "labels": labels, "patient_fold": folds})
    with pytest.raises(ValueError, match="class"):
        compare(plan, other)
    assert not (other / JOURNAL).exists()


def test_a_proof_and_a_point_that_breaks_it_are_an_error(npz: Path) -> None:
    split = SplitImages.of("own", plan_of(npz, CENTROID).load(PlannedSplit("by patient")), 4)
    radii, held = np.array([0.0, 0.02, 0.02, 0.02]), np.ones((3, 4), bool)
    held[1:, 0] = held[2, 1] = False  # not proven; broken beyond its radius
    _check_proofs(radii, held, (0.0, 2.0, 8.0), split)
    held[1:, 3] = False
    with pytest.raises(ContradictionError, match=f"test sample {split.attacked[3]}: .*2/255"):
        _check_proofs(radii, held, (0.0, 2.0, 8.0), split)


def test_three_classes_and_two_seeds_need_nothing_of_their_own(npz3: Path, tmp_path: Path) -> None:
    plan = plan_of(npz3, REFERENCES[1], CNN, seeds=(0, 1), random_labels=True)
    found = compare(plan, tmp_path)
    assert not found.failed
    assert [(one.system, one.seed) for one in found.measured] == [
        ("nearest", 0),
        ("nearest", 1),
        ("cnn", 0),
        ("cnn", 1),
    ]
    assert "APGD dlr" in found.measured[2].robust.broken_by
    assert {one.chance for one in found.random_labels} == {1 / 3}
    cells = [(one.labels_by, one.split_by) for one in found.random_labels if one.system == "cnn"]
    assert cells == [
        ("image", "image"),
        ("patient", "image"),
        ("patient", "patient"),
        ("patient", "the given split"),
    ]
    text = comparison_text(found)
    assert "±" in text
    assert "above chance is leakage" in text
    assert "Random labels" in comparison_page(found)


def test_a_mean_says_which_seeds_and_folds_it_lacks(npz: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(npz))
    splits = planned_splits(data, folds=True, seed=0)[:2]
    found = compare(plan_of(npz, REFERENCES[1], CENTROID, splits=splits, seeds=(0, 1)), tmp_path)
    kept = [one for one in found.measured if one.system == "nearest" or one.split == "fold 1"]
    lost = Failed("centroid", "fold 1", 1, "MemoryError: too large")
    kept = [one for one in kept if (one.system, one.seed) != ("centroid", 1)]
    found = replace(found, measured=kept, failed=[lost])
    whole, partly = main_rows(found, "fold 1")
    assert (whole.failure, partly.failure) == ("", "seed 1: MemoryError: too large")
    assert partly.cells
    assert "centroid failed: seed 1: MemoryError" in comparison_text(found)
    assert [row[0] for row in folds_rows(found)] == ["nearest", "centroid (1 of 2 folds)"]
    page = comparison_page(found)
    assert "failed from seed 1: MemoryError" in page
    # The large figures are those of the first seed, as the intervals beside them are.
    later = [replace(one, constant=0.123) if one.seed else one for one in kept]
    assert "0.123" not in comparison_page(replace(found, measured=later))


def test_what_has_not_learned_is_named_and_is_not_the_strongest(npz: Path, tmp_path: Path) -> None:
    found = compare(plan_of(npz, REFERENCES[0], CENTROID, CNN), tmp_path)
    said = "Clean, not clearly better than the constant answer"
    assert said not in comparison_text(found)
    assert said not in comparison_page(found)
    assert "of those with gradients, cnn" in comparison_page(found)
    # As if the constant answer were right as often as the network is.
    kept = [replace(one, constant=1.0) if one.system == "cnn" else one for one in found.measured]
    found = replace(found, measured=kept)
    assert said in comparison_text(found)
    page = comparison_page(found)
    assert f"{said}, so that what attacks leave says nothing: cnn." in page
    assert "of those with gradients, cnn" not in page


def test_controls_that_were_cut_short_are_completed(npz: Path, tmp_path: Path) -> None:
    plan = plan_of(npz, CENTROID, random_labels=True)
    whole = compare(plan, tmp_path)
    assert len(whole.random_labels) == 4
    journal = tmp_path / JOURNAL
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-2]))
    assert compare(plan, tmp_path).random_labels == whole.random_labels


def test_training_counts_what_another_system_has_spared(npz: Path) -> None:
    class Spared(NearestCentroid):
        spared_seconds_ = 1000.0

    plan = plan_of(npz, CENTROID)
    split = SplitImages.of("own", plan.load(plan.splits[0]), 8)
    assert 1000 < fit_system(Spared(), split) < 1100


def test_a_comparison_of_another_device_is_not_gone_on_with(npz: Path) -> None:
    plan = plan_of(npz, CENTROID)
    assert plan.key() != replace(plan, device=torch.device("cuda")).key()


def test_folds_are_measured_beside_each_other(npz: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(npz))
    splits = planned_splits(data, folds=True, seed=0)
    assert [one.name for one in splits] == [f"fold {fold}" for fold in range(1, 6)]
    found = compare(plan_of(npz, CENTROID, splits=splits[:2]), tmp_path)
    assert found.splits == ("fold 1", "fold 2")
    assert "2 folds, 1 seed: mean" in comparison_text(found)
    assert "each of which tests once" in comparison_page(found)


def test_what_cannot_be_planned_is_said() -> None:
    known = (CENTROID, CNN)
    assert [one.name for one in chosen_systems([], known=known)] == [
        "constant",
        "nearest",
        "centroid",
        "cnn",
    ]
    with pytest.raises(ValueError, match="--systems centriod: did you mean centroid"):
        chosen_systems(["centriod"], known=known)
    with pytest.raises(ValueError, match="cnn is given twice"):
        chosen_systems([], [CNN], known=known)
    with pytest.raises(ValueError, match="--folds needs --data"):
        planned_splits(DataConfig(), folds=True, seed=0)
    with pytest.raises(ValueError, match="--test_fold 2 is one fold"):
        planned_splits(DataConfig(path="x.npz", test_fold=2), folds=True, seed=0)
    with pytest.raises(ValueError, match="eps_255 must be growing"):
        Spending(eps_255=(8.0, 2.0))
    with pytest.raises(ValueError, match="eps_255 must be growing"):
        Spending(eps_255=(float("nan"),))
    with pytest.raises(ValueError, match="n_iter must be at least 1"):
        Spending(n_iter=0)
    with pytest.raises(ValueError, match="n_images must be at least 2"):
        Spending(n_images=1)


def test_the_data_do_not_move_between_systems(npz: Path, tmp_path: Path) -> None:
    found = compare(plan_of(npz, CENTROID), tmp_path)
    assert list(found.subject.data_sha256) == ["by patient"]
    with np.load(npz) as arrays:
        assert found.measured[0].n_train + found.measured[0].n_test < len(arrays["images"])
