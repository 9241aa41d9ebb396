"""An NNMF that is given a `Shard`: rows of its own, read as part of what all ranks have."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from nnmf_cuda.distributed.ranks import Ranks
from nnmf_cuda.distributed.shard import Shard
from nnmf_cuda.nnmf.checkpoint import described
from nnmf_cuda.nnmf.inputs import empty_matrix, resolve_device
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.parameters import ParametersMixin
from nnmf_cuda.nnmf.sharded_matrix import Sharded
from nnmf_cuda.nnmf.sparse_matrix import Sparse

_OF_ONE_RANK = ("device", "graph", "missing_values", "verbose")
"""Parameters that ranks need not have in common."""


def one_fate(X: Any) -> AbstractContextManager[None]:
    """Return what is around the work on X: where it is a `Shard`, all ranks fail together."""
    return X.ranks.together() if isinstance(X, Shard) else nullcontext()


class ShardMixin(ParametersMixin):
    """Gives `NNMF` its reading of a `Shard`."""

    def _read(self, X: Any, *, reset: bool, mask: Any = None, weights: Any = None) -> Matrix:
        if not isinstance(X, Shard):
            return super()._read(X, reset=reset, mask=mask, weights=weights)
        rows = X.rows
        if getattr(rows, "ndim", 0) == 2 and rows.shape[0] == 0:
            self._note_features(rows.shape[1], reset=reset)
            own, smallest, largest = (
                empty_matrix(rows, resolve_device(self.device, rows)),
                None,
                0.0,
            )
        else:
            own, smallest, largest = self._read_own(rows, reset=reset, mask=mask, weights=weights)
        self._check_alike(X.ranks, self._facts(own))
        bounds = [bound for bound in X.ranks.gathered((smallest, largest)) if bound[0] is not None]
        if not bounds:
            raise ValueError("X has no rows on any rank: give some to one of them")
        matrix = Sharded(own, X.ranks)
        lows, highs = zip(*bounds, strict=True)
        self._note_units(matrix, min(lows), max(highs), reset=reset)
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

    @staticmethod
    def _check_alike(ranks: Ranks, facts: Mapping[str, Any]) -> None:
        """Raise, on all ranks, where one has something that another has not."""
        first, *others = ranks.gathered(dict(facts))
        for rank, other in enumerate(others, 1):
            for name in first:
                if other.get(name) != first[name]:
                    raise ValueError(
                        f"ranks differ in {name}: {first[name]!r} on rank 0, {other.get(name)!r} "
                        f"on rank {rank}; give all of them the same"
                    )

    def _check_call(self, X: Matrix, given: Mapping[str, Any], *, checkpoint: bool) -> None:
        """Raise for what a fit to a `Shard` is given and cannot take, or not on all ranks alike."""
        if not isinstance(X, Sharded):
            return
        self._check_alike(
            X.ranks,
            {
                "update_H": given["update_H"],
                "whether W is given": given["W"] is not None,
                "H": described(given["H"]),
            },
        )
        if checkpoint:
            raise ValueError("checkpoint does not yet go with a Shard: use checkpoint=None")
        if self.solver == "cd" and self.fixed_components is not None:
            raise ValueError(
                "solver='cd' does not yet hold components with a Shard: use fixed_components=None, "
                "or solver='accelerated-mu'"
            )


def _drawn(random_state: Any) -> bool:
    """Whether a seed is a generator, or the global one, of which rank 0's is used."""
    return not isinstance(random_state, int)
