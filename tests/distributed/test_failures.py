"""What happens where one rank fails, or does something else than the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda import NNMF, ConsensusNNMF
from nnmf_cuda.distributed import RanksError, Shard
from tests.distributed.fits import Fit, fit_shard
from tests.distributed.team import Team, team_group

PARAMETERS: dict[str, Any] = {"n_components": 2, "max_iter": 30, "tol": 0, "random_state": 5}


def parts(rng: np.random.Generator, size: int) -> list[np.ndarray]:
    return [rng.random((6, 5)) + 0.1 for _ in range(size)]


def test_bad_rows_of_one_rank_end_the_fit_of_all(team: Team, rng) -> None:
    X = parts(rng, 4)
    X[2][1, 1] = -1
    found = team.run(fit_shard, *(Fit(rows, PARAMETERS) for rows in X))
    assert isinstance(found[2], ValueError)
    assert "Negative values" in str(found[2])
    for rank in (0, 1, 3):
        assert isinstance(found[rank], RanksError)
        assert "rank 2 of 4 failed" in str(found[rank])
        assert "ValueError: Negative values" in str(found[rank])
    # The group is as good as before.
    for one in team.run(fit_shard, *(Fit(abs(rows), PARAMETERS) for rows in X)):
        assert np.isfinite(one.H).all()


def fit_with_callback(fit: Fit) -> int:
    rank = team_group().rank()

    def callback(record: Any) -> bool:
        if record.iteration == 20 and rank == fit.call.get("raises", -1):
            raise KeyError("twenty")
        return record.iteration >= 20 and rank == fit.call.get("stops", -1)

    model = NNMF(**fit.parameters).fit(Shard(fit.rows, team_group()), callback=callback)
    return model.n_iter_


def test_a_failure_in_the_middle_ends_the_fit_of_all(team: Team, rng) -> None:
    fits = [Fit(rows, PARAMETERS, {"raises": 1}) for rows in parts(rng, 3)]
    zero, one, two = team.run(fit_with_callback, *fits)
    assert isinstance(one, KeyError)
    for other in (zero, two):
        assert isinstance(other, RanksError)
        assert "rank 1 of 3 failed" in str(other)
        assert "KeyError: 'twenty'" in str(other)


def fit_and_die(fit: Fit) -> None:
    rank = team_group().rank()

    def callback(record: Any) -> None:
        if record.iteration == 10 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    NNMF(**fit.parameters).fit(Shard(fit.rows, team_group()), callback=callback)


def test_a_process_that_is_killed_ends_the_fit_of_all(tmp_path: Path, rng) -> None:
    mortal = Team(str(tmp_path / "store"), size=3)
    found = mortal.answers(2, fit_and_die, *(Fit(rows, PARAMETERS) for rows in parts(rng, 3)))
    assert sorted(found) == [0, 2]
    for rank, error in found.items():
        assert isinstance(error, RanksError)
        assert f"rank {rank} of 3 has lost the others: one has ended" in str(error)
    mortal.kill()


def test_one_callback_stops_all(team: Team, rng) -> None:
    fits = [Fit(rows, PARAMETERS, {"stops": 1}) for rows in parts(rng, 3)]
    assert team.run(fit_with_callback, *fits) == [20, 20, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_components": 3}, "ranks differ in n_components: 2 on rank 0, 3 on rank 1"),
        ({"random_state": 6}, "ranks differ in random_state: 5 on rank 0, 6 on rank 1"),
        ({"beta_loss": 2}, "ranks differ in beta_loss: 'kullback-leibler' on rank 0, 2 on rank 1"),
    ],
)
def test_parameters_must_agree(team: Team, rng, change: dict[str, Any], message: str) -> None:
    X = parts(rng, 2)
    found = team.run(fit_shard, Fit(X[0], PARAMETERS), Fit(X[1], PARAMETERS | change))
    for one in found:
        assert isinstance(one, ValueError)
        assert message in str(one)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((3, 4)), "ranks differ in the number of features of X: 5 on rank 0, 4 on rank 1"),
        (np.ones((3, 5), np.float32), "ranks differ in the type of X"),
    ],
)
def test_rows_must_agree(team: Team, rng, rows: np.ndarray, message: str) -> None:
    X = parts(rng, 1)[0]
    for one in team.run(fit_shard, Fit(X, PARAMETERS), Fit(rows, PARAMETERS)):
        assert isinstance(one, ValueError)
        assert message in str(one)


def test_some_rank_must_have_rows(team: Team) -> None:
    for one in team.run(fit_shard, *(Fit(np.ones((0, 5)), PARAMETERS) for _ in range(2))):
        assert isinstance(one, ValueError)
        assert "X has no rows on any rank" in str(one)


def test_components_given_must_agree(team: Team, rng) -> None:
    X = parts(rng, 2)
    parameters = PARAMETERS | {"init": "custom"}
    fits = [Fit(rows, parameters, {"W": rng.random((6, 2)), "H": rng.random((2, 5))}) for rows in X]
    for one in team.run(fit_shard, *fits):
        assert isinstance(one, ValueError)
        assert "ranks differ in H" in str(one)


@pytest.mark.parametrize(
    ("parameters", "call", "message"),
    [
        (
            {"solver": "cd", "fixed_components": np.ones((1, 5))},
            {},
            "solver='cd' does not yet hold components with a Shard",
        ),
        ({"graph": "neighbors"}, {}, "graph='neighbors' compares all rows of X"),
    ],
)
def test_what_is_not_there_yet(
    team: Team, rng, parameters: dict[str, Any], call: dict[str, Any], message: str
) -> None:
    fits = [Fit(rows, PARAMETERS | parameters, call) for rows in parts(rng, 2)]
    for one in team.run(fit_shard, *fits):
        assert isinstance(one, ValueError)
        assert message in str(one)


def select_for(fit: Fit) -> None:
    NNMF(**fit.parameters).select_rank(Shard(fit.rows, team_group()), [2], n_init=2, **fit.call)


@pytest.mark.parametrize(
    ("asked", "other", "message"),
    [
        ({"held_out": 0.1}, {}, "ranks differ in held_out: 0.1 on rank 0, 0.0 on rank 1"),
        ({"n_repeats": 3}, {}, "ranks differ in n_repeats: 3 on rank 0, 5 on rank 1"),
    ],
)
def test_what_is_asked_must_agree(
    team: Team, rng, asked: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    X = parts(rng, 2)
    parameters = PARAMETERS | {"n_components": "auto"}
    for one in team.run(select_for, Fit(X[0], parameters, asked), Fit(X[1], parameters, other)):
        assert isinstance(one, ValueError)
        assert message in str(one)


def fit_with_a_file(fit: Fit) -> None:
    path = fit.call["path"] if team_group().rank() == 0 else None
    NNMF(**fit.parameters).fit(Shard(fit.rows, team_group()), checkpoint=path)


def test_all_have_a_checkpoint_or_none(team: Team, rng, tmp_path: Path) -> None:
    fits = [Fit(X, PARAMETERS, {"path": tmp_path / "fit"}) for X in parts(rng, 2)]
    for one in team.run(fit_with_a_file, *fits):
        assert isinstance(one, ValueError)
        assert "ranks differ in whether a checkpoint is given: True on rank 0, False" in str(one)


def others_fit(X: np.ndarray) -> list[str]:
    """Give a `Shard` to what takes none."""
    shard, said = Shard(X, team_group()), []
    for call in (
        lambda: ConsensusNNMF(2).fit(shard),
        lambda: Shard.of_rows([[1.0, 2.0]]),
    ):
        try:
            call()
        except TypeError as error:
            said.append(str(error))
    return said


def test_who_takes_no_shard(team: Team) -> None:
    (said,) = team.run(others_fit, np.ones((4, 3)))
    assert len(said) == 2
    assert "X is a Shard, rows of a larger X, which ConsensusNNMF does not take" in said[0]
    assert "Shard.of_rows takes its rows from what has a shape" in said[1]


def test_without_a_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group first"):
        Shard(np.ones((2, 2)))
