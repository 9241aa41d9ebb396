"""The cut of a half-step into warps, against a simulation of a multiprocessor's schedulers.

And how a warp reads its tile: no two lanes want different words of a bank at one time.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from tests.cuda_on_cpu.harness import Builder, KernelError, run_kernels

# batch, n_samples, n_features, n_components
SIZES = (
    (1, 1500, 16384, 15),
    (1, 1500, 16384, 8),
    (1, 1500, 16384, 30),
    (1, 1500, 16384, 100),
    (1, 1500, 16384, 256),
    (64, 1500, 4096, 15),
    (16, 1500, 4096, 15),
    (5, 1500, 4096, 15),
    (1, 215, 4096, 15),
    (1, 300, 784, 15),
    (1, 64, 64, 5),
    (200, 64, 64, 5),
    (1, 100000, 100, 15),
    (1, 100, 100000, 15),
    (3, 2000, 30000, 200),
    (1, 1, 1, 1),
)
SCHEDULERS = 4
SLOTS_OF_A_WARP = 1 / 1.25  # of its scheduler's, that a warp takes when it is alone there
START, SECOND_LAUNCH, LONGEST = 1.5, 2.0, 512


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("cuts.cpp")


def cuts(kernels: Path, sizes, *, multiprocessors: int = 132, pixels: bool = False) -> torch.Tensor:
    numbers = {"multiprocessors": multiprocessors, "pixels": pixels}
    tensors = {"sizes": torch.tensor(sizes)}
    return run_kernels(kernels, "cuts", tensors, numbers, seeds=(0,))["cuts"]


@functools.cache
def simulated_time(warps: int, resident: int) -> float:
    """Return how long a multiprocessor takes for `warps` warps, in what one takes without a wait.

    A warp that ends makes room for the next one at once, which goes where fewest are of the places
    that are free. The warps of a scheduler share its slots evenly; each can use SLOTS_OF_A_WARP of
    them at most.
    """
    places = [resident // SCHEDULERS + (s < resident % SCHEDULERS) for s in range(SCHEDULERS)]
    running: list[list[float]] = [[] for _ in range(SCHEDULERS)]  # what is left of each warp
    now = 0.0
    while warps or any(running):
        while warps and (free := [s for s in range(SCHEDULERS) if len(running[s]) < places[s]]):
            running[min(free, key=lambda s: len(running[s]))].append(1.0)
            warps -= 1
        rates = [min(1.0, len(own) * SLOTS_OF_A_WARP) / max(len(own), 1) for own in running]
        step = min(min(own) / rate for own, rate in zip(running, rates, strict=True) if own)
        now += step
        running = [
            [left - step * rate for left in own if left - step * rate > 1e-9]
            for own, rate in zip(running, rates, strict=True)
        ]
    return now


def simulated_times(batch: int, cut: list[int], multiprocessors: int) -> dict[int, float]:
    """Return the time of each number of splits that is allowed."""
    tiles, _, _, _, step, resident, depth = cut
    times: dict[int, float] = {}
    for each in range(1, min(depth, max(LONGEST // step, 1)) + 1):
        splits = -(-depth // each)
        warps = -(-batch * tiles * splits // multiprocessors)
        time = simulated_time(warps, resident) * (each + START)
        time += SECOND_LAUNCH if splits > 1 else 0
        times[splits] = min(time, times.get(splits, time))
    return times


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("multiprocessors", [132, 108, 148])
def test_no_cut_is_much_better(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, rows: int, pixels: bool, multiprocessors: int
) -> None:
    monkeypatch.setenv("NNMF_CUDA_OWN_ROWS", str(rows))
    found = cuts(kernels, SIZES, multiprocessors=multiprocessors, pixels=pixels)
    for (batch, *shape), both in zip(SIZES, found.tolist(), strict=True):
        for cut in both:
            times = simulated_times(batch, cut, multiprocessors)
            assert times[cut[1]] <= 1.03 * min(times.values()), (batch, shape, cut)


@pytest.mark.parametrize("pixels", [False, True])
def test_the_papers_size_fills_every_scheduler(kernels: Path, pixels: bool) -> None:
    """On 132 multiprocessors with room for eight warps each, which 1032 and 1024 nearly fill."""
    (W, H), deep = cuts(kernels, [SIZES[0]], pixels=pixels)[0].tolist(), 6 if pixels else 12
    assert W == [12, 86, deep, 128, 32 if pixels else 16, 8, 512 if pixels else 1024]
    assert H == [128, 8, deep, 128, 32 if pixels else 16, 8, 47 if pixels else 94]


def test_two_rows_a_lane_make_smaller_warps_and_more_of_them(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNMF_CUDA_OWN_ROWS", "2")
    two = cuts(kernels, [SIZES[0], SIZES[1], SIZES[2]]).tolist()
    monkeypatch.setenv("NNMF_CUDA_OWN_ROWS", "4")
    four = cuts(kernels, [SIZES[0], SIZES[1], SIZES[2]]).tolist()
    assert [cut[3:6] for cut in two[0]] == [[64, 16, 12]] * 2
    assert [cut[3:6] for cut in four[0]] == [[128, 16, 8]] * 2
    assert two[1:] == four[1:]  # 8 and 30 components have one kernel


@pytest.mark.parametrize("value", ["3", "two", "4 "])
def test_a_setting_that_is_no_choice_is_refused(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("NNMF_CUDA_OWN_ROWS", value)
    wanted = f"NNMF_CUDA_OWN_ROWS={value} is not a choice: unset it for 4, or set it to one of 2 4"
    with pytest.raises(KernelError, match=wanted):
        cuts(kernels, [SIZES[0]])


def most_words_of_a_bank(places: torch.Tensor, size: int) -> int:
    """Return how often the fullest of 32 banks is asked when lanes read `size` bytes each.

    Lanes are served together as long as they read no more than 128 bytes: all of them where each
    reads four bytes, eight of them where each reads sixteen. One word serves all that want it.
    """
    together = 32 * 4 // max(size, 4)
    most = 0
    for lanes in places.reshape(-1, together).tolist():
        assert all(place % size == 0 for place in lanes)
        words = {(place + at) // 4 for place in lanes for at in range(size)}
        most = max(most, *(sum(word % 32 == bank for word in words) for bank in range(32)))
    return most


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize(
    ("X", "W"),
    [
        (torch.float32, torch.float32),
        (torch.uint8, torch.float32),
        (torch.float64, torch.float64),
        (torch.uint8, torch.float64),
    ],
)
@pytest.mark.parametrize("k", [8, 15, 32, 33, 100, 256])
def test_no_two_lanes_want_one_bank(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, rows: int, X, W, k: int
) -> None:
    monkeypatch.setenv("NNMF_CUDA_OWN_ROWS", str(rows))
    tensors = {"X": torch.empty(1, dtype=X), "W": torch.empty(1, dtype=W)}
    reads = run_kernels(kernels, "reads", tensors, {"k": k}, seeds=(0,))
    for factor in ("W", "H"):
        at_once, stage = reads[f"sizes_{factor}"].tolist()
        assert stage % 16 == 0
        entries = reads[f"entries_{factor}"]
        entries = entries[:: at_once // X.itemsize] if factor == "W" else entries
        assert most_words_of_a_bank(entries, at_once) == 1, factor
        assert most_words_of_a_bank(reads[f"vectors_{factor}"], 16) == 1, factor


@pytest.mark.parametrize(
    ("batch", "length", "rows"),
    [
        (1, 16384, 64),
        (1, 50, 50),
        (8, 4096, 64),
        (64, 4096, 128),
        (64, 1500, 66),
        (3000, 4096, 4096),
    ],
)
def test_no_thread_adds_up_many_rows_while_the_device_is_idle(
    kernels: Path, batch: int, length: int, rows: int
) -> None:
    numbers = {"batch": batch, "length": length}
    chunks = run_kernels(kernels, "gram_chunks", {}, numbers, seeds=(0,))["chunks"].item()
    assert -(-length // chunks) == rows
    assert batch * chunks <= max(2048, batch)


def test_quotients_by_a_product_are_exact(kernels: Path) -> None:
    """Just below and at multiples, up to the largest numbers that a grid has."""
    around = [2**k + d for k in range(2, 30) for d in (-1, 0, 1)]
    beyond = [2**31 + 1, 2**32, 2**32 + 1, 2**40]  # of which all quotients are 0
    divisors = torch.tensor([1, 2, *around, 94, 1032, 999_983, 2**30, 2**30 + 1, 2**31, *beyond])
    largest = 2**31 - 1
    multiples = torch.cat(
        [divisors * k for k in (1, 2, 3, 1000)] + [largest // divisors * divisors]
    )
    numbers = torch.cat([multiples - 1, multiples, multiples + 1, torch.tensor([largest])])
    numbers = numbers[(numbers >= 0) & (numbers <= largest)].unique()
    given = {"numbers": numbers, "divisors": divisors}
    got = run_kernels(kernels, "quotients", given, {}, seeds=(0,))["quotients"]
    assert torch.equal(got, numbers[None] // divisors[:, None])
