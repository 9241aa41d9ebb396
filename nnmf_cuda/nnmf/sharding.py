"""An NNMF that is given a `Shard`: rows of its own, read as part of what all ranks have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda.distributed.ranks import Ranks
from nnmf_cuda.distributed.shard import Shard, share
from nnmf_cuda.nnmf.fingerprints import described
from nnmf_cuda.nnmf.fitting import Watch
from nnmf_cuda.nnmf.inputs import empty_matrix, resolve_device
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.minimisation import Run
from nnmf_cuda.nnmf.parameters import ParametersMixin
from nnmf_cuda.nnmf.rank_selection import Ended
from nnmf_cuda.nnmf.sharded_matrix import Sharded
from nnmf_cuda.nnmf.sparse_matrix import Sparse

_OF_ONE_RANK = ("device", "graph", "missing_values", "verbose")
"""Parameters that ranks need not have in common."""


@contextmanager
def one_fate(X: Any) -> Iterator[None]:
    """Make all ranks fail together, if X is a `Shard`."""
    with ExitStack() as stack:
        if isinstance(X, Shard):
            if X.starts is not None:
                stack.enter_context(X.starts.together())
            stack.enter_context(X.ranks.together())
        yield


def own_starts(X: Matrix, n_init: int) -> slice:
    """Return which of the starts of a fit are this process's."""
    starts = X.starts if isinstance(X, Sharded) else None
    if starts is not None and n_init < starts.size:
        raise ValueError(
            f"n_init={n_init} starts are fewer than the {starts.size} groups that they are dealt "
            "among: give Shard no starts, or raise n_init"
        )
    return own_share(X, n_init)


def own_share(X: Matrix, n: int) -> slice:
    """Return which of n things, dealt among groups of processes, this one's group has."""
    starts = X.starts if isinstance(X, Sharded) else None
    return slice(0, n) if starts is None else share(n, starts.rank, starts.size)


def without_starts(X: Matrix) -> Matrix:
    """Return X for fits whose starts are not dealt: those of a group are all its own."""
    return Sharded(X.own, X.ranks) if isinstance(X, Sharded) else X


def sum_of_groups(X: Matrix, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of what each group of processes has found."""
    starts = X.starts if isinstance(X, Sharded) else None
    return values if starts is None else np.sum(starts.gathered(values), axis=0)


def best_of_all(X: Matrix, run: Run, own: slice) -> Run:
    """Return the best run of all processes, given the best of this one's `own` starts."""
    starts = X.starts if isinstance(X, Sharded) else None
    if starts is None:
        return run
    numbered = replace(run, restart=own.start + run.restart)
    nothing = torch.empty(0)
    of_all = starts.gathered(replace(numbered, W=nothing, H=nothing))
    rank = min(range(starts.size), key=lambda rank: of_all[rank].order())
    best: Run = of_all[rank]
    return replace(best, W=starts.of(rank, run.W), H=starts.of(rank, run.H))


def all_runs_of(X: Matrix, ended: Ended) -> Ended:
    """Return the runs of all processes, given those of this one's starts."""
    starts = X.starts if isinstance(X, Sharded) else None
    if starts is None:
        return ended
    sent = [(labels.cpu(), replace(run, H=run.H.cpu())) for labels, run in ended]
    return [one for of_rank in starts.gathered(sent) for one in of_rank]


def check_alike(X: Matrix, facts: Mapping[str, Any]) -> None:
    """Raise, on all ranks, where one has something that another has not."""
    if isinstance(X, Sharded):
        for ranks in (X.ranks, X.starts):
            if ranks is not None:
                _check_ranks_alike(ranks, facts)


def _check_ranks_alike(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    first, *others = ranks.gathered(dict(facts))
    for rank, other in enumerate(others, 1):
        for name in first:
            if other.get(name) != first[name]:
                raise ValueError(
                    f"ranks differ in {name}: {first[name]!r} on rank 0, {other.get(name)!r} on "
                    f"rank {rank}; give all of them the same"
                )


class ShardMixin(ParametersMixin):
    """Gives `NNMF` its reading of a `Shard`."""

    def _read(self, X: Any, *, reset: bool, mask: Any = None, weights: Any = None) -> Matrix:
        if not isinstance(X, Shard):
            return super()._read(X, reset=reset, mask=mask, weights=weights)
        rows = X.rows
        if getattr(rows, "ndim", 0) == 2 and rows.shape[0] == 0:
            self._note_features(rows.shape[1], reset=reset)
            own: Matrix = empty_matrix(rows, resolve_device(self.device, rows))
            bounds = (math.inf, -math.inf)
        else:
            own, low, high = self._read_own(rows, reset=reset, mask=mask, weights=weights)
            bounds = (low, high)
        _check_ranks_alike(X.ranks, self._facts(own))
        matrix = Sharded(own, X.ranks, X.starts)
        if matrix.whole_shape[0] == 0:
            raise ValueError("X has no rows on any rank: give some to one of them")
        lows, highs = zip(*X.ranks.gathered(bounds), strict=True)
        self._note_units(matrix, min(lows), max(highs), reset=reset)
        if X.starts is not None:
            facts = self._facts(own) | {"the rows of X": own.shape[0], "their units": self._units}
            _check_ranks_alike(X.starts, facts)
        return matrix

    def _facts(self, own: Matrix) -> dict[str, Any]:
        """Return what all ranks have to agree in, in words."""
        kind = "sparse" if isinstance(own, Sparse) else "dense"
        parameters = self.get_params(deep=False)
        return {
            "the number of features of X": own.shape[1],
            "the type of X": f"{kind} {'uint8' if own.pixels else own.factor_dtype}",
            "whether the estimator is fitted": hasattr(self, "components_"),
            **{
                name: described(value)
                for name, value in parameters.items()
                if name not in _OF_ONE_RANK and not (name == "random_state" and _drawn(value))
            },
        }

    def _check_call(self, X: Matrix, given: Mapping[str, Any], watch: Watch) -> None:
        """Raise for what a fit to a `Shard` is given and cannot take, or not on all ranks alike."""
        if not isinstance(X, Sharded):
            return
        facts = {
            "update_H": given["update_H"],
            "whether W is given": given["W"] is not None,
            "H": described(given["H"]),
            "whether a checkpoint is given": watch.checkpoint is not None,
        }
        check_alike(X, facts)
        if watch.callback is not None and X.starts is not None:
            raise ValueError(
                "callback would see a part of the starts, which are dealt among processes: use "
                "callback=None, or give Shard no starts"
            )
        if self.solver == "cd" and self.fixed_components is not None:
            raise ValueError(
                "solver='cd' does not yet hold components with a Shard: use fixed_components=None, "
                "or solver='accelerated-mu'"
            )


def _drawn(random_state: Any) -> bool:
    """Whether a seed is a generator, or the global one, of which rank 0's is used."""
    return not isinstance(random_state, Integral)
