from __future__ import annotations

import pytest
import scipy.stats
import torch

from nnmf_cuda.reference import philox_4x32, philox_normal


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # known answers published with Random123 (kat_vectors, philox4x32 10)
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
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
