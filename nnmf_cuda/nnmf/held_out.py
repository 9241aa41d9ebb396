"""How well factorisations of each rank tell entries that they have not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from nnmf_cuda import ops
from nnmf_cuda.nnmf.matrix import Dense, Matrix
from nnmf_cuda.nnmf.minimisation import Run
from nnmf_cuda.nnmf.problem import Problem
from nnmf_cuda.nnmf.starts import Origin
from nnmf_cuda.nnmf.weighted_matrix import Weighted

Runs = Callable[[Problem, Origin], Iterator[Run]]
"""The runs of all ranks for a problem, from the starts of an origin."""


@dataclass(frozen=True)
class Split:
    """X for a fit, and the entries of it that the fit does not see."""

    seen: Weighted
    hidden: Weighted


def split_entries(X: Matrix, share: float, rng: np.random.RandomState) -> Split:
    """Hide `share` of the entries of X, drawn one by one.

    Of a row or a column that would lose all that counts nothing is hidden.
    """
    if not isinstance(X, Dense):
        raise TypeError(
            "held_out needs dense X, of which any entry can be left out; use X.toarray() or "
            "X.to_dense(), or held_out=0"
        )
    counts = torch.ones(X.shape, dtype=X.factor_dtype, device=X.device)
    given = X.weights_of(slice(None), X.factor_dtype)
    if given is not None:
        counts = given
    hidden = torch.from_numpy(rng.random_sample(X.shape) < share).to(X.device) & (counts > 0)
    for axis in (0, 1):
        hidden &= ((counts > 0) & ~hidden).any(axis, keepdim=True)
    if not bool(hidden.any()):
        raise ValueError(
            f"held_out={share:g} hides no entry of X of shape {tuple(X.shape)}; give a larger share"
        )
    return Split(_of_entries(X, counts, ~hidden), _of_entries(X, counts, hidden))


def _of_entries(X: Dense, counts: torch.Tensor, chosen: torch.Tensor) -> Weighted:
    """Return X of which the chosen entries alone count."""
    weights = torch.where(chosen, counts, 0)
    tensor = torch.where(weights > 0, X.tensor, torch.zeros_like(X.tensor[:1, :1]))
    bits = bool(((counts == 0) | (counts == 1)).all())
    return Weighted(tensor, ops.pack_mask(weights > 0) if bits else weights)


def held_out_errors(
    problem: Problem,
    ranks: Sequence[int],
    origin: Origin,
    runs: Runs,
    *,
    share: float,
    n_repeats: int,
    random_state: Any,
) -> NDArray[np.float64]:
    """Return the mean divergence of hidden entries, (n_repeats, n_ranks).

    In each repetition other entries are hidden, and every rank is fitted once to the rest.
    """
    rng = check_random_state(random_state)
    errors = np.empty((n_repeats, len(ranks)))
    objective = problem.objective
    for repeat in range(n_repeats):
        split = split_entries(problem.X, share, rng)
        start = replace(origin, n_init=1, random_state=int(rng.randint(2**31)))
        count = split.hidden.weights_of(slice(None), torch.float64).sum()
        for run in runs(replace(problem, X=split.seen), start):
            error = split.hidden.divergence(
                run.W, run.H, beta_loss=objective.beta_loss, floor=objective.floor
            )
            errors[repeat, ranks.index(run.n_components)] = float(error / count)
    return errors


def least_rank(ranks: Sequence[int], errors: NDArray[np.float64]) -> int:
    """Return the smallest rank that is not worse than the best one by more than it may be by luck.

    That is one standard error of the difference between both over the repetitions.
    """
    best = errors[:, errors.mean(0).argmin()]
    worse = errors - best[:, None]
    luck = worse.std(0, ddof=1) / np.sqrt(len(errors))
    return int(ranks[int(np.flatnonzero(worse.mean(0) <= luck)[0])])
