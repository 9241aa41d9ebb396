"""A robust accuracy beside the constant answer."""

from __future__ import annotations

import numpy as np

from nnmf_cuda.evaluation.robustness import Verdict


def verdict_at(
    robust: np.ndarray, *, is_worst_case: bool = True, **groupings: np.ndarray
) -> Verdict:
    labels = (np.arange(len(robust)) % 5 < 2).astype(np.int64)  # the constant answer has 0.6
    return Verdict.of(robust, labels, groupings=groupings, seed=0, is_worst_case=is_worst_case)


def test_verdicts() -> None:
    rng = np.random.default_rng(0)
    shares = {0.95: "beats", 0.6: "does not beat", 0.2: "is below"}
    for share, says in shares.items():
        robust = (rng.random(400) < share).astype(float)
        verdict = verdict_at(robust)
        assert verdict.constant == 0.6
        assert f"{says} the constant answer, 0.6000" in verdict.sentence
        assert "95 % Wilson interval by image" in verdict.sentence
        assert "no worst case" in verdict_at(robust, is_worst_case=False).sentence


def test_intervals_are_wider_where_groups_agree() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(300) // 10
    robust = (rng.random(30) < 0.7)[groups].astype(float)
    alone, together = verdict_at(robust), verdict_at(robust, series=groups)
    assert together.low < alone.low < robust.mean() < alone.high < together.high
    assert "by series" in together.sentence
    none, every = (verdict_at(np.full(300, v), series=groups) for v in (0.0, 1.0))
    assert none.low == 0 < none.high
    assert every.low < 1 == every.high
