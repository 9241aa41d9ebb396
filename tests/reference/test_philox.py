from __future__ import annotations

import pytest
import scipy.stats
import torch

from nnmf_cuda.reference import philox_4x32, philox_normal
from tests.helpers import KNOWN_PHILOX_ANSWERS


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN_PHILOX_ANSWERS)
def test_philox_known_answers(counter: str, key: str, want: str) -> None:
    words, halves, expected = ([int(w, 16) for w in text.split()] for text in (counter, key, want))
    assert philox_4x32(torch.tensor(words), (halves[0], halves[1])).tolist() == expected


def test_philox_normal_is_normal_and_uncorrelated() -> None:
    draws = philox_normal(1, (1, 500, 10, 20)).double()
    assert scipy.stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    rows = draws[0].flatten(1)
    assert torch.corrcoef(rows)[0, 1:].abs().max() < 0.35  # 200 numbers a row: about 5 sigma


def test_philox_normal_entry_depends_on_its_own_counter_alone() -> None:
    whole = philox_normal(5, (2, 7, 3, 4))
    assert torch.equal(philox_normal(5, (1, 4, 2, 3)), whole[:1, :4, :2, :3])
    assert not torch.equal(philox_normal(6, (2, 7, 3, 4)), whole)
    assert whole.flatten().unique().numel() == whole.numel()


def test_philox_normal_is_float32_in_every_dtype() -> None:
    wide = philox_normal(2, (1, 3, 2, 2), dtype=torch.float64)
    assert torch.equal(wide, philox_normal(2, (1, 3, 2, 2)).double())
