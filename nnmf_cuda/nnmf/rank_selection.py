"""How many components: runs of many ranks in few batches, and how far those of one rank agree."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.optimize import linear_sum_assignment
from sklearn.utils import check_random_state
from torch import Tensor
from torch.nn.functional import one_hot

from nnmf_cuda.nnmf.inputs import check_integer
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.minimisation import Run, all_runs
from nnmf_cuda.nnmf.problem import Problem
from nnmf_cuda.nnmf.solvers import SOLVERS
from nnmf_cuda.nnmf.starts import Origin, iter_starts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

Ended = list[tuple[Tensor, Run]]
"""Runs of one rank with the labels that they give samples."""

SLACK = {"components": 0.02, "dispersion": 1e-3, "cophenetic": 1e-3}
"""Each criterion, and how far below the best score a rank still counts as equally stable."""

BATCH_ENTRIES = 2**26
"""Entries of W and H together in one batch: 256 MiB in float32, and a solver holds some copies."""

BLOCK_ROWS = 512
"""Rows of the consensus matrix that are there together; of the rest there is the upper half."""

_WIDTH_ON_GPU = 8
"""CUDA kernels round the rank up to a multiple of this, so ranks up to it cost one batch no more.

On the CPU the cost of an iteration grows with the rank itself and a batch gains nothing over its
parts: there only starts of one rank share a batch.
"""


@dataclass(frozen=True)
class RankSelection:
    """Scores of each rank over restarts; what `NNMF.select_rank` returns.

    Attributes
    ----------
    ranks : ndarray of shape (n_ranks,)
        Numbers of components that were tried, ascending.
    components : ndarray of shape (n_ranks,)
        Mean cosine of matched components over all pairs of runs, in [0, 1].
    dispersion : ndarray of shape (n_ranks,)
        Of the consensus matrix, in [0, 1]: 1 where all runs make the same clusters of samples.
    cophenetic : ndarray of shape (n_ranks,)
        Cophenetic correlation coefficient of the consensus matrix.
    objective : ndarray of shape (n_ranks,)
        Divergence plus regularisation of the best run.
    reconstruction_err : ndarray of shape (n_ranks,)
        sqrt(2 * divergence) of the best run.
    converged : ndarray of shape (n_ranks,)
        Share of the runs that met the rule of `tol`.
    n_init : int
        Runs of each rank.
    criterion : {"components", "dispersion", "cophenetic", "held_out"}
        The score that has chosen.
    chosen : int
        The largest rank that is as stable as the most stable one; with "held_out" the smallest one
        that tells hidden entries as well as the best.
    held_out : ndarray of shape (n_repeats, n_ranks) or None
        Mean divergence of an entry that the fit has not seen, each repetition with others; None
        where none were held out.

    Notes
    -----
    "components": the mean cosine of components matched one to one (Hungarian method), over
    all pairs of runs [1]_ [2]_. "dispersion" [3]_ and "cophenetic" [4]_ judge the consensus
    matrix, the share of runs that put two samples together: a sample belongs to the component
    that gives it the most, ``W[i, t] * sum(H[t])``; rows of zeros are left out. Dispersion is
    the mean of (2 c - 1)^2, cophenetic the correlation of 1 - c with its average linkage.

    Chosen is the largest rank whose score is at most 0.02 (of "components"; 0.001 of the
    others) below the best one: too many components split true ones, each run differently,
    while two or three may be stable for any data. "components" chooses by default, as it does
    not ask that each sample belong to one component, which mixtures such as images do not.

    "held_out": of X some entries, drawn anew in each repetition, are left out of fits of all ranks
    [5]_. Too few components miss what X is made of, too many fit its noise: both tell what is
    hidden worse. Chosen is the smallest rank whose error is above that of the best by no more
    than one standard error of that difference over the repetitions.

    A stable rank is reproducible, not proven: noise has stable small ranks too, and where
    components are much alike all ranks score high. A curve that only falls chooses its
    smallest rank and says nothing. Look at `plot()` and at what the error gains. Runs that
    have not converged differ for that reason alone: keep `tol` small, such as 1e-4.

    References
    ----------
    .. [1] Alexandrov et al. (2013), Deciphering signatures of mutational processes operative
       in human cancer, Cell Reports 3(1).
    .. [2] Wu et al. (2016), Stability-driven nonnegative matrix factorization to interpret
       spatial gene expression and build local gene networks, PNAS 113(16).
    .. [3] Kim & Park (2007), Sparse non-negative matrix factorizations via alternating
       non-negativity-constrained least squares for microarray data analysis,
       Bioinformatics 23(12).
    .. [4] Brunet et al. (2004), Metagenes and molecular pattern discovery using matrix
       factorization, PNAS 101(12).
    .. [5] Wold (1978), Cross-validatory estimation of the number of components in factor and
       principal components models, Technometrics 20(4); Owen & Perry (2009), Bi-cross-validation
       of the SVD and the nonnegative matrix factorization, Annals of Applied Statistics 3(2).
    """

    ranks: NDArray[np.int64]
    components: FloatArray
    dispersion: FloatArray
    cophenetic: FloatArray
    objective: FloatArray
    reconstruction_err: FloatArray
    converged: FloatArray
    n_init: int
    criterion: str
    chosen: int
    held_out: FloatArray | None = None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the three scores and the error against the rank; needs matplotlib.

        The error is that of hidden entries, where some were held out, else that of the best run.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default a new figure's.

        Returns
        -------
        Axes
            With the scores; the error is on an axis of its own to the right.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        for name in SLACK:
            ax.plot(self.ranks, getattr(self, name), marker="o", label=name)
        ax.axvline(self.chosen, color="grey", linestyle=":", label=f"chosen: {self.chosen}")
        ax.set(xlabel="number of components", ylabel=f"stability over {self.n_init} runs")
        ax.set_xticks(self.ranks)
        right = ax.twinx()
        error, what = self.reconstruction_err, "reconstruction error of the best run"
        if self.held_out is not None:
            error, what = self.held_out.mean(0), "divergence of a hidden entry"
        right.plot(self.ranks, error, color="black", linestyle="--")
        right.set_ylabel(f"{what} (dashed)")
        ax.legend()
        return ax


def read_ranks(n_components: Any, limit: int, n_fixed: int = 0) -> list[int]:
    """Return the ranks in ascending order, each once; raise where one cannot be scored."""
    if isinstance(n_components, str) or not isinstance(n_components, Iterable):
        raise TypeError(
            f"n_components must be a sequence of ranks, such as range(2, 9), got {n_components!r}"
        )
    ranks = list(n_components)
    if not ranks:
        raise ValueError("n_components is empty; give the ranks to compare, such as range(2, 9)")
    for rank in ranks:
        check_integer("each of n_components", rank, low=1)
    ranks = sorted({int(rank) for rank in ranks})
    if ranks[0] == 1:
        raise ValueError(
            "n_components contains 1, on which all runs agree whatever the data; start at 2"
        )
    if ranks[0] <= n_fixed:
        raise ValueError(
            f"n_components contains {ranks[0]}, but the {n_fixed} rows of fixed_components are "
            f"among them, on which all runs agree; start at {n_fixed + 1}"
        )
    if ranks[-1] > limit:
        raise ValueError(
            f"n_components contains {ranks[-1]}, which is above min(n_samples, n_features) = "
            f"{limit}; use ranks <= {limit}"
        )
    return ranks


def rows_of_consensus(X: Matrix, max_samples: int | None, random_state: Any) -> Tensor:
    """Return the samples (n_rows,) whose clusters are compared, ascending, by their places in X.

    Where processes share the rows of X, those of this one, by their places among its own.
    """
    # A row of zeros has a share of no component.
    seen = X.whole_rows(X.row_means().flatten() > 0)
    rows = np.flatnonzero(seen.cpu().numpy())
    if len(rows) < 2:
        raise ValueError(
            f"X has {len(rows)} rows that are not all zeros, but stability is compared over pairs "
            "of samples; give at least 2"
        )
    if max_samples is not None and len(rows) > max_samples:
        rng = X.same_generator(check_random_state(random_state))
        rows = rows[np.sort(rng.choice(len(rows), max_samples, replace=False))]
    own = X.own_rows
    rows = rows[(own.start <= rows) & (rows < own.stop)] - own.start
    return torch.from_numpy(rows).to(X.device)


def grid_runs(
    problem: Problem,
    ranks: Sequence[int],
    origin: Origin,
    *,
    solver: str,
    max_iter: int,
    tol: float,
    own: slice | None = None,
    width: int | None = None,
    batch_entries: int = BATCH_ENTRIES,
) -> Iterator[Run]:
    """Minimise from all starts of each of the ascending ranks and yield each run when it ends.

    Each run is the one that its start has alone, up to the rounding of sums. Starts are those of
    `iter_starts`, drawn rank after rank, of each rank those that `own` says; `solver`, `max_iter`
    and `tol` are those of `all_runs`.

    Ranks with the same multiple of `width` above them (by default `_WIDTH_ON_GPU` on a GPU, 1 on
    the CPU) share batches, filled up with zeros to the largest: every start of a batch costs what
    that one costs. A group of more than `batch_entries` is split into batches of about one size.
    """
    X, on_cpu = problem.X, problem.X.device.type == "cpu"
    wanted = range(origin.n_init)[slice(None) if own is None else own]
    step = width or (1 if on_cpu else _WIDTH_ON_GPU)

    def group_of(rank: int) -> tuple[int, int]:
        return -(-rank // step), SOLVERS[solver].sweeps(X, rank)

    for _, group in groupby(ranks, group_of):
        members = list(group)
        keys = ((rank, restart) for rank in members for restart in wanted)
        drawn = (enumerate(iter_starts(X, rank, origin)) for rank in members)
        queue = (start for i, start in chain.from_iterable(drawn) if i in wanted)
        total = len(members) * len(wanted)
        n_batches = math.ceil(total / max(1, batch_entries // (sum(X.whole_shape) * members[-1])))
        for index in range(n_batches):  # the fewest, alike in size
            size = total * (index + 1) // n_batches - total * index // n_batches
            batch = list(islice(keys, size))
            runs = all_runs(
                problem,
                *_stacked(X, list(islice(queue, size))),
                solver=solver,
                max_iter=max_iter,
                tol=tol,
                ranks=[rank for rank, _ in batch],
            )
            for run in runs:
                yield replace(run, restart=batch[run.restart][1])


def _stacked(X: Matrix, starts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return W (B, n, k_max) and H (B, k_max, f) on X's device, zeros beyond a start's own rank."""
    (n_samples, n_features), widest = X.shape, max(len(H) for _, H in starts)
    like = torch.empty(0, dtype=X.factor_dtype, device=X.device)
    stacked_W = like.new_zeros(len(starts), n_samples, widest)
    stacked_H = like.new_zeros(len(starts), widest, n_features)
    for index, (W, H) in enumerate(starts):
        stacked_W[index, :, : len(H)] = W
        stacked_H[index, : len(H)] = H
    return stacked_W, stacked_H


def compare_ranks(
    runs: Iterable[Run],
    *,
    n_init: int,
    criterion: str,
    labels: Callable[[Run], Tensor],
    n_fixed: int = 0,
    joined: Callable[[Ended], Ended] | None = None,
) -> RankSelection:
    """Score each rank when the last of its `n_init` runs has ended, and choose one.

    Clusters are compared by the `labels` (n_rows,) that a run gives samples, components but for the
    first `n_fixed`. Where `runs` are those of this process, `joined` makes those of all of them.
    """
    ended: dict[int, Ended] = defaultdict(list)
    scores: dict[int, dict[str, float]] = {}
    for run in runs:
        rank = run.n_components
        if not math.isfinite(run.objective[-1]):
            raise ValueError(
                f"the factorisation with n_components={rank} overflowed in restart {run.restart}; "
                "scale X to values around 1, use float64 or another beta_loss"
            )
        # All of W would be too much to keep.
        kept = replace(run, W=run.W.new_empty(0))
        ended[rank].append((labels(run), kept))
        if len(ended[rank]) == n_init:
            scores[rank] = _scores(ended.pop(rank), n_fixed)
    for rank in sorted(ended):
        assert joined is not None
        scores[rank] = _scores(joined(ended.pop(rank)), n_fixed)
    ranks = np.array(sorted(scores))
    curves = {name: np.array([scores[rank][name] for rank in ranks]) for name in scores[ranks[0]]}
    stable = curves[criterion] >= curves[criterion].max() - SLACK[criterion]
    chosen = int(ranks[stable][-1])
    return RankSelection(ranks, n_init=n_init, criterion=criterion, chosen=chosen, **curves)


def _scores(ended: Ended, n_fixed: int) -> dict[str, float]:
    """Score the runs of one rank, given with the components (n_rows,) of the compared samples."""
    # Runs end in an order of their own; sums should not depend on it.
    labels, runs = zip(*sorted(ended, key=lambda one: one[1].restart), strict=True)
    pairs = consensus(torch.stack(labels))
    best = min(runs, key=Run.order)
    return {
        "components": component_similarity(torch.stack([run.H[n_fixed:] for run in runs])),
        "dispersion": dispersion(pairs, len(labels[0])),
        "cophenetic": cophenetic_correlation(pairs),
        "objective": best.objective[-1],
        "reconstruction_err": best.error,
        "converged": float(np.mean([run.converged for run in runs])),
    }


def labels_of(X: Matrix, rows: Tensor) -> Callable[[Run], Tensor]:
    """Return what tells the components of the samples that `rows_of_consensus` has chosen."""

    def labels(run: Run) -> Tensor:
        own = assignments(run.W[rows], run.H)
        return torch.cat(X.gathered(own.cpu())).to(own.device)

    return labels


def assignments(W: Tensor, H: Tensor) -> Tensor:
    """Return the component (n,) that gives each row the most; k where none gives anything.

    What component t gives row i is W_it * sum(H_t): unlike W_it it does not depend on how W H is
    divided between W and H, which no solver decides.
    """
    given = W * H.sum(1)
    most, component = given.max(1)
    return component.masked_fill(most == 0, len(H))


def consensus(labels: Tensor) -> NDArray[np.float64]:
    """Return the share of runs that put two samples together, of labels (n_runs, n).

    In SciPy's condensed form: the pairs (0, 1), (0, 2), ..., (n - 2, n - 1).
    """
    n_runs, n = labels.shape
    # Counts of runs: exact in float32.
    member = one_hot(labels).float().permute(1, 0, 2).flatten(1)
    pairs = np.empty(n * (n - 1) // 2)
    filled = 0
    for first in range(0, n, BLOCK_ROWS):
        block = (member[first : first + BLOCK_ROWS] @ member[first:].mT).cpu().numpy()
        above = block[np.triu_indices(len(block), 1, block.shape[1])]
        pairs[filled : filled + len(above)] = above
        filled += len(above)
    return pairs / n_runs


def dispersion(pairs: NDArray[np.float64], n: int) -> float:
    """Return the mean of (2 c - 1)^2 over the n x n consensus: 1 where it is all zeros and ones."""
    return float((n + 2 * np.square(2 * pairs - 1).sum()) / n**2)


def cophenetic_correlation(pairs: NDArray[np.float64]) -> float:
    """Return how well average linkage keeps the distances 1 - c; 1 where all are equal."""
    distances = 1 - pairs
    if np.ptp(distances) == 0:  # 0 / 0, but the tree keeps such distances exactly
        return 1.0
    correlation, _ = cophenet(linkage(distances, "average"), distances)
    return float(correlation)


def component_similarity(components: Tensor) -> float:
    """Return the mean cosine of matched components (n_runs, k, f) over all pairs of runs.

    Each pair of runs is matched one to one, so that the sum of cosines is largest.
    """
    n_runs, k, _ = components.shape
    length = torch.linalg.vector_norm(components, dim=2, keepdim=True)
    unit = (components / length.masked_fill(length == 0, 1)).flatten(0, 1)
    cosines = (unit @ unit.mT).reshape(n_runs, k, n_runs, k).cpu().numpy()
    total = 0.0
    for one, other in combinations(range(n_runs), 2):
        table = cosines[one, :, other]
        total += table[linear_sum_assignment(table, maximize=True)].mean()
    return total / (n_runs * (n_runs - 1) / 2)
