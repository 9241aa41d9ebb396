"""Digests of rows: the same however they are dealt, others for other rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from nnmf_cuda.nnmf.fingerprints import described, digest_of_rows
from nnmf_cuda.nnmf.inputs import as_matrix
from nnmf_cuda.nnmf.matrix import Dense, Matrix
from nnmf_cuda.nnmf.weighted_matrix import Told

DEALT = ([37], [20, 17], [0, 1, 30, 6])


@dataclass
class Part:
    """Where rows are among all, and what the processes before have added up."""

    own_rows: slice
    before: int

    def gathered(self, value: int) -> list[int]:
        return [self.before, value]


def digest(X: Any, counts: list[int], **told: Any) -> str:
    """Return the digest of rows that are dealt so."""
    first, found = 0, "0"
    weighted = bool(told)
    for count in counts:
        rows = slice(first, first + count)
        first += count
        if count:
            mask = {name: value[rows] for name, value in told.items()}
            own: Matrix = as_matrix(X[rows], torch.device("cpu"), "NNMF", Told(**mask))[0]
        else:
            own = Dense(torch.ones(0, X.shape[1], dtype=torch.float64))
        found = digest_of_rows(own, Part(rows, int(found, 16)), weighted=weighted)  # type: ignore[arg-type]
    return found


@pytest.fixture
def X(rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(0.5, size=(37, 11)).astype(np.float64)


@pytest.mark.parametrize("kind", ["float64", "float32", "uint8", "sparse", "mask", "weights"])
def test_digests_do_not_depend_on_the_dealing(X: np.ndarray, rng, kind: str) -> None:
    told, changed = {}, X.copy()
    changed[30, 4] += 1
    if kind == "mask":
        told["mask"] = rng.random(X.shape) < 0.7
        told["mask"][20:] = True  # nothing is left out there
        told["mask"][30, 4] = True
    elif kind == "weights":
        told["weights"] = rng.random(X.shape) + 0.1
    swapped = X[[1, 0, *range(2, 37)]]
    versions = [scipy.sparse.csr_array(v) if kind == "sparse" else v for v in (X, changed, swapped)]
    if kind in ("float32", "uint8"):
        versions = [version.astype(kind) for version in versions]
    digests = [[digest(v, counts, **told) for counts in DEALT] for v in versions]
    assert all(len(set(of_version)) == 1 for of_version in digests)
    assert len({of_version[0] for of_version in digests}) == 3
    assert all(len(one) == 16 for one in digests[0])
    if told:
        name, values = next(iter(told.items()))
        other = values.copy()
        other[3, 3] = not other[3, 3] if name == "mask" else other[3, 3] + 1
        assert digest(X, [37], **{name: other}) != digests[0][0]


def test_types_of_indices_do_not_count(X: np.ndarray) -> None:
    sparse = scipy.sparse.csr_array(X)
    wide = scipy.sparse.csr_array(X)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert digest(sparse, [37]) == digest(wide, [20, 17])
    moved = sparse.copy()
    row = np.flatnonzero(np.diff(sparse.indptr) == 1)[0] if 1 in np.diff(sparse.indptr) else 0
    place = sparse.indptr[row]
    free = np.setdiff1d(np.arange(11), sparse.indices[place : sparse.indptr[row + 1]])
    moved.indices[place] = free[0]
    moved.sort_indices()
    assert digest(moved, [37]) != digest(sparse, [37])


def test_values_in_words() -> None:
    assert described(np.float64(0.5)) == 0.5
    assert described("mu") == "mu"
    assert described([1, 2]) == described(torch.tensor([1.0, 2.0]))
    assert described(np.ones((2, 3))) != described(np.ones((3, 2)))
    assert described(np.ones((0, 3))).startswith("(0, 3) ")
    assert described(("a", 1)) == "('a', 1)"
