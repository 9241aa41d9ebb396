"""The number of components that an NNMF's own runs agree on: `NNMF.select_rank`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from nnmf_cuda.nnmf.held_out import held_out_errors, least_rank
from nnmf_cuda.nnmf.inputs import check_choice, check_integer, check_real
from nnmf_cuda.nnmf.minimisation import Run
from nnmf_cuda.nnmf.parameters import ParametersMixin
from nnmf_cuda.nnmf.problem import Problem
from nnmf_cuda.nnmf.rank_selection import (
    SLACK,
    RankSelection,
    compare_ranks,
    grid_runs,
    labels_of,
    read_ranks,
    rows_of_consensus,
)
from nnmf_cuda.nnmf.sharding import (
    all_runs_of,
    check_alike,
    one_fate,
    own_share,
    own_starts,
    sum_of_groups,
    without_starts,
)
from nnmf_cuda.nnmf.starts import Origin
from nnmf_cuda.nnmf.user_warning import warn_user
from nnmf_cuda.nnmf.weighted_matrix import check_columns


class RankSelectionMixin(ParametersMixin):
    """Gives `NNMF` its `select_rank`."""

    def select_rank(
        self,
        X: Any,
        n_components: Iterable[int] = range(2, 11),
        *,
        n_init: int = 20,
        criterion: str = "components",
        max_samples: int | None = 2000,
        held_out: float = 0.0,
        n_repeats: int = 5,
        mask: Any = None,
        weights: Any = None,
    ) -> RankSelection:
        """Compare numbers of components by how far runs from different starts agree.

        Beside that, on demand, by how well they tell entries that a fit has not seen.

        The estimator is not fitted and its own `n_components`, `n_init` and `warm_start` are not
        used; all other parameters are. With an integer `random_state` the runs of a rank are those
        of ``NNMF(n_components=rank, n_init=n_init).fit(X)``.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            As for `fit`.
        n_components : iterable of int, default=range(2, 11)
            The ranks, from 2 to min(n_samples, n_features), in any order; with `fixed_components`,
            of which the scores say nothing, each above their number.
        n_init : int, default=20
            Runs of each rank, at least 2; 20 to 100 are usual.
        criterion : {"components", "dispersion", "cophenetic", "held_out"}, default="components"
            The score that chooses. All are returned.
        max_samples : int or None, default=2000
            Samples in the consensus matrix, drawn with `random_state` where X has more; None
            takes all. Time and memory of a rank grow with its square (2000 samples: 16 MB).
        held_out : float, default=0.0
            Share of the entries, in [0, 0.9], that cross-validation hides from fits of their own,
            one of each rank in each repetition: 0.05 to 0.2 are usual; 0 leaves that out. Those
            fits have a mask, need X dense, and know no `precision` but "float32".
        n_repeats : int, default=5
            Repetitions of that, at least 2, each with other entries and another start.
        mask, weights : array-like or Tensor
            As for `fit`.

        Returns
        -------
        RankSelection
            ``chosen`` and its curves, with notes on how far to trust them; ``plot()`` draws them.

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
        On a GPU, ranks with the same multiple of 8 above them run as one batch, filled up with
        zeros, in parts if the factors have more than 2^26 entries.

        Examples
        --------
        >>> import numpy as np
        >>> from nnmf_cuda import NNMF
        >>> rng = np.random.default_rng(0)
        >>> X = rng.gamma(1, size=(60, 4)) @ np.kron(np.eye(4), np.ones(10))
        >>> X += 0.1 * rng.random(X.shape)
        >>> model = NNMF(solver="accelerated-mu", max_iter=2000, tol=1e-4, random_state=0)
        >>> model.select_rank(X, range(2, 8)).chosen
        4
        """
        with one_fate(X):
            self._check_selection(n_init, criterion, max_samples, held_out, n_repeats)
            # A copy, because reading X sets what an estimator was fitted with: features and units.
            reader = copy(self)
            matrix = reader._read_training(X, mask=mask, weights=weights)
            check_columns(matrix)
            origin = replace(reader._origin_for(matrix), n_init=n_init)
            ranks = read_ranks(n_components, min(matrix.whole_shape), origin.n_fixed)
            asked: dict[str, Any] = {
                "n_components": ranks,
                "n_init": n_init,
                "max_samples": max_samples,
            }
            asked |= {"criterion": criterion, "held_out": held_out, "n_repeats": n_repeats}
            check_alike(matrix, asked)
            labels = labels_of(matrix, rows_of_consensus(matrix, max_samples, self.random_state))
            reader._check_precision(matrix)
            problem = replace(
                reader._problem(matrix, origin.n_fixed, reader._graph_for(matrix, None)),
                precision=self.precision,
            )

            def runs(problem: Problem, origin: Origin) -> Iterator[Run]:
                return grid_runs(
                    problem,
                    ranks,
                    origin,
                    solver=self.solver,
                    max_iter=self.max_iter,
                    tol=self.tol,
                    own=own_starts(problem.X, origin.n_init),
                )

            by_stability = criterion if criterion in SLACK else next(iter(SLACK))
            own = own_starts(matrix, n_init)
            total, wanted = len(ranks) * len(range(n_init)[own]), matrix.leads
            bar = self._progress("ranks", "run", runs(problem, origin), total=total, wanted=wanted)
            with bar as shown:
                found = compare_ranks(
                    shown,
                    n_init=n_init,
                    criterion=by_stability,
                    labels=labels,
                    n_fixed=origin.n_fixed,
                    joined=partial(all_runs_of, matrix),
                )
            if held_out > 0:
                # Starts that are dealt have none to deal here: the repetitions are.
                errors = held_out_errors(
                    replace(problem, X=without_starts(matrix), precision="float32"),
                    ranks,
                    origin,
                    runs,
                    share=held_out,
                    n_repeats=n_repeats,
                    rng=matrix.same_generator(check_random_state(self.random_state)),
                    own=own_share(matrix, n_repeats),
                )
                errors = sum_of_groups(matrix, errors)
                chosen = least_rank(ranks, errors) if criterion == "held_out" else found.chosen
                found = replace(found, held_out=errors, criterion=criterion, chosen=chosen)
        if self.tol > 0 and found.converged.min() < 1:
            warn_user(
                f"{1 - found.converged.mean():.0%} of the runs stopped at max_iter={self.max_iter} "
                f"before they converged to tol={self.tol}, so that they may differ although their "
                "minima agree; raise max_iter, or use solver='accelerated-mu'",
                ConvergenceWarning,
            )
        return found

    def _check_selection(
        self, n_init: Any, criterion: Any, max_samples: Any, held_out: Any, n_repeats: Any
    ) -> None:
        """Raise for what `select_rank` cannot do, of all that does not depend on X."""
        self._check_parameters()
        check_integer("n_init", n_init, low=2)
        check_choice("criterion", criterion, (*SLACK, "held_out"))
        check_real("held_out", held_out, low=0, high=0.9)
        check_integer("n_repeats", n_repeats, low=2)
        if criterion == "held_out" and held_out == 0:
            raise ValueError("criterion='held_out' needs entries to hide: give held_out=0.1")
        if held_out > 0:
            self._check_weighted()
        if self._signed:
            raise ValueError(
                "select_rank compares the shares that components have of the samples, which those "
                f"of solver={self.solver!r}, of any sign, do not have; compare fits by "
                "reconstruction_err_"
            )
        if isinstance(self.graph, str) and self.graph == "labels":
            raise ValueError(
                "select_rank is given no labels, of which graph='labels' would be made; give the "
                "graph as a matrix, or use graph=None"
            )
        if max_samples is not None:
            check_integer("max_samples", max_samples, low=2)
