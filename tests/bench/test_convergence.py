"""Time to scikit-learn's objective: the search for the iteration, and the records."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import convergence
from bench.convergence import RACES, Race, first_reaching
from bench.tables import records_table
from nnmf_cuda import NNMF

KL = Race("kullback-leibler", "mu", 10, ("mu",))


@pytest.fixture(scope="module")
def start():
    return convergence._start("phantom", smoke=True)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 10), (10, 20), (3, 100)])
def test_first_reaching_finds_every_iteration(low, high):
    for first in range(low + 1, high + 1):
        asked = []

        def reaches(i, first=first, asked=asked):
            asked.append(i)
            return i >= first

        assert first_reaching(reaches, low, high) == first
        assert len(asked) <= np.ceil(np.log2(high - low))
        assert all(low < i < high for i in asked)


@pytest.mark.parametrize("first", [1, 7, 10, 11, 23, 79, 80])
def test_bracket_holds_the_first_iteration(first):
    fits = []

    def fit(max_iter):
        fits.append(max_iter)
        iterations = np.unique([*range(0, max_iter, 10), max_iter])
        return SimpleNamespace(
            objective_iterations_=iterations, objective_history_=first + 0.5 - iterations
        )

    low, high = convergence._bracket(fit, 0.5, first=10, most=80)
    assert low < first <= high
    assert high - low <= 10
    assert max(fits) < max(2 * first, 11)
    assert convergence._bracket(fit, -80.5, first=10, most=80) is None


def test_objective_is_the_divergence_over_all_rows(start, monkeypatch):
    X = start.X.double().numpy()
    WH = start.W.double().numpy() @ start.H.double().numpy()
    positive = X > 0
    logs = np.log(X[positive] / WH[positive])
    exact = (X[positive] * logs).sum() - X.sum() + WH.sum()
    found = convergence._objective(start, start.W, start.H, "kullback-leibler")
    assert found == pytest.approx(exact, rel=1e-6)
    frobenius = convergence._objective(start, start.W, start.H, "frobenius")
    assert frobenius == pytest.approx(((X - WH) ** 2).sum() / 2, rel=1e-12)


def test_our_fit_reaches_the_goal_and_the_one_before_does_not(start):
    goal = convergence._sklearn(start, KL, 25)["objective"]
    found = convergence._ours(start, KL, "mu", goal=goal, n_iter=25, device=torch.device("cpu"))
    assert found["status"] == "ok"
    assert found["objective"] <= goal
    assert found["iterations"] in (24, 25, 26)  # the same algorithm, up to rounding
    assert found["median_ms"] > 0
    model = NNMF(3, init="custom", max_iter=found["iterations"] - 1, tol=0)
    model.fit(start.X, W=start.W, H=start.H)
    assert convergence._objective(start, model.W_, model.components_, KL.beta_loss) > goal


def test_a_goal_out_of_reach_is_a_failure(start):
    found = convergence._ours(start, KL, "mu", goal=1e-9, n_iter=2, device=torch.device("cpu"))
    assert found["status"] == "failed"
    assert "above the goal after 16 iterations" in found["reason"]
    assert "median_ms" not in found


def test_a_solver_that_refuses_is_a_failure(start):
    found = convergence._ours(start, KL, "hals", goal=1.0, n_iter=2, device=torch.device("cpu"))
    assert found["status"] == "failed"
    assert found["reason"].startswith("ValueError: ")
    assert "hals" in found["reason"]


def test_a_broken_solver_does_not_stop_the_others(start, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("diverged\nwith details")

    monkeypatch.setattr(convergence, "_time_to", broken)
    found = convergence._ours(start, KL, "mu", goal=1.0, n_iter=2, device=torch.device("cpu"))
    assert (found["status"], found["reason"]) == ("failed", "RuntimeError: diverged")


def test_smoke_run(tmp_path, monkeypatch):
    monkeypatch.delenv("NNMF_CUDA_DATA", raising=False)
    path = tmp_path / "records.jsonl"
    records = convergence.run_convergence_benchmarks(smoke=True, json_path=path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    expected = [
        (race.beta_loss, name)
        for race in RACES
        for name in (f"scikit-learn {race.sklearn_solver}", *(f"ours {s}" for s in race.solvers))
    ]
    assert [(r["options"]["beta_loss"], r["impl"]) for r in records] == expected
    for record in records:
        assert record["suite"] == "convergence"
        assert record["size"] == "phantom"
        assert record["ceilings"]["gemm_gflops"] > 0
        assert record["status"] != "skipped"
        if record["status"] == "ok":
            assert record["objective"] <= record["goal"]
    mu = {r["impl"]: r for r in records if r["options"]["beta_loss"] == "kullback-leibler"}
    assert mu["ours mu"]["status"] == "ok"
    assert "objective" in records_table(records)


def test_real_data_is_named_in_the_record(tmp_path, monkeypatch):
    from nnmf_cuda.data import phantom

    dataset = phantom((12, 2, 2), 1, image_shape=(16, 16))
    names = {"images": dataset.images, "labels": dataset.labels, "split": dataset.split}
    np.savez(tmp_path / "darabi.npz", **names)
    monkeypatch.setenv("NNMF_CUDA_DATA", str(tmp_path))
    assert convergence._default_data() == ["phantom", str(tmp_path / "darabi.npz")]
    start = convergence._start(str(tmp_path / "darabi.npz"), smoke=True)
    assert start.source == "darabi.npz"
    assert start.X.shape == (12, 128 * 128)
    assert start.X.max() <= 1
