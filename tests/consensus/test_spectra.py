"""Spectra of many runs: their density, their clusters, and each run alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.plain_consensus import plain_consensus
from nnmf_cuda.consensus.spectra import (
    BLOCK_ROWS,
    consensus_spectra,
    local_density,
    seeded_runs,
    unit_spectra,
)
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.minimisation import all_runs
from nnmf_cuda.nnmf.problem import Objective, Penalty, Problem
from nnmf_cuda.nnmf.starts import Origin, iter_starts


def noisy_copies(rng, programs, n_runs, *, noise=0.02):
    """Spectra of runs that find the programs, each run in its own order and scale."""
    merged = []
    for _ in range(n_runs):
        rows = programs[rng.permutation(len(programs))]
        rows = rows * rng.uniform(1, 50, (len(rows), 1))
        merged.append(rows * rng.uniform(1 - noise, 1 + noise, rows.shape))
    return np.concatenate(merged)


@pytest.mark.parametrize("n", [2, 33, BLOCK_ROWS + 3])
def test_local_density_is_the_mean_distance_to_the_nearest_others(rng, n):
    unit, _ = unit_spectra(rng.random((n, 17)))
    n_neighbors = min(5, n - 1)
    distances = np.linalg.norm(unit[:, None] - unit, axis=2)
    expected = np.sort(distances, 1)[:, 1 : n_neighbors + 1].mean(1)
    np.testing.assert_allclose(local_density(unit, 5), expected, rtol=1e-10)


def test_equal_spectra_have_no_distance(rng):
    unit, _ = unit_spectra(np.tile(rng.random((1, 40)), (9, 1)))
    assert local_density(unit, 4).max() < 1e-7


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_unit_spectra_have_length_one_in_any_units(rng, scale):
    spectra = rng.random((6, 11))
    spectra[2] = 0
    unit, silent = unit_spectra(scale * spectra)
    np.testing.assert_array_equal(silent, np.arange(6) == 2)
    lengths = np.linalg.norm(unit, axis=1)
    np.testing.assert_allclose(lengths, np.where(silent, 0, 1), rtol=1e-12)
    reference = spectra[0] / np.linalg.norm(spectra[0])
    np.testing.assert_allclose(unit[0], reference, rtol=1e-12)


def test_the_consensus_is_that_of_the_plain_steps(rng):
    merged = noisy_copies(rng, rng.gamma(0.5, size=(4, 50)), 20, noise=0.3)
    found = consensus_spectra(merged, 4, density_threshold=0.3, local_neighborhood_size=0.3)
    plain = plain_consensus(
        merged[:10], merged, 4, density_threshold=0.3, local_neighborhood_size=0.3
    )
    np.testing.assert_allclose(found.local_density, plain.local_density, rtol=1e-9)
    order = np.argsort(found.spectra[:, 0])
    plain_order = np.argsort(plain.spectra[:, 0])
    np.testing.assert_allclose(found.spectra[order], plain.spectra[plain_order], rtol=1e-9)
    assert found.silhouette == pytest.approx(plain.silhouette)


def test_what_lies_apart_is_left_out(rng):
    programs = np.kron(np.eye(3), np.ones(12)) + 0.01
    merged = noisy_copies(rng, programs, 20)
    # Two that no other run has found, and one of a run whose component died.
    merged[7] = rng.gamma(0.1, size=36)
    merged[31] = rng.gamma(0.1, size=36)
    merged[40] = 0
    found = consensus_spectra(merged, 3, density_threshold=0.3, local_neighborhood_size=0.3)
    np.testing.assert_array_equal(np.flatnonzero(found.labels < 0), [7, 31, 40])
    assert (found.local_density[[7, 31, 40]] > 0.3).all()
    np.testing.assert_allclose(found.spectra.sum(1), 1)
    order = found.spectra.argmax(1).argsort()
    np.testing.assert_allclose(
        found.spectra[order], programs / programs.sum(1, keepdims=True), rtol=0.05
    )
    # Of each program, the other runs.
    assert sorted(np.bincount(found.labels[found.labels >= 0])) == [18, 19, 20] or (
        np.bincount(found.labels[found.labels >= 0]).sum() == 57
    )


def test_spectra_of_zeros_join_no_cluster_whatever_the_threshold(rng):
    merged = noisy_copies(rng, np.kron(np.eye(3), np.ones(12)) + 0.01, 5)
    merged[4] = 0
    found = consensus_spectra(merged, 3, density_threshold=2, local_neighborhood_size=0.3)
    np.testing.assert_array_equal(np.flatnonzero(found.labels < 0), [4])


def test_one_cluster_has_no_silhouette(rng):
    merged = noisy_copies(rng, rng.random((1, 30)), 6)
    found = consensus_spectra(merged, 1, density_threshold=0.5, local_neighborhood_size=0.3)
    assert np.isnan(found.silhouette)
    np.testing.assert_allclose(found.spectra.sum(), 1)


def test_a_threshold_that_leaves_too_few_says_what_would_do(rng):
    merged = noisy_copies(rng, rng.random((4, 30)), 5, noise=0.5)
    with pytest.raises(
        ValueError, match=r"density_threshold=0\.001 keeps 0 of 20 spectra.*2 keeps"
    ):
        consensus_spectra(merged, 4, density_threshold=0.001, local_neighborhood_size=0.3)


def test_a_cluster_with_nothing_in_common_is_an_error():
    merged = np.eye(9)
    with pytest.raises(ValueError, match="agree on no feature"):
        consensus_spectra(merged, 3, density_threshold=2, local_neighborhood_size=0.3)


@pytest.mark.parametrize(("solver", "beta_loss"), [("hals", 2.0), ("accelerated-mu", 1.0)])
def test_each_run_is_that_of_its_seed_alone(rng, solver, beta_loss):
    X = torch.from_numpy(rng.gamma(1, size=(40, 3)) @ rng.random((3, 30)))
    problem = Problem(Dense(X), Objective(beta_loss, Penalty()))
    origin = Origin("random", mean=float(X.mean()))
    options = {"solver": solver, "max_iter": 200, "tol": 1e-4}
    seeds = [5, 11, 2**32 - 2, 3]
    entries = 3 * (40 + 30)
    runs = list(seeded_runs(problem, 3, origin, seeds, batch_entries=3 * entries, **options))
    assert sorted(run.restart for run in runs) == [0, 1, 2, 3]
    for run in runs:
        alone = Origin("random", random_state=seeds[run.restart], mean=origin.mean)
        ((W, H),) = iter_starts(problem.X, 3, alone)
        (expected,) = all_runs(problem, W[None], H[None], **options)
        torch.testing.assert_close(run.H, expected.H, rtol=1e-9, atol=1e-12)
        assert run.iterations == expected.iterations


def test_a_run_that_overflows_names_its_seed(rng):
    X = torch.from_numpy(rng.random((6, 5)))
    X[0, 0] = 1e200
    problem = Problem(Dense(X), Objective(2.0, Penalty()))
    runs = seeded_runs(problem, 2, Origin("random"), [7], solver="mu", max_iter=20, tol=0)
    with pytest.raises(ValueError, match="n_components=2 from seed 7 overflowed"):
        list(runs)
