"""How many components: the ranks whose runs from different starts agree."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from torch import Tensor
from tqdm import tqdm

from nnmf_cuda.nnmf import inputs as _row_blocks
from nnmf_cuda.nnmf.inputs import check_choice, check_integer, read_matrix, resolve_device
from nnmf_cuda.nnmf.parameters import check_parameters, check_zeros, objective_of
from nnmf_cuda.nnmf.restarts import Run, grid_runs
from nnmf_cuda.nnmf.solvers import Problem
from nnmf_cuda.nnmf.starts import iter_starts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from itertools import combinations

from scipy.cluster.hierarchy import cophenet, linkage
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import one_hot

__all__ = ["RankSelection"]


FloatArray = NDArray[np.float64]

_SLACK = {"components": 0.02, "dispersion": 1e-3, "cophenetic": 1e-3}
"""How far below the best score a rank still counts as equally stable."""

CRITERIA = tuple(_SLACK)


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
    criterion : {"components", "dispersion", "cophenetic"}
        The score that has chosen.
    chosen : int
        The largest rank that is as stable as the most stable one.
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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the three scores and the best run's error against the rank; needs matplotlib.

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
        for name in CRITERIA:
            ax.plot(self.ranks, getattr(self, name), marker="o", label=name)
        ax.axvline(self.chosen, color="grey", linestyle=":", label=f"chosen: {self.chosen}")
        ax.set(xlabel="number of components", ylabel=f"stability over {self.n_init} runs")
        ax.set_xticks(self.ranks)
        right = ax.twinx()
        right.plot(self.ranks, self.reconstruction_err, color="black", linestyle="--")
        right.set_ylabel("reconstruction error of the best run (dashed)")
        ax.legend()
        return ax


class RankSelectionMixin:
    """`NNMF.select_rank`."""

    device: Any
    random_state: Any

    def select_rank(
        self,
        X: Any,
        n_components: Iterable[int] = range(2, 11),
        *,
        n_init: int = 20,
        criterion: str = "components",
        max_samples: int | None = 2000,
    ) -> RankSelection:
        """Compare numbers of components by how far runs from different starts agree.

        The estimator is not fitted and its own `n_components` and `n_init` are not used; all
        other parameters are. With an integer `random_state` the runs of a rank are those of
        ``NNMF(n_components=rank, n_init=n_init).fit(X)``.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            As for `fit`.
        n_components : iterable of int, default=range(2, 11)
            The ranks, from 2 to min(n_samples, n_features), in any order.
        n_init : int, default=20
            Runs of each rank, at least 2; 20 to 100 are usual.
        criterion : {"components", "dispersion", "cophenetic"}, default="components"
            The score that chooses. All three are returned.
        max_samples : int or None, default=2000
            Samples in the consensus matrix, drawn with `random_state` where X has more; None
            takes all. Time and memory of a rank grow with its square (2000 samples: 16 MB).

        Returns
        -------
        RankSelection
            ``chosen`` and the curves it was chosen by; ``plot()`` draws them.

        Raises
        ------
        TypeError, ValueError
            As `fit`; also for ranks or runs too few or too many, or an `init` that is not random.

        Warns
        -----
        ConvergenceWarning
            If ``tol > 0`` and some runs have not converged.

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

        A stable rank is reproducible, not proven: noise has stable small ranks too, and where
        components are much alike all ranks score high. A curve that only falls chooses its
        smallest rank and says nothing. Look at `plot()` and at what the error gains. Runs that
        have not converged differ for that reason alone: use a small `tol`, such as 1e-5.

        On a GPU, ranks with the same multiple of 8 above them run as one batch, filled up with
        zeros, in parts if the factors have more than 2^26 entries.

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

        Examples
        --------
        >>> import numpy as np
        >>> from nnmf_cuda import NNMF
        >>> rng = np.random.default_rng(0)
        >>> X = rng.gamma(1, size=(60, 4)) @ np.kron(np.eye(4), np.ones(10))
        >>> X += 0.1 * rng.random(X.shape)
        >>> model = NNMF(solver="accelerated-mu", max_iter=2000, tol=1e-5, random_state=0)
        >>> model.select_rank(X, range(2, 8)).chosen
        4
        """
        check_parameters(self)
        check_integer("n_init", n_init, low=2)
        check_choice("criterion", criterion, CRITERIA)
        if max_samples is not None:
            check_integer("max_samples", max_samples, low=2)
        # A copy, because reading X sets the number of features that an estimator was fitted with.
        matrix = read_matrix(copy(self), X, device=resolve_device(self.device, X), reset=True)
        ranks = _read_ranks(n_components, min(matrix.shape))
        check_zeros(self, matrix)
        rows = _rows_of_consensus(matrix, max_samples, self.random_state)
        scores = _scores_by_rank(self, matrix, ranks, n_init, rows)
        curves = {
            name: np.array([scores[rank][name] for rank in ranks]) for name in scores[ranks[0]]
        }
        _warn_of_unfinished(self, curves["converged"])
        return RankSelection(
            ranks=np.array(ranks),
            n_init=n_init,
            criterion=criterion,
            chosen=ranks[_last_stable(curves[criterion], _SLACK[criterion])],
            **curves,
        )


def _read_ranks(n_components: Any, limit: int) -> list[int]:
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
    if ranks[-1] > limit:
        raise ValueError(
            f"n_components contains {ranks[-1]}, which is above min(n_samples, n_features) = "
            f"{limit}; use ranks <= {limit}"
        )
    return ranks


def _scores_by_rank(
    estimator: Any, X: Tensor, ranks: Sequence[int], n_init: int, rows: Tensor
) -> dict[int, dict[str, float]]:
    """Run the restarts of all ranks and score each rank when its last run has ended."""

    def starts(rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter_starts(
            X, rank, init=estimator.init, n_init=n_init, random_state=estimator.random_state
        )

    runs = grid_runs(
        Problem(X, objective_of(estimator, *X.shape)),
        ranks,
        n_init,
        starts,
        solver=estimator.solver,
        max_iter=estimator.max_iter,
        tol=estimator.tol,
    )
    ended: dict[int, list[_Ended]] = defaultdict(list)
    scores: dict[int, dict[str, float]] = {}
    # None shows the bar on a terminal only.
    hidden = None if estimator.verbose else True
    for run in tqdm(runs, total=len(ranks) * n_init, desc="ranks", unit="run", disable=hidden):
        rank = run.n_components
        ended[rank].append(_Ended.of(run, rows))
        if len(ended[rank]) == n_init:
            scores[rank] = _scores(ended.pop(rank))
    return scores


@dataclass(frozen=True)
class _Ended:
    """What the scores need of a run; all of W would be too much to keep."""

    run: Run
    labels: Tensor  # (n_rows,)
    components: Tensor  # (n_components, n_features)

    @classmethod
    def of(cls, run: Run, rows: Tensor) -> _Ended:
        if not math.isfinite(run.objective[-1]):
            raise ValueError(
                f"the factorisation with n_components={run.n_components} overflowed in restart "
                f"{run.restart}; scale X to values around 1, use float64 or another beta_loss"
            )
        W, H = run.W, run.H
        assert W is not None
        assert H is not None
        run.W = run.H = None
        return cls(run, assignments(W[rows], H), H)


def _scores(ended: Sequence[_Ended]) -> dict[str, float]:
    # Runs end in an order of their own; sums should not depend on it.
    ended = sorted(ended, key=lambda one: one.run.restart)
    labels = torch.stack([one.labels for one in ended])
    pairs = consensus(labels)
    best = min((one.run for one in ended), key=Run.order)
    return {
        "components": component_similarity(torch.stack([one.components for one in ended])),
        "dispersion": dispersion(pairs, labels.shape[1]),
        "cophenetic": cophenetic_correlation(pairs),
        "objective": best.objective[-1],
        "reconstruction_err": math.sqrt(2 * max(best.divergence, 0.0)),
        "converged": float(np.mean([one.run.converged for one in ended])),
    }


def _last_stable(scores: FloatArray, slack: float) -> int:
    """Return the index of the last score that is no more than `slack` below the best."""
    return int(np.flatnonzero(scores >= scores.max() - slack)[-1])


def _rows_of_consensus(X: Tensor, max_samples: int | None, random_state: Any) -> Tensor:
    """Return the samples (n_rows,) whose clusters are compared, ascending."""
    # A row of zeros has a share of no component.
    rows = np.flatnonzero(_row_blocks.row_means(X).flatten().cpu().numpy() > 0)
    if len(rows) < 2:
        raise ValueError(
            f"X has {len(rows)} rows that are not all zeros, but stability is compared over pairs "
            "of samples; give at least 2"
        )
    if max_samples is not None and len(rows) > max_samples:
        drawn = check_random_state(random_state).choice(len(rows), max_samples, replace=False)
        rows = rows[np.sort(drawn)]
    return torch.from_numpy(rows).to(X.device)


def _warn_of_unfinished(estimator: Any, converged: FloatArray) -> None:
    if estimator.tol > 0 and converged.min() < 1:
        warnings.warn(
            f"{1 - converged.mean():.0%} of the runs stopped at max_iter={estimator.max_iter} "
            f"before they converged to tol={estimator.tol}, so that they may differ although their "
            "minima agree; raise max_iter, or use solver='accelerated-mu'",
            ConvergenceWarning,
            stacklevel=3,
        )


# How much the runs of one rank agree: on which samples belong together, and on the components.
_BLOCK_ROWS = 512
"""Rows of the consensus matrix that are there together; of the rest there is the upper half."""


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
    for first in range(0, n, _BLOCK_ROWS):
        block = (member[first : first + _BLOCK_ROWS] @ member[first:].mT).cpu().numpy()
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
