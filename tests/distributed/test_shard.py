"""The rows that a process takes from what all processes can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from nnmf_cuda import NNMF
from nnmf_cuda.distributed import Shard
from tests.distributed.fits import Found, check_equal
from tests.distributed.team import Team, team_group


def shares(X: Any) -> np.ndarray:
    rows = Shard.of_rows(X, team_group()).rows
    return rows.toarray() if scipy.sparse.issparse(rows) else np.asarray(rows)


@pytest.mark.parametrize("n", [0, 3, 10])
def test_shares_of_what_all_can_read(team: Team, n: int) -> None:
    X = np.arange(2 * n).reshape(n, 2)
    for source in (X, scipy.sparse.csr_array(X), torch.from_numpy(X)):
        found = team.run(shares, *[source] * 4)
        np.testing.assert_array_equal(np.concatenate(found), X)
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_shares_of_several_parts(team: Team) -> None:
    X = np.arange(26).reshape(13, 2)
    parts = [X[:1], X[1:1], X[1:8], X[8:13]]
    for source in (
        parts,
        [scipy.sparse.csr_array(p) for p in parts],
        [torch.tensor(p) for p in parts],
    ):
        found = team.run(shares, *[source] * 3)
        np.testing.assert_array_equal(np.concatenate(found), X)
        assert list(map(len, found)) == [4, 4, 5]


def fit_to_file(call: tuple[str, Path, dict[str, Any]]) -> Found:
    """Fit to the own rows of a file."""
    kind, path, parameters = call
    if kind == "npy":
        X: Any = np.load(path, mmap_mode="r")
    elif kind == "list":
        X = [np.load(part, mmap_mode="r") for part in sorted(path.iterdir())]
    elif kind == "zarr":
        X = pytest.importorskip("zarr").open(path, mode="r")
    else:
        X = pytest.importorskip("h5py").File(path)["X"]
    shard = Shard.of_rows(X, team_group())
    assert kind != "npy" or isinstance(shard.rows, np.memmap)
    model = NNMF(**parameters).fit(shard)
    return Found.of(model, model.transform(shard))


@pytest.mark.parametrize("kind", ["npy", "list", "zarr", "hdf5"])
def test_files_are_read_by_ranges(team: Team, rng, tmp_path: Path, kind: str) -> None:
    X = rng.integers(1, 255, size=(37, 23)).astype(np.uint8)
    path = tmp_path / kind
    if kind == "npy":
        path = tmp_path / "X.npy"
        np.save(path, X)
    elif kind == "list":
        path.mkdir()
        for name, rows in zip("abc", (X[:5], X[5:20], X[20:]), strict=True):
            np.save(path / f"{name}.npy", rows)
    elif kind == "zarr":
        made = pytest.importorskip("zarr").open(
            path, mode="w", shape=X.shape, chunks=(10, 23), dtype="u1"
        )
        made[:] = X
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["X"] = X
    parameters: dict[str, Any] = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5}
    found = team.run(fit_to_file, *[(kind, path, parameters)] * 3)
    check_equal(found, X, parameters, 2e-4)
