"""A fit of several processes that was stopped goes on, with as many of them or with others."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from torch.distributed.device_mesh import init_device_mesh

from nnmf_cuda import NNMF
from nnmf_cuda.distributed import RanksError, Shard
from nnmf_cuda.nnmf import dealt_file
from nnmf_cuda.nnmf.minimisation import Minimisation
from nnmf_cuda.nnmf.tensor_file import Kind, read_tensors
from tests.distributed.fits import SHARES, Fit, Found, fits_of, slices
from tests.distributed.team import Team, team_group

N, F = 37, 23

PARAMETERS: dict[str, Any] = {"n_components": 3, "max_iter": 45, "tol": 0, "random_state": 5}

CASES: dict[str, dict[str, Any]] = {
    "mu": {},
    "accelerated": {"solver": "accelerated-mu"},
    "hals": {"solver": "hals", "beta_loss": 2},
    "semi": {"solver": "semi", "beta_loss": 2},
    "cd": {"solver": "cd"},
    "restarts": {"solver": "accelerated-mu", "n_init": 4, "tol": 1e-2, "max_iter": 200},
    "mask": {},
    "labels": {"graph": "labels", "alpha_H": 0.01},
    "start": {"init": "custom"},
}


class Interrupted(Exception):
    """What stops a fit in these tests."""


def fit_from_file(fit: Fit) -> Found:
    """Fit with a checkpoint, and stop on one rank where told."""
    call = dict(fit.call)
    stop, alone = call.pop("stop", None), call.pop("alone", 0)

    def callback(record: Any) -> None:
        if stop is not None and record.iteration >= stop and team_group().rank() == alone:
            raise Interrupted

    model = NNMF(**fit.parameters).fit(Shard(fit.rows, team_group()), callback=callback, **call)
    return Found.of(model, model.W_)


def go_on(team: Team, X: Any, size: int, parameters: dict[str, Any], path: Path, **call: Any):
    """Fit with the file, to the end or until `stop`."""
    told = {name: call.pop(name) for name in ("stop", "alone", "checkpoint_every") if name in call}
    fits = [
        Fit(fit.rows, parameters, {**fit.call, "checkpoint": path, **told})
        for fit in fits_of(X, SHARES[size], parameters, **call)
    ]
    return team.run(fit_from_file, *fits)


def stop_at(
    team: Team, X: Any, size: int, parameters: dict[str, Any], path: Path, stop: int, **call
):
    found = go_on(team, X, size, parameters, path, stop=stop, checkpoint_every=0, **call)
    assert isinstance(found[0], Interrupted)
    assert all(isinstance(one, RanksError) for one in found[1:])


def matrix(rng: np.random.Generator) -> np.ndarray:
    return rng.gamma(1.0, size=(N, 4)) @ rng.gamma(1.0, size=(4, F)) + 0.01 * rng.random((N, F))


def copied(path: Path, folder: Path) -> Path:
    """Copy a checkpoint."""
    folder.mkdir()
    for found in path.parent.glob(f"{path.name}*"):
        (shutil.copytree if found.is_dir() else shutil.copy)(found, folder / found.name)
    return folder / path.name


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_fit_goes_on(team: Team, rng, tmp_path: Path, name: str) -> None:
    X: Any = matrix(rng)
    parameters, call = PARAMETERS | CASES[name], {}
    if name == "cd":
        X = scipy.sparse.csr_array(rng.poisson(0.4, size=(N, F)).astype(np.float64))
    elif name == "mask":
        call["mask"] = rng.random(X.shape) < 0.8
        call["mask"][20:] = True  # the last ranks have nothing to leave out
    elif name == "labels":
        call["y"] = rng.integers(-1, 3, size=N)
    elif name == "start":
        call = {"W": rng.random((N, 3)), "H": rng.random((3, F))}
    undisturbed = team.run(
        fit_from_file,
        *(Fit(f.rows, parameters, f.call) for f in fits_of(X, SHARES[3], parameters, **call)),
    )
    (tmp_path / "fit").mkdir()
    path = tmp_path / "fit" / "fit.safetensors"
    for stop in (10, 30):
        stop_at(team, X, 3, parameters, path, stop, **call)
    written = read_tensors(path, Kind.INDEX)
    assert written.tensors["iterations"].tolist() == [0, 10, 20]  # the last before the error
    others = {size: copied(path, tmp_path / f"of {size}") for size in (1, 4)}
    for _ in range(2):  # to the end, and from there at once
        found = go_on(team, X, 3, parameters, path, **call)
        for one, expected in zip(found, undisturbed, strict=True):
            for part, value in vars(expected).items():
                np.testing.assert_array_equal(getattr(one, part), value)
    for size, place in others.items():
        found = go_on(team, X, size, parameters, place, **call)
        model = NNMF(**parameters).fit(X, **call)
        np.testing.assert_allclose(
            np.concatenate([one.W for one in found]), model.W_, rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(found[0].H, model.components_, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found[0].objective, model.objective_history_, rtol=1e-6)
        np.testing.assert_array_equal(found[0].iterations, model.objective_iterations_)


# --- a checkpoint is whole at any moment ----------------------------------------------------------


def fit_with_a_cut(fit: Fit) -> Found:
    """Fit with a checkpoint, and end a rank at a call of the functions that write and remove."""
    call = dict(fit.call)
    rank, last = call.pop("rank"), call.pop("last")
    calls = 0

    def counted(function: Any) -> Any:
        def then(*args: Any, **options: Any) -> Any:
            nonlocal calls
            if team_group().rank() == rank and calls == last:
                raise Interrupted
            calls += 1
            return function(*args, **options)

        return then

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dealt_file, "write_tensors", counted(dealt_file.write_tensors))
        patched.setattr(dealt_file, "shutil", SimpleNamespace(rmtree=counted(shutil.rmtree)))
        patched.setattr(Path, "mkdir", counted(Path.mkdir))
        model = NNMF(**fit.parameters).fit(Shard(fit.rows, team_group()), **call)
    return Found.of(model, model.W_)


@pytest.mark.parametrize(
    ("rank", "last"), [(0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 1), (1, 2)]
)
def test_a_writer_that_ends_leaves_the_checkpoint_before(
    team: Team, rng, tmp_path: Path, rank: int, last: int
) -> None:
    X, path = matrix(rng), tmp_path / "fit.safetensors"
    parameters = PARAMETERS | {"solver": "accelerated-mu"}
    undisturbed = team.run(fit_from_file, *fits_of(X, SHARES[2], parameters))
    cut = {"checkpoint": path, "checkpoint_every": 0, "rank": rank, "last": last}
    found = team.run(
        fit_with_a_cut, *(Fit(f.rows, parameters, cut) for f in fits_of(X, SHARES[2], parameters))
    )
    assert isinstance(found[rank], Interrupted)
    assert isinstance(found[1 - rank], RanksError)
    reached = read_tensors(path, Kind.INDEX).tensors["iterations"][-1].item()
    assert 0 <= reached <= 30
    for one, expected in zip(go_on(team, X, 2, parameters, path), undisturbed, strict=True):
        np.testing.assert_array_equal(one.W, expected.W)
        np.testing.assert_array_equal(one.objective, expected.objective)
    # What was left is gone, but for the files that the index names.
    assert sorted(p.suffix for p in tmp_path.iterdir()) in (
        [".rows-a", ".safetensors"],
        [".rows-b", ".safetensors"],
    )
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert len(list(folder.iterdir())) == 2


def fit_on_a_full_disk(fit: Fit) -> tuple[Any, list[str]]:
    """Fit with a checkpoint that rank 1 cannot write after so many."""
    call = dict(fit.call)
    left, write = call.pop("left"), dealt_file.write_tensors

    def full(*args: Any) -> None:
        nonlocal left
        if team_group().rank() == 1 and left == 0:
            raise OSError("No space left on device")
        left -= 1
        write(*args)

    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        patched.setattr(dealt_file, "write_tensors", full)
        model = NNMF(**fit.parameters).fit(Shard(fit.rows, team_group()), **call)
    return Found.of(model, model.W_), [str(one.message) for one in told]


def test_a_full_disk_is_an_error_at_the_start_and_a_warning_later(team, rng, tmp_path) -> None:
    X, path = matrix(rng), tmp_path / "fit.safetensors"
    fits = fits_of(X, SHARES[2], PARAMETERS)
    call = {"checkpoint": path, "checkpoint_every": 0}
    for one in team.run(
        fit_on_a_full_disk, *(Fit(f.rows, PARAMETERS, {**call, "left": 0}) for f in fits)
    ):
        assert isinstance(one, OSError)
        assert "rank 1: No space left on device" in str(one)
    assert not path.exists()
    undisturbed = team.run(fit_from_file, *fits)
    found = team.run(
        fit_on_a_full_disk, *(Fit(f.rows, PARAMETERS, {**call, "left": 2}) for f in fits)
    )
    for (one, _), expected in zip(found, undisturbed, strict=True):
        np.testing.assert_array_equal(one.W, expected.W)
    assert any("could not be written (rank 1: No space left" in words for words in found[0][1])
    assert read_tensors(path, Kind.INDEX).tensors["iterations"].tolist() == [0, 10]


# --- files that are not of this fit ---------------------------------------------------------------


@pytest.fixture
def begun(team: Team, rng, tmp_path: Path) -> tuple[np.ndarray, Path]:
    """X, and the checkpoint of a fit to it of two ranks."""
    X, path = matrix(rng), tmp_path / "fit.safetensors"
    stop_at(team, X, 2, PARAMETERS, path, 20)
    return X, path


def refused(found: list[Any], words: str) -> None:
    assert any(isinstance(one, ValueError) and words in str(one) for one in found), found
    assert all(isinstance(one, ValueError | RanksError) for one in found)


def test_other_fits_are_refused(team: Team, begun) -> None:
    X, path = begun
    before = path.read_bytes()
    swapped = X.copy()
    swapped[[0, 1]] = X[[1, 0]]
    for other in (swapped, X[:, ::-1], X.astype(np.float32)):
        found = go_on(team, other, 4, PARAMETERS, path)
        refused(found, "is of another fit: X was 'float64 (37, 23)")
    mask = np.ones(X.shape, bool)
    mask[3, 3] = False
    refused(go_on(team, X, 2, PARAMETERS, path, mask=mask), "float64 weighted (37, 23)")
    for change, words in (
        ({"tol": 1e-3}, "tol was 0 and is 0.001"),
        ({"solver": "accelerated-mu"}, "solver was 'mu' and is 'accelerated-mu'"),
        ({"random_state": 6}, "random_state was 5 and is 6"),
        ({"max_iter": 5}, "is at iteration 10, above max_iter=5"),
    ):
        refused(go_on(team, X, 2, PARAMETERS | change, path), words)
    assert path.read_bytes() == before


def test_who_reads_which_file(team: Team, begun) -> None:
    X, path = begun
    model = NNMF(**PARAMETERS)
    with pytest.raises(
        ValueError, match=r"fit to a Shard, which fit\(Shard\(rows\), checkpoint=...\) r"
    ):
        model.fit(X, checkpoint=path)
    own = path.with_name("own")
    model.fit(X, checkpoint=own)
    refused(go_on(team, X, 2, PARAMETERS, own), "which fit(X, checkpoint=...) reads")


def test_rows_belong_to_their_index(team: Team, begun, tmp_path: Path) -> None:
    X, path = begun
    early = copied(path, tmp_path / "early")
    stop_at(team, X, 2, PARAMETERS, path, 40)
    for place in (path, early):
        (folder,) = (p for p in place.parent.iterdir() if p.name.startswith(f"{path.name}.rows"))
        folder.rename(place.with_name("rows"))
    index = read_tensors(path, Kind.INDEX).description
    parts = path.with_name(path.name + index["slot"])
    shutil.copytree(early.with_name("rows"), parts)
    refused(go_on(team, X, 3, PARAMETERS, path), f"does not belong to {path}")
    (parts / "0-11.safetensors").unlink()
    refused(go_on(team, X, 3, PARAMETERS, path), f"which {path} needs, is not there")


# --- starts that are dealt too, and streams -------------------------------------------------------


def fit_on_a_grid(fit: Fit) -> Found:
    """Fit on two groups of two ranks, of which one is stopped where told; or on another grid."""
    call = dict(fit.call)
    stop, shape = call.pop("stop", None), call.pop("grid")
    group, starts = team_group(), None
    if shape is not None:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("starts", "rows"))
        group, starts = mesh.get_group("rows"), mesh.get_group("starts")

    def advance(self: Minimisation, n_iter: int, original: Any = Minimisation.advance) -> Any:
        if stop is not None and self.iteration >= stop and team_group().rank() == 0:
            raise Interrupted
        return original(self, n_iter)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Minimisation, "advance", advance)
        model = NNMF(**fit.parameters).fit(Shard(fit.rows, group, starts=starts), **call)
    return Found.of(model, model.W_)


def test_groups_of_starts_have_a_file_each(team: Team, rng, tmp_path: Path) -> None:
    X, path = matrix(rng), tmp_path / "fit.safetensors"
    parameters = PARAMETERS | {"n_init": 5, "tol": 1e-3, "max_iter": 100}

    def run(shape: tuple[int, int] | None, counts: tuple[int, ...], **call: Any) -> list[Any]:
        own = slices(counts) * (1 if shape is None else shape[0])
        fits = [Fit(X[rows], parameters, {"grid": shape, **call}) for rows in own]
        return team.run(fit_on_a_grid, *fits)

    undisturbed = run((2, 2), (20, 17))
    found = run((2, 2), (20, 17), checkpoint=path, checkpoint_every=0, stop=20)
    assert isinstance(found[0], Interrupted)
    names = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert names == {f"fit.safetensors.starts-{group}-of-2" for group in range(2)}
    for shape, counts in ((None, SHARES[2]), ((4, 1), (N,))):
        found = run(shape, counts, checkpoint=path)
        refused(found, "of a fit whose starts were dealt among other groups")
    for one, expected in zip(run((2, 2), (20, 17), checkpoint=path), undisturbed, strict=True):
        np.testing.assert_array_equal(one.W, expected.W)
        np.testing.assert_array_equal(one.objective, expected.objective)


def stream(fit: Fit) -> NNMF:
    """Give mini-batches to a stream that is new, or that another number of ranks has left."""
    path = fit.call["path"]
    model = NNMF.load(path) if path.exists() else NNMF(**fit.parameters)
    for rows in fit.rows:
        model.partial_fit(Shard(rows, team_group()))
    return model


def test_a_stream_goes_on_with_another_number_of_ranks(team: Team, rng, tmp_path: Path) -> None:
    X, path = [matrix(rng) for _ in range(4)], tmp_path / "stream.safetensors"
    for size, batches in ((3, X[:2]), (2, X[2:])):
        fits = [
            Fit([batch[rows] for batch in batches], PARAMETERS, {"path": path})
            for rows in slices(SHARES[size])
        ]
        team.run(stream, *fits)[0].save(path)
    one = NNMF(**PARAMETERS)
    for batch in X:
        one.partial_fit(batch)
    found = NNMF.load(path)
    assert found.n_steps_ == 4
    np.testing.assert_allclose(found.components_, one.components_, rtol=1e-7)
