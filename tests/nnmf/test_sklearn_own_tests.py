"""scikit-learn's own tests of NMF, run from its installed file on NNMF."""

from __future__ import annotations

from pathlib import Path

import pytest
import sklearn.decomposition

from tests.nnmf.sklearn_adapter import own_tests_of_nmf

FILE = Path(sklearn.decomposition.__file__).parent / "tests" / "test_nmf.py"
MADE_FOR = "1.9.1"
if sklearn.__version__ != MADE_FOR:
    pytest.skip(
        f"the list of expected failures is for scikit-learn {MADE_FOR}, not {sklearn.__version__}",
        allow_module_level=True,
    )
if not FILE.is_file():
    pytest.skip(f"scikit-learn is installed without its tests: no {FILE}", allow_module_level=True)

THEIRS = own_tests_of_nmf(FILE)
globals().update((name, test) for name, test in vars(THEIRS).items() if name.startswith("test_"))
N_CASES = 284

EXPECTED_FAILURES = {
    "our message has other words": (
        "test_parameter_checking",
        "test_non_negative_factorization_checking",
        "test_nmf_custom_init_shape_error",
    ),
    "partial_fit has no rule to stop, so no warning that it has not stopped": (
        "test_convergence_warning[MiniBatchNMF-solver2]",
    ),
    "a function of scikit-learn's sparse path, which NNMF has no counterpart of": (
        "test_special_sparse_dot[csr_matrix]",
        "test_special_sparse_dot[csr_array]",
    ),
    "a start of another dtype is cast to that of X, not refused": (
        "test_nmf_custom_init_dtype_error[NMF]",
        "test_nmf_custom_init_dtype_error[MiniBatchNMF]",
    ),
    "fresh_restarts=False: partial_fit keeps no W from one visit of a row to the next": (
        "test_nmf_minibatchnmf_equivalence[-0.5]",
        "test_nmf_minibatchnmf_equivalence[0]",
        "test_nmf_minibatchnmf_equivalence[0.5]",
        "test_nmf_minibatchnmf_equivalence[1]",
        "test_nmf_minibatchnmf_equivalence[1.5]",
        "test_nmf_minibatchnmf_equivalence[2]",
        "test_nmf_minibatchnmf_equivalence[2.5]",
        "test_minibatch_nmf_partial_fit",
    ),
    "a W or H that would not be used is an error, not a warning": (
        "test_nmf_w_h_not_used_warning",
    ),
}
EITHER_WAY = {
    "a component that is zero but for rounding, which lives or dies by the order of sums": tuple(
        f"test_nmf_sparse_input[0.0-1.0-{container}-NMF-solver0]"
        for container in ("csr_matrix", "csr_array", "csc_matrix", "csc_array")
    ),
}
"""What depends on the processor, and on whether a kernel or the reference computes."""
RAISED = (AssertionError, AttributeError, pytest.fail.Exception)  # not a crash of ours
REASONS = {name: reason for reason, names in EXPECTED_FAILURES.items() for name in names}
UNCERTAIN = {name: reason for reason, names in EITHER_WAY.items() for name in names}


@pytest.fixture(autouse=True)
def _expected_failures(request: pytest.FixtureRequest) -> None:
    """Mark the cases of the list; one that passes although it is listed is a failure."""
    if reason := REASONS.get(request.node.name):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True, raises=RAISED))
    if reason := UNCERTAIN.get(request.node.name):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=False, raises=RAISED))


def test_list_of_expected_failures_is_short_and_of_cases_that_exist(request):
    cases = {
        item.name for item in request.session.items if item.function.__module__ == THEIRS.__name__
    }
    if len(cases) < N_CASES:
        pytest.skip("only some of the cases were asked for")
    assert len(cases) == N_CASES
    assert cases >= REASONS.keys() | UNCERTAIN.keys()
    assert N_CASES - len(REASONS) - len(UNCERTAIN) >= 262
