"""The one line: its text, its figures by hand, means, and a contradiction that is planted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnmf_cuda.evaluation.headline import ContradictionError, Headline, Proof

ROBUST = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
CLEAN = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
LABELS = np.array([0, 0, 1, 1, 1, 1, 1, 0])
PROVEN = np.array([1, 1, 0, 1, 0, 1, 0, 0], dtype=bool)
PROOF = Proof(PROVEN, "branch and bound")


def made(proof=PROOF, labels=LABELS, **changes):
    return Headline.of(ROBUST, CLEAN, labels, proof, **{"ceiling": 0.875, **changes})


def test_the_line_has_bounds_from_above_to_below():
    assert made().line == (
        "ceiling 0.875 >= attacked 0.625 >= proven 0.500, clean 0.875, constant answer 0.625,"
        " undecided 0.125; each class counted alike: attacked 0.633 >= proven 0.533, clean 0.900,"
        " constant answer 0.500"
    )


def test_classes_of_about_one_size_need_no_second_count():
    found = made(labels=np.array([0, 0, 1, 1, 1, 0, 1, 0]))
    assert found.balanced is None
    assert found.line.endswith("constant answer 0.500, undecided 0.125")


def test_what_is_not_proven_says_why():
    nothing = made(Proof(None, "not verified by preset paper"), is_worst_case=False).as_dict()
    assert nothing["line"].startswith(
        "ceiling 0.875 >= attacked 0.625 (by the paper's protocol alone), clean 0.875, constant"
        " answer 0.625, proven none (not verified by preset paper)"
    )
    assert nothing["proven_accuracy"] is nothing["undecided_accuracy"] is None
    assert nothing["proof"] == "not verified by preset paper"


def test_a_certificate_of_another_classifier_bounds_nothing():
    certified = Proof(~PROVEN, "by smoothing", is_of_defence=False)  # which contradicts nobody
    found = made(certified)
    assert "attacked 0.625, clean 0.875" in found.line
    assert "certified 0.500 (by smoothing)" in found.line
    assert (found.proven, found.undecided) == (0.5, None)


def test_attacks_that_leave_more_than_the_ceiling_are_seen():
    assert made(ceiling=0.5).line.startswith("ceiling 0.500 < attacked 0.625 >= proven")


def test_a_sample_both_proven_and_broken_stops_and_is_named():
    proven = PROVEN.copy()
    proven[[4, 7]] = True
    with pytest.raises(ContradictionError, match=r"test sample 4, 7: proven robust by branch and"):
        made(Proof(proven, "branch and bound"))


def test_a_sample_that_one_round_in_many_breaks_is_broken():
    robust = ROBUST.copy()
    robust[0] = 0.95
    with pytest.raises(ContradictionError, match="test sample 0: "):
        Headline.of(robust, CLEAN, LABELS, PROOF, ceiling=None)


def test_json_keeps_every_figure():
    found = made()
    content = json.loads(json.dumps(found.as_dict()))
    assert content["ceiling"] == 0.875
    assert content["proven_accuracy"] == 0.5
    assert content["undecided_accuracy"] == 0.125
    assert content["line"] == found.line
    assert Headline.from_dict(content) == found


def test_means_lack_what_one_of_them_lacks():
    first, second = made(), made(Proof(np.zeros(8, bool), "branch and bound"))
    mean = Headline.mean([first, second])
    assert (mean.attacked, mean.proven, mean.undecided) == (0.625, 0.25, 0.375)
    assert mean.balanced is not None
    assert mean.balanced.proven == pytest.approx(0.8 / 3)
    other = Headline.mean([first, made(Proof(None, "stopped"), ceiling=None)])
    assert (other.proven, other.undecided, other.ceiling) == (None, None, None)
    assert "proven none (stopped)" in other.line
