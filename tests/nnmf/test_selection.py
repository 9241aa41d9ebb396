from __future__ import annotations

import statistics
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_ind
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from nnmf_cuda import ComponentSelector

EXPECTED_FAILURES = {
    "check_fit_score_takes_y": "the second argument of fit is called labels, not y"
}


@parametrize_with_checks(
    [ComponentSelector()], expected_failed_checks=lambda _estimator: EXPECTED_FAILURES
)
def test_selector_follows_the_scikit_learn_protocol(estimator, check):
    check(estimator)


@pytest.fixture
def labels(rng):
    return rng.permutation(np.repeat([0, 1], [31, 46]))


@pytest.fixture
def features(rng, labels):
    """Five components; rounding makes ties, and spread differs between the classes."""
    noise = rng.normal(size=(len(labels), 5)) * (1 + labels[:, None])
    return (noise + labels[:, None] * [0.0, 1.5, -0.7, 0.2, -3.0]).round(1)


def test_selector_statistics_against_the_libraries(features, labels):
    selector = ComponentSelector().fit(features, labels)
    for j, column in enumerate(features.T):
        positive, negative = column[labels == 1], column[labels == 0]
        assert len(set(column)) < len(column), "no ties to handle"
        assert selector.auc_[j] == pytest.approx(roc_auc_score(labels, column), rel=1e-12)
        test = ttest_ind(positive, negative, equal_var=False)
        assert selector.p_value_[j] == pytest.approx(test.pvalue, rel=1e-9)
        pooled = (
            (len(positive) - 1) * statistics.variance(positive)
            + (len(negative) - 1) * statistics.variance(negative)
        ) / (len(labels) - 2)
        d = (positive.mean() - negative.mean()) / pooled**0.5
        assert selector.cohens_d_[j] == pytest.approx(d, rel=1e-12)


def test_selector_ranks_by_the_sum_of_three_ranks(features, labels):
    selector = ComponentSelector(n_selected=2).fit(features, labels)
    keys = (-np.abs(selector.auc_ - 0.5), -np.abs(selector.cohens_d_), selector.p_value_)
    expected = [sum(1 + (key < key[j]).sum() for key in keys) for j in range(5)]  # no ties here
    np.testing.assert_array_equal(selector.rank_sum_, expected)
    np.testing.assert_array_equal(selector.ranking_, np.argsort(expected, kind="stable"))
    assert selector.ranking_[0] == 4  # shifted by -3, the most of all
    np.testing.assert_array_equal(selector.selected_, [1, 4])


def test_selector_keeps_component_order(features, labels):
    best_first = ComponentSelector().fit(features, labels).ranking_
    selector = ComponentSelector(n_selected=3).fit(features, labels)
    np.testing.assert_array_equal(selector.selected_, sorted(best_first[:3]))
    np.testing.assert_array_equal(selector.transform(features), features[:, selector.selected_])


def test_selector_without_a_number_keeps_all(features, labels):
    selector = ComponentSelector().fit(features, labels)
    np.testing.assert_array_equal(selector.selected_, np.arange(5))
    np.testing.assert_array_equal(selector.transform(features), features)


def test_selector_gives_ties_to_the_lower_index(features, labels):
    twins = np.hstack([features[:, :1], features[:, 4:], features[:, 4:], -features[:, 4:]])
    selector = ComponentSelector(n_selected=1).fit(twins, labels)
    np.testing.assert_array_equal(selector.rank_sum_, [12, 6, 6, 6])
    np.testing.assert_array_equal(selector.ranking_, [1, 2, 3, 0])
    np.testing.assert_array_equal(selector.selected_, [1])


def test_selector_shares_ranks_where_p_underflows(rng):
    labels = np.repeat([0, 1], 400)
    features = rng.normal(size=(800, 2)) * 0.01 + labels[:, None] * [50.0, 60.0]
    selector = ComponentSelector().fit(features, labels)
    np.testing.assert_array_equal(selector.p_value_, [0, 0])
    np.testing.assert_array_equal(selector.rank_sum_, [1.5 + 2 + 1.5, 1.5 + 1 + 1.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_selector_constant_components_say_nothing_and_do_not_warn(features, labels, dtype):
    columns = [np.full(len(labels), 0.1), features[:, 1], np.where(labels == 1, 0.3, 0.1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selector = ComponentSelector().fit(np.column_stack(columns).astype(dtype), labels)
    assert selector.auc_[0] == 0.5
    assert selector.cohens_d_[0] == 0
    assert selector.p_value_[0] == 1
    assert (selector.auc_[2], selector.cohens_d_[2], selector.p_value_[2]) == (1, np.inf, 0)
    np.testing.assert_array_equal(selector.ranking_, [2, 1, 0])


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # the oracle's own
def test_selector_component_constant_in_one_class_only(features, labels):
    features[labels == 0, 0] = 0.5
    selector = ComponentSelector().fit(features, labels)
    expected = ttest_ind(features[labels == 1, 0], features[labels == 0, 0], equal_var=False)
    assert selector.p_value_[0] == pytest.approx(expected.pvalue, rel=1e-9)


def test_selector_takes_the_strongest_class_of_several(rng):
    labels = rng.permutation(np.repeat([0, 1, 2], 30))
    features = (
        rng.normal(size=(90, 3)) + np.array([[0, -2, 0.3], [0, 0, 0.1], [1, 0, -0.5]])[labels]
    )
    selector = ComponentSelector().fit(features, labels)
    pairs = [ComponentSelector().fit(features, labels == k) for k in range(3)]
    for j in range(3):
        aucs, ds, ps = zip(
            *[(pair.auc_[j], pair.cohens_d_[j], pair.p_value_[j]) for pair in pairs], strict=True
        )
        assert selector.auc_[j] == max(aucs, key=lambda auc: abs(auc - 0.5))
        assert selector.cohens_d_[j] == max(ds, key=abs)
        assert selector.p_value_[j] == min(ps)
    assert selector.auc_[1] < 0.5  # class 0 lies below the rest: the direction is kept


def test_selector_last_label_is_positive(features, labels):
    numbers = ComponentSelector().fit(features, labels)
    names = ComponentSelector().fit(features, np.array(["Normal", "Tumor"])[labels])
    np.testing.assert_array_equal(names.auc_, numbers.auc_)
    np.testing.assert_array_equal(names.classes_, ["Normal", "Tumor"])
    np.testing.assert_allclose(ComponentSelector().fit(features, -labels).auc_, 1 - numbers.auc_)


def test_selector_tensors_in_tensors_out_with_gradient(features, labels):
    selector = ComponentSelector(n_selected=2).fit(
        torch.from_numpy(features).requires_grad_(), torch.from_numpy(labels)
    )
    expected = ComponentSelector(n_selected=2).fit(features, labels)
    np.testing.assert_array_equal(selector.p_value_, expected.p_value_)
    x = torch.from_numpy(features).float().requires_grad_()
    kept = selector.transform(x)
    assert kept.dtype == torch.float32
    kept.sum().backward()
    mask = np.isin(np.arange(5), selector.selected_)
    np.testing.assert_array_equal(x.grad, np.broadcast_to(mask, features.shape))


def test_selector_names_what_it_keeps(features, labels):
    frame = pd.DataFrame(features, columns=list("abcde"))
    selector = ComponentSelector(n_selected=2).fit(frame, labels)
    np.testing.assert_array_equal(selector.get_feature_names_out(), ["b", "e"])
    np.testing.assert_array_equal(selector.get_support(indices=True), [1, 4])


@pytest.mark.parametrize(
    ("n_selected", "error"), [(0, ValueError), (6, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_selector_rejects_a_bad_number(features, labels, n_selected, error):
    message = rf"n_selected must be an integer in \[1, 5\], got {n_selected}"
    with pytest.raises(error, match=message):
        ComponentSelector(n_selected=n_selected).fit(features, labels)


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_selector_rejects_bad_features(features, labels, as_input):
    with pytest.raises(ValueError, match="2D array"):
        ComponentSelector().fit(as_input(features[:, 0]), labels)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        ComponentSelector().fit(as_input(features), labels)


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_selector_rejects_bad_labels(features, labels, as_input):
    def fit(values):
        return ComponentSelector().fit(features, as_input(np.asarray(values)))

    with pytest.raises(ValueError, match=r"labels must have shape \(77,\).*got \(76,\)"):
        fit(labels[:-1])
    with pytest.raises(ValueError, match=r"labels must have shape \(77,\).*got \(77, 1\)"):
        fit(labels[:, None])
    with pytest.raises(ValueError, match="labels has one class only"):
        fit(np.zeros(77))
    with pytest.raises(ValueError, match="class .* has 1 row of 2 needed"):
        fit([1] + [0] * 76)
    if as_input is np.asarray:
        with pytest.raises(ValueError, match="class 'rare' has 1 row of 2 needed"):
            fit(np.array(["rare"] + ["often"] * 76, dtype=object))
    with pytest.raises(ValueError, match="labels contains NaN"):
        fit([np.nan] + [0.0] * 40 + [1.0] * 36)


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_selector_rejects_another_number_of_components(features, labels, as_input):
    selector = ComponentSelector().fit(features, labels)
    with pytest.raises(ValueError, match="4.*5"):
        selector.transform(as_input(features[:, :4]))


def test_selector_transform_before_fit(features):
    with pytest.raises(NotFittedError):
        ComponentSelector().transform(features)
