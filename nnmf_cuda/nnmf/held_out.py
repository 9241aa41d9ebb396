"""How well factorisations of each rank tell entries that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda import ops
from nnmf_cuda.nnmf.matrix import Dense, Matrix
from nnmf_cuda.nnmf.minimisation import Run
from nnmf_cuda.nnmf.problem import Problem
from nnmf_cuda.nnmf.starts import Origin, drawn_parts
from nnmf_cuda.nnmf.weighted_matrix import Weighted

Runs = Callable[[Problem, Origin], Iterator[Run]]
"""The runs of all ranks for a problem, from the starts of an origin."""


@dataclass(frozen=True)
class Split:
    """X for a fit, and the entries of it that the fit does not see."""

    seen: Matrix
    hidden: Matrix


def split_entries(X: Matrix, share: float, rng: np.random.RandomState) -> Split:
    """Hide `share` of the entries of X, drawn one by one.

    Of a row or a column that would lose all that counts nothing is hidden.
    """
    own = X.own
    if not isinstance(own, Dense):
        raise TypeError(
            "held_out needs dense X, of which any entry can be left out; use X.toarray() or "
            "X.to_dense(), or held_out=0"
        )
    counts = torch.ones(own.shape, dtype=own.factor_dtype, device=own.device)
    given = own.weights_of(slice(None), own.factor_dtype)
    if given is not None:
        counts = given
    hidden = _drawn(X, share, rng).to(own.device) & (counts > 0)
    (left,) = X.totals(((counts > 0) & ~hidden).sum(0).double())
    hidden &= left > 0
    hidden &= ((counts > 0) & ~hidden).any(1, keepdim=True)
    if not any(X.gathered(bool(hidden.any()))):
        raise ValueError(
            f"held_out={share:g} hides no entry of X of shape {X.whole_shape}; give a larger share"
        )
    return Split(*(X.like(_of_entries(own, counts, chosen)) for chosen in (~hidden, hidden)))


def _drawn(X: Matrix, share: float, rng: np.random.RandomState) -> torch.Tensor:
    """Draw which entries of its own rows to hide, of all that are drawn."""
    n_features, rows = X.shape[1], X.own_rows
    own = slice(rows.start * n_features, rows.stop * n_features)
    hidden = np.empty(own.stop - own.start, np.bool_)
    for place, part in drawn_parts(rng.random_sample, math.prod(X.whole_shape), own):
        hidden[place] = part < share
    return torch.from_numpy(hidden).reshape(X.shape)


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
    rng: np.random.RandomState,
    own: slice,
) -> NDArray[np.float64]:
    """Return the mean divergence of hidden entries, (n_repeats, n_ranks).

    In each repetition other entries are hidden, and every rank is fitted once to the rest. Of those
    that are not `own` the result is 0; what hides their entries is drawn all the same.
    """
    errors = np.zeros((n_repeats, len(ranks)))
    objective = problem.objective
    for repeat in range(n_repeats):
        if repeat not in range(n_repeats)[own]:
            for _ in drawn_parts(rng.random_sample, problem.X.n_entries, slice(0, 0)):
                pass
            rng.randint(2**31)
            continue
        split = split_entries(problem.X, share, rng)
        start = replace(origin, n_init=1, random_state=int(rng.randint(2**31)))
        weights = split.hidden.weights_of(slice(None), torch.float64)
        assert weights is not None
        (count,) = problem.X.totals(weights.sum())
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
