"""Ranks compared by entries that a fit has not seen."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import ConvergenceWarning

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.held_out import least_rank, split_entries
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.weighted_matrix import Told, weighted_matrix
from tests.nnmf.test_missing import planted


def counts(k: int = 4, seed: int = 0) -> np.ndarray:
    """Return counts (150, 50) of k parts."""
    rng = np.random.default_rng(seed)
    X, _ = planted(150, 50, k, seed=seed)
    return rng.poisson(12 * X / X.mean()).astype(np.float64)


def test_a_split_parts_what_counts_and_empties_no_row_or_column() -> None:
    rng = np.random.RandomState(0)
    X = torch.from_numpy(rng.random_sample((30, 5)) + 1)
    weights = rng.random_sample((30, 5)) * (rng.random_sample((30, 5)) > 0.3)
    weights[:, 0] = 0
    weights[4, 0] = 2
    for matrix, want in (
        (Dense(X), torch.ones(30, 5, dtype=X.dtype)),
        (weighted_matrix(X, Told(weights=weights)), torch.from_numpy(weights)),
        (weighted_matrix(X, Told(mask=weights > 0)), torch.from_numpy(weights > 0).double()),
    ):
        split = split_entries(matrix, 0.5, rng)
        seen, hidden = (
            part.weights_of(slice(None), X.dtype) for part in (split.seen, split.hidden)
        )
        torch.testing.assert_close(seen + hidden, want, rtol=0, atol=0)
        assert not ((seen > 0) & (hidden > 0)).any()
        assert ((seen > 0).any(0) == (want > 0).any(0)).all()
        assert ((seen > 0).any(1) == (want > 0).any(1)).all()
        assert 0.2 < float((hidden > 0).sum() / (want > 0).sum()) < 0.6
        assert (split.seen.tensor[seen == 0] == 0).all()
        torch.testing.assert_close(split.hidden.tensor[hidden > 0], X[hidden > 0])


def test_the_smallest_rank_as_good_as_the_best_is_chosen() -> None:
    errors = np.array([[9.0, 5.0, 4.0, 4.1], [9.0, 5.0, 4.0, 3.8], [9.5, 5.6, 4.2, 4.2]])
    assert least_rank([2, 3, 4, 5], errors + 0.01 * np.arange(3)[:, None]) == 4
    assert least_rank([2, 3, 4, 5], np.array([[1.0, 1, 1, 1], [1, 1, 1, 1]])) == 2


@pytest.mark.parametrize(
    "options", [{"solver": "accelerated-mu"}, {"solver": "hals", "beta_loss": 2}], ids=str
)
def test_held_out_entries_tell_the_planted_rank(options: dict[str, object]) -> None:
    X = counts()
    nnmf = NNMF(random_state=0, max_iter=150, tol=1e-5, **options)
    split = {"criterion": "held_out", "held_out": 0.1, "n_repeats": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = nnmf.select_rank(X, (2, 3, 4, 6), n_init=2, **split)
    assert found.chosen == 4
    assert found.criterion == "held_out"
    curve = found.held_out.mean(0)
    assert found.held_out.shape == (3, 4)
    assert curve.argmin() == 2
    assert curve[-1] > curve[2]  # where the fit's own error only falls
    assert (np.diff(found.reconstruction_err) < 0).all()
    assert found.plot().figure.axes[1].get_ylabel() == "divergence of a hidden entry (dashed)"


def test_stability_does_not_depend_on_what_is_held_out() -> None:
    X = counts()
    nnmf = NNMF(random_state=0, max_iter=10, tol=0)
    plain = nnmf.select_rank(X, (2, 3), n_init=2)
    both = nnmf.select_rank(X, (2, 3), n_init=2, held_out=0.2, n_repeats=2)
    assert plain.held_out is None
    np.testing.assert_array_equal(both.components, plain.components)
    assert both.chosen == plain.chosen
    assert both.held_out.shape == (2, 2)
    again = nnmf.select_rank(X, (2, 3), n_init=2, held_out=0.2, n_repeats=2)
    np.testing.assert_array_equal(again.held_out, both.held_out)


def test_what_is_missing_is_never_held_out() -> None:
    X = counts()
    mask = np.random.default_rng(1).random(X.shape) > 0.3
    options = {"n_init": 2, "held_out": 0.2, "n_repeats": 2}
    nnmf = NNMF(random_state=0, max_iter=10, tol=0)
    told = nnmf.select_rank(X, (2, 3), mask=mask, **options)
    nnmf.missing_values = np.nan
    hidden = nnmf.select_rank(np.where(mask, X, np.nan), (2, 3), **options)
    np.testing.assert_array_equal(told.held_out, hidden.held_out)
    np.testing.assert_array_equal(told.components, hidden.components)


def test_errors() -> None:
    X = counts()
    nnmf = NNMF(random_state=0, max_iter=10, tol=0)
    with pytest.raises(ValueError, match=r"held_out must be a finite number in \[0, 0.9\]"):
        nnmf.select_rank(X, (2, 3), held_out=1)
    with pytest.raises(ValueError, match="n_repeats must be an integer >= 2, got 1"):
        nnmf.select_rank(X, (2, 3), held_out=0.1, n_repeats=1)
    with pytest.raises(ValueError, match="criterion='held_out' needs entries to hide"):
        nnmf.select_rank(X, (2, 3), criterion="held_out")
    with pytest.raises(ValueError, match="graph counts all entries of X alike"):
        NNMF(beta_loss=2, graph="neighbors").select_rank(X, (2, 3), held_out=0.1)
    with pytest.raises(TypeError, match="held_out needs dense X"):
        nnmf.select_rank(scipy.sparse.csr_array(X), (2, 3), n_init=2, held_out=0.1)
    with pytest.raises(ValueError, match="held_out=1e-09 hides no entry of X"):
        nnmf.select_rank(X, (2, 3), n_init=2, held_out=1e-9)
