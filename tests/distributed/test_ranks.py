"""What ranks compute together, and what they say of each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnmf_cuda.distributed import RanksError
from nnmf_cuda.distributed.ranks import Ranks
from tests.distributed.team import Team, team_group


def add_up(values: list[np.ndarray]) -> list[np.ndarray]:
    ranks = Ranks(team_group())
    return [total.numpy() for total in ranks.totals(*map(torch.from_numpy, values))]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 5, 9001, 30011])
def test_sums_are_made_in_the_order_of_ranks(team: Team, rng, n: int, size: int) -> None:
    """To the bit, whether all are sent to all or each rank adds up a part."""
    scales = 10.0 ** rng.integers(-9, 9, size=(size, 1))
    wide = rng.normal(size=(size, n)) * scales
    narrow = (rng.normal(size=(size, 3, 2)) * scales[:, :, None]).astype(np.float32)
    expected, of_narrow = wide[0].copy(), narrow[0].astype(np.float64)
    for rank in range(1, size):
        expected += wide[rank]
        of_narrow += narrow[rank]
    for total, other in team.run(add_up, *([wide[r], narrow[r]] for r in range(size))):
        np.testing.assert_array_equal(total, expected)
        np.testing.assert_array_equal(other, of_narrow.astype(np.float32))
        assert other.dtype == np.float32


def gather(values: np.ndarray) -> list[list[bytes]]:
    ranks, own = Ranks(team_group()), torch.from_numpy(values)
    return [
        [part.numpy().tobytes() for part in parts]
        for parts in (ranks._gather(own), ranks._gather_around(own))
    ]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_at_once_and_around_a_ring_the_same_is_gathered(team: Team, rng, size: int) -> None:
    """Values of any shape, also where they lie apart in memory."""
    for shape in ((1,), (5, 3), (0, 2)):
        wide = rng.normal(size=(size, *shape, 2))
        expected = [np.ascontiguousarray(one[..., 0]).tobytes() for one in wide]
        for at_once, around in team.run(gather, *(one[..., 0] for one in wide)):
            assert at_once == around == expected


def deal(rank: int) -> dict[str, Any]:
    ranks = Ranks(team_group())
    own = torch.full((rank, 2), float(rank))
    sent = [torch.full((to,), 10 * rank + to) for to in range(ranks.size)]
    return {
        "rows": ranks.rows(own, range(ranks.size)).tolist(),
        "exchanged": [part.tolist() for part in ranks.exchanged(sent)],
        "of": ranks.of(1, torch.arange(3) + rank).tolist(),
        "gathered": ranks.gathered({"rank": rank}),
    }


def test_what_ranks_send_each_other(team: Team) -> None:
    for rank, found in enumerate(team.run(deal, 0, 1, 2)):
        assert found["rows"] == [[1, 1], [2, 2], [2, 2]]
        assert found["exchanged"] == [[10 * other + rank] * rank for other in range(3)]
        assert found["of"] == [1, 2, 3]
        assert found["gathered"] == [{"rank": other} for other in range(3)]


def go_astray(rank: int) -> Tensor | list[int]:
    """Do as many different things as there are ranks, of which one leaves first."""
    ranks = Ranks(team_group())
    with ranks.together():
        if rank == 1:
            return ranks.gathered(rank)
        if rank == 2:
            return ranks.totals(torch.ones(2))[0]
    return []


def test_ranks_at_different_steps_do_not_wait_for_each_other(team: Team) -> None:
    for error in team.run(go_astray, 0, 1, 2):
        assert isinstance(error, RanksError)
        assert "the ranks are not at the same step" in str(error)
    assert team.run(deal, 0, 1)[0]["of"] == [1, 2, 3]


def fail_together(rank: int) -> None:
    with Ranks(team_group()).together():
        raise ValueError(f"of rank {rank}")


def test_ranks_that_fail_at_once_keep_their_own_words(team: Team) -> None:
    for rank, error in enumerate(team.run(fail_together, 0, 1, 2, 3)):
        assert isinstance(error, ValueError)
        assert str(error) == f"of rank {rank}"
