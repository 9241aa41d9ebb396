"""Warnings point at the line of the user, from whatever call of scikit-learn's they come."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from nnmf_cuda import NNMF


@pytest.fixture
def X(rng):
    return rng.random((20, 8))


def places(run, *args):
    """Return the messages of the warnings of a call, and the files that they are said to be of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(*args)
    return {str(one.message)[:20] for one in seen}, {one.filename for one in seen}


@pytest.mark.parametrize("output", ["default", "pandas"])
def test_each_warning_of_an_estimator_is_at_the_users_line(X, output):
    model = NNMF(2, init="nndsvd", beta_loss=2, alpha_W=1e-3, max_iter=2, random_state=0)
    model.set_output(transform=output)
    messages, files = places(model.fit, X)
    assert len(messages) == 2  # zeros that stay, iterations that ended
    assert files == {__file__}
    messages, files = places(model.fit_transform, X)
    assert len(messages) == 3  # and the penalty that is left out
    assert files == {__file__}
    assert places(model.transform, X)[1] == {__file__}
    model.set_params(alpha_W=0, init="random", tol=0).fit((255 * X).astype(np.uint8))
    assert places(model.transform, 255 * X)[1] == {__file__}
    assert places(model.partial_fit, 255 * X)[1] == {__file__}
    for run in (model.fit, model.fit_transform):
        assert places(run, 1e-250 * X)[1] == {__file__}


def test_each_warning_in_a_pipeline_or_search_is_at_the_users_line(X):
    model = NNMF(2, beta_loss=2, alpha_W=1e-3, max_iter=2, random_state=0)
    for steps in ((model, MinMaxScaler()), (MinMaxScaler(), model)):
        assert places(make_pipeline(*steps).fit, X)[1] == {__file__}
        assert places(make_pipeline(*steps).fit_transform, X)[1] == {__file__}
    search = GridSearchCV(model, {"n_components": [1, 2]}, cv=2, scoring=lambda *_: 0.0)
    assert places(search.fit, X)[1] == {__file__}
