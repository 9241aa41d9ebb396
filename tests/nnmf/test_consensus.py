from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import squareform

from nnmf_cuda.nnmf import rank_selection as _consensus
from nnmf_cuda.nnmf.rank_selection import (
    assignments,
    component_similarity,
    consensus,
    cophenetic_correlation,
    dispersion,
)
from tests.helpers import plain_consensus, plain_cophenetic


@pytest.mark.parametrize("block_rows", [1, 4, 512])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_consensus_scores_are_those_of_the_definitions(rng, monkeypatch, noise, block_rows):
    monkeypatch.setattr(_consensus, "_BLOCK_ROWS", block_rows)
    true = rng.integers(0, 4, 17)
    shaken = np.where(rng.random((9, 17)) < noise, rng.integers(0, 4, (9, 17)), true)
    labels = np.stack([rng.permutation(4)[run] for run in shaken])  # labels mean nothing
    matrix = plain_consensus(labels)
    pairs = consensus(torch.from_numpy(labels))
    np.testing.assert_allclose(squareform(pairs) + np.eye(17), matrix, atol=1e-12)
    # Kim & Park 2007: the sum of 4 (c - 1/2)^2 over all i and j, over n^2.
    assert dispersion(pairs, 17) == pytest.approx(np.sum(4 * (matrix - 0.5) ** 2) / 17**2)
    assert cophenetic_correlation(pairs) == pytest.approx(plain_cophenetic(matrix), rel=1e-9)
    if noise == 0:
        assert dispersion(pairs, 17) == cophenetic_correlation(pairs) == 1


def test_equal_distances_are_kept_exactly():
    assert cophenetic_correlation(np.full(6, 0.5)) == 1
    assert dispersion(np.full(6, 0.5), 4) == 0.25  # the diagonal alone
    assert cophenetic_correlation(np.ones(1)) == 1


def test_assignments_do_not_depend_on_the_scale_of_components(rng):
    W, H = torch.from_numpy(rng.random((30, 5))), torch.from_numpy(rng.random((5, 8)))
    W[3] = 0
    scale = torch.tensor([1e-3, 1.0, 7.0, 1e4, 0.2], dtype=torch.float64)
    labels = assignments(W, H)
    assert torch.equal(assignments(W / scale, H * scale[:, None]), labels)
    want = [np.outer(W[i], np.ones(8)) * H.numpy() for i in range(30)]  # the parts of row i
    np.testing.assert_array_equal(
        labels, [5 if i == 3 else part.sum(1).argmax() for i, part in enumerate(want)]
    )


def test_component_similarity_is_the_mean_over_the_best_matching(rng):
    runs = rng.random((4, 3, 10)) ** 3

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    scores = [
        max(
            np.mean([cosine(runs[i, t], runs[j, p[t]]) for t in range(3)])
            for p in permutations(range(3))
        )
        for i in range(4)
        for j in range(i)
    ]
    found = component_similarity(torch.from_numpy(runs))
    assert found == pytest.approx(np.mean(scores), rel=1e-12)
    shuffled = np.stack([(2.0 + i) * runs[0, rng.permutation(3)] for i in range(4)])
    assert component_similarity(torch.from_numpy(shuffled)) == pytest.approx(1, abs=1e-12)


def test_a_component_of_zeros_is_like_nothing():
    runs = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    runs[1, 1] = 0
    assert component_similarity(runs) == pytest.approx(0.5)
