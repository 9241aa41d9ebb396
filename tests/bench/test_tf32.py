"""The study of updates in TF32 thrice: its emulation is right, and its bound can fail."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from bench import tf32
from bench.tables import records_table
from nnmf_cuda.benchmarks.records import read_records


def rounded(x: np.float32, bits: int) -> Fraction:
    """Round to so many significant bits, ties away from zero."""
    exact = Fraction(float(x))
    unit = Fraction(2) ** (int(np.frexp(x)[1]) - bits)
    return int(exact / unit + Fraction(1, 2)) * unit


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_both_parts_of_a_number_have_eleven_bits(scale):
    x = (np.random.default_rng(0).random(300) * scale).astype(np.float32)
    x = np.append(x, np.float32(scale))
    for value, hi, lo in zip(x, *tf32.split(x), strict=True):
        assert Fraction(hi) == rounded(value, 11)
        rest = Fraction(float(value)) - Fraction(hi)
        assert abs(rest - Fraction(lo)) <= Fraction(float(value)) / 2**23
        assert lo == 0 or lo / 2.0 ** (np.frexp(lo)[1] - 11) % 1 == 0
        assert abs(lo) <= abs(rest)  # cut off, not rounded


@pytest.mark.parametrize("core", tf32.CORES.values(), ids=tf32.CORES)
def test_an_mma_errs_as_much_as_it_may_and_no_more(core):
    rng = np.random.default_rng(1)
    A, B = (tf32.split(rng.random(s, np.float32))[0] for s in ((40, 8), (8, 50)))
    C = rng.random((40, 50), np.float32).astype(np.float64)
    got, want = tf32.mma(A, B, C, core), C + A @ B  # of 22 bits a term: float64 adds exactly
    assert (got <= want).all()  # cut off
    assert 0.1 * core.mma_error < ((want - got) / want).max() <= core.mma_error
    ints = np.arange(8.0)[None]
    assert tf32.mma(ints, ints.T, np.ones((1, 1)), core) == 141


def test_what_is_cut_off_depends_on_the_largest_term_of_the_block():
    A, B, small = np.ones((1, 8)), np.ones((8, 1)), 2.0**-24
    A[0, 1:] = small
    for core in tf32.CORES.values():
        # Seven halves of 1's last bit: with a bit more they add up to three and a half of it.
        kept = 3 * 2.0**-23 if core.guard else 0.0
        assert tf32.mma(A, B, np.zeros((1, 1)), core) == 1 + kept


def test_all_is_within_its_bound(tmp_path):
    path = tmp_path / "records.jsonl"
    records = tf32.run_tf32_study(smoke=True, json_path=path)
    assert read_records([path]) == [json.loads(json.dumps(r)) for r in records]
    assert {record["status"] for record in records} == {"ok"}
    bounded = [record for record in records if record["bounds"] is not None]
    assert {record["impl"] for record in bounded} == set(tf32.CORES)
    assert len({record["size"] for record in bounded}) == 6
    for record in bounded:
        assert set(record["errors"]) == {"product", "quotient", "numerator"}
    assert " of " in records_table(records)


@pytest.mark.parametrize("lost", ["lo", "hi lo"])
def test_a_term_that_is_left_out_is_seen(monkeypatch, lost):
    split, thrice = tf32.split, tf32._thrice

    def without_lo(x):
        hi, lo = split(x)
        return hi, 0 * lo

    def one_sided(A, B, core, **options):
        monkeypatch.setattr(tf32, "split", lambda x: split(x) if x.shape == A.shape else (x, 0 * x))
        return thrice(A, split(B)[0].astype(np.float32), core, **options)

    monkeypatch.setattr(tf32, *(("split", without_lo) if lost == "lo" else ("_thrice", one_sided)))
    records = tf32.run_tf32_study(smoke=True)
    assert {r["status"] for r in records if r["bounds"] is not None} == {"failed"}
    assert {r["status"] for r in records if r["impl"] == "float32"} == {"ok"}
