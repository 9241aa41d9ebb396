"""Tests of the tests: what a kernel does wrong is seen, and what it does right is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cuda_on_cpu.harness import (
    CSRC,
    HERE,
    Builder,
    BuildError,
    KernelError,
    Mutation,
    none_of,
    require_sanitizers,
    run_kernels,
    share_a_build,
)

EXAMPLES = "examples.cpp"


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def sum_steps_wanted(x: Tensor, steps: Tensor) -> Tensor:
    sums = torch.zeros(len(x))
    for p, rows in enumerate(x.double().sum(2)):
        for value in rows[: steps[p]]:
            if value < 0:
                break
            sums[p] += value
    return sums


def check_sum_rows(executable: Path) -> None:
    x = draw(5, 131)
    got = run_kernels(executable, "sum_rows", {"x": x}, {})
    torch.testing.assert_close(got["sums"], x.sum(1))


def check_transpose(executable: Path) -> None:
    for n, f in ((33, 97), (1, 31), (40, 64)):
        x = draw(n, f)
        assert torch.equal(run_kernels(executable, "transpose", {"x": x}, {})["y"], x.T)


def check_sum_steps(executable: Path) -> None:
    x = draw(10, 6, 8)
    x[3, 2] = -1
    steps = torch.tensor([6, 0, 3, 6, 1, 2, 5, 6, 4, 6], dtype=torch.int32)
    got = run_kernels(executable, "sum_steps", {"x": x, "steps": steps}, {})
    torch.testing.assert_close(got["sums"], sum_steps_wanted(x, steps))


def check_histogram(executable: Path) -> None:
    x = torch.randint(0, 16, (1001,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(16, dtype=torch.int32)
    got = run_kernels(executable, "histogram", {"x": x, "counts": counts}, {})
    assert torch.equal(got["counts"], counts + torch.bincount(x, minlength=16))


def check_overlap(executable: Path) -> None:
    x, c = draw(2, 100)
    got = run_kernels(executable, "overlap", {"x": x.clone(), "c": c.clone()}, {}, seeds=range(8))
    torch.testing.assert_close(got["z"], x + c + c.flip(0))


CHECKS = {
    "sum_rows": check_sum_rows,
    "transpose": check_transpose,
    "sum_steps": check_sum_steps,
    "histogram": check_histogram,
    "overlap": check_overlap,
}


@pytest.mark.parametrize("name", list(CHECKS))
def test_examples_are_right(build: Builder, name: str) -> None:
    CHECKS[name](build(EXAMPLES))


LATE_WAIT = "if (column + kSide >= f) wait_for_copies<0>();"
INDEX = "AddressSanitizer|out of bounds"
VALUES = "differs between the orders|not close|torch.equal"
WAIT, READ = (
    "wait_for_kernel_before();  // from is there",
    "const float value = i < n ? from[n - 1 - i] : 0;",
)
FREE, WRITE = "wait_for_kernel_before();  // y is no longer read", "if (i < n) y[i] = x[i] + own;"


MISTAKES = [
    ("sum_rows", "__syncthreads();  // all values are there", "", VALUES),
    ("sum_rows", "__syncthreads();  // all sums are there", "", VALUES),
    ("sum_rows", "i < f", "i <= f", INDEX),
    ("sum_rows", "width = 32", "width = 64", INDEX),
    ("sum_rows", "values, [64]", "values, [63]", INDEX),
    ("sum_rows", "i = thread; i", "i = thread - 1; i", INDEX),
    ("transpose", "wait_for_copies<1>();", "", "copies under way"),
    ("transpose", "wait_for_copies<1>();", LATE_WAIT, VALUES),
    ("transpose", "__syncwarp();  // what the other", "//", VALUES),
    ("transpose", "__syncwarp();  // the tile", "//", VALUES),
    ("transpose", "row + i < n", "row + i <= n", INDEX),
    ("transpose", "row + lane < n", "row + lane <= n", INDEX),
    ("transpose", "column + lane < f", "column + lane <= f", INDEX),
    ("transpose", "2 * kTile - 1", "2 * kTile - 2", "not shared memory"),
    ("transpose", "inside ? 4 : 0", "4 - 4 * inside", VALUES),
    ("sum_steps", "0xffu << (lane & ~7)", "~0u", "deadlock"),
    ("sum_steps", "distance = 4", "distance = 8", "which is not in it"),
    ("sum_steps", "step < steps", "step <= steps", INDEX),
    ("sum_steps", "if (problem >= problems) return;", "", INDEX),
    ("histogram", "__syncthreads();  // all counts", "//", VALUES),
    ("histogram", "__syncthreads();  // everything", "//", VALUES),
    ("histogram", "i < n; i += gridDim", "i <= n; i += gridDim", INDEX),
    ("overlap", WAIT, "//", "returned without a wait"),
    ("overlap", FREE, "//", "returned without a wait"),
    ("overlap", f"{WAIT}\n  {READ}", f"{READ}\n  {WAIT}", VALUES),
    ("overlap", f"{FREE}\n  {WRITE}", f"{WRITE}\n  {FREE}", VALUES),
    ("histogram", "threadIdx.x < 16) atomicAdd", "threadIdx.x <= 16) atomicAdd", INDEX),
]
MUTATIONS = share_a_build(Mutation(EXAMPLES, old, new) for _, old, new, _ in MISTAKES)


@pytest.mark.parametrize(
    ("name", "mutation", "how"),
    [
        (name, mutation, how)
        for (name, _, _, how), mutation in zip(MISTAKES, MUTATIONS, strict=True)
    ],
    ids=str,
)
def test_a_mistake_in_a_kernel_is_seen(
    build: Builder, name: str, mutation: Mutation, how: str
) -> None:
    if how == INDEX:
        require_sanitizers()
    executable = build(EXAMPLES, mutation=mutation)
    with pytest.raises((AssertionError, KernelError), match=how):
        CHECKS[name](executable)


def test_mistakes_that_share_a_build_are_made_one_at_a_time(build: Builder) -> None:
    shared = [mutation for mutation in MUTATIONS if mutation.together]
    assert len(shared) == 7
    for check in CHECKS.values():
        check(build(EXAMPLES, mutation=none_of(MUTATIONS)))
    of_sums, of_transpose = shared[0], shared[1]
    assert (of_sums.new, of_transpose.new) == ("i <= f", "row + i <= n")
    check_transpose(build(EXAMPLES, mutation=of_sums))
    check_sum_rows(build(EXAMPLES, mutation=of_transpose))


@pytest.mark.parametrize(
    ("old", "new", "switched"),
    [
        ("__syncwarp(mask);", ";", "(s ? void() : void(__syncwarp(mask)));"),
        ("f(a < b)", "f(a <= b)", "f(a < (s ? 1 : 0) + b)"),
        ("a >= b", "a > b", "a >= (s ? 1 : 0) + b"),
        ("a > b", "a >= b", "a > -(s ? 1 : 0) + b"),
        ("a <= b", "a < b", "a <= -(s ? 1 : 0) + b"),
        ("a < b", "a < c", None),
        ("a < b", "a <= c", None),
        ("a = b", "a == b", None),
    ],
)
def test_what_can_be_switched(old: str, new: str, switched: str | None) -> None:
    assert Mutation("x", old, new).switched("s") == switched


def test_a_mutation_needs_its_text() -> None:
    with pytest.raises(BuildError, match="has 1 times"):
        Mutation("x", "a", "b", occurrence=1).apply("a")
    assert Mutation("x", "a", "b", occurrence=1).apply("a a a") == "a b a"


@pytest.mark.parametrize("width", [1, 4, 8, 32])
@pytest.mark.parametrize("distance", [0, 1, 3, 4, 16, 31])
def test_shuffles(build: Builder, distance: int, width: int) -> None:
    got = run_kernels(build("misuse.cpp"), "shuffles", {}, {"distance": distance, "width": width})
    for thread in range(64):
        lane, warp = thread % 32, thread // 32 * 32
        first = lane // width * width
        across = lane ^ distance
        wanted = {
            "xor": across if across < first + width else lane,
            "down": lane + distance if lane + distance < first + width else lane,
            "up": lane - distance if lane - distance >= first else lane,
            "from": first + distance % width,
        }
        assert {name: int(got[name][thread]) - warp for name in wanted} == wanted


def test_votes_of_part_of_a_warp(build: Builder) -> None:
    votes = torch.tensor([1, 0, 1, 7] + 14 * [1, 0], dtype=torch.int32)
    got = run_kernels(build("misuse.cpp"), "votes", {"votes": votes}, {})
    assert got["ballots"].tolist() == 16 * [0x55555555, 0b1000]
    assert got["any"].tolist() == 32 * [1]
    assert got["all"].tolist() == 16 * [1, 0]


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (0, r"deadlock.*\n  have returned: 32-63\n  wait at __syncthreads\(\): 0-31"),
        (1, r"deadlock.*\n  have returned: 16-31 48-63\n  wait at __syncwarp with mask ffffffff"),
        (2, r"deadlock.*\n  have returned: 5\n  wait at __syncthreads\(\): 0-4 6-63"),
        (3, r"__syncwarp with mask [0f]{8}, which does not name the lane \d+ itself"),
        (4, r"__shfl_xor_sync with mask [0f]{8} reads lane \d+, which is not in it"),
        (5, r"deadlock.*\n  wait at __shfl_sync .*: 16-31 48-63\n  wait at __syncwarp .*: 0-15"),
        (6, "asynchronous copy of 16 bytes whose source is not aligned"),
        (7, "asynchronous copy of 8 bytes whose destination is not aligned"),
        (8, "asynchronous copy of 12 bytes"),
        (9, "asynchronous copy of 4 bytes with 8 zeros"),
        (10, "asynchronous copy of 4 bytes to what is not shared memory"),
        (11, r"misuse_kernel, block \(0, 0, 0\), thread \d+: returned with 1 asynchronous copies"),
        (19, "__syncwarp with mask ffffffff names lane 16, which the block does not have"),
    ],
)
def test_misuse_ends_the_run(build: Builder, misuse: int, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        run_kernels(build("misuse.cpp"), "misuse", {"x": draw(64)}, {"misuse": misuse})


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (12, "heap-buffer-overflow(.|\n)*WRITE of size 4(.|\n)*0 bytes to the right"),
        (13, "heap-buffer-overflow(.|\n)*READ of size 4"),
        (14, "heap-buffer-overflow(.|\n)*WRITE of size 4"),
        (15, "heap-buffer-overflow(.|\n)*WRITE of size 4|out of bounds"),
        (16, "stack-buffer-overflow(.|\n)*WRITE of size 4|out of bounds"),
        (17, "heap-buffer-overflow(.|\n)*READ of size 4(.|\n)*misuse.cpp"),
    ],
)
def test_an_index_out_of_bounds_is_seen(build: Builder, misuse: int, message: str) -> None:
    require_sanitizers()
    with pytest.raises(KernelError, match=message):
        run_kernels(build("misuse.cpp"), "misuse", {"x": draw(64)}, {"misuse": misuse})


def test_a_copy_that_is_not_committed_is_not_waited_for(build: Builder) -> None:
    # One order in which no copy happens to land early.
    results = [
        run_kernels(build("misuse.cpp"), "misuse", {"x": draw(64)}, {"misuse": 18}, seeds=[seed])
        for seed in range(8)
    ]
    assert any(result["x"].isnan().all() for result in results)


def test_tensors_lie_as_they_do_in_python(build: Builder) -> None:
    memory = torch.arange(20, dtype=torch.int32)
    start = -memory.data_ptr() // 4 % 4
    for offset in range(4):
        x = memory[start + offset : start + offset + 5]
        got = run_kernels(build("misuse.cpp"), "place", {"x": x}, {})
        assert got["place"].item() == 4 * offset
        assert torch.equal(got["x"], x)


def test_results_start_as_nan(build: Builder) -> None:
    got = run_kernels(build("misuse.cpp"), "nothing", {}, {})
    assert got["floats"].isnan().all()
    assert got["doubles"].isnan().all()
    assert got["integers"].tolist() == [-1, -1]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CHECKS))
def test_examples_are_right_where_stacks_are_switched_by_the_library(
    build: Builder, name: str
) -> None:
    CHECKS[name](build(EXAMPLES, "-DCUDA_ON_CPU_SWAPCONTEXT"))


def kernel_sources() -> list[Path]:
    return [*CSRC.rglob("*.cuh"), *CSRC.rglob("*.cu")]


@pytest.mark.parametrize("path", kernel_sources(), ids=lambda path: str(path.relative_to(CSRC)))
def test_shared_memory_is_declared_so_that_it_is_guarded(path: Path) -> None:
    assert "__shared__" not in path.read_text(), "use NNMF_CUDA_SHARED of common/cuda/launch.h"


def included(path: Path) -> set[Path]:
    """Return the headers of csrc that a file reaches."""
    found: set[Path] = set()
    left = [path]
    while left:
        file = left.pop()
        for name in re.findall(r'#include "(.+)"', file.read_text()):
            headers = [folder / name for folder in (file.parent, CSRC)]
            new = {header.resolve() for header in headers if header.exists()} - found
            found |= new
            left += new
    return found


def test_every_kernel_is_compiled_here() -> None:
    reached = {header for path in HERE.glob("*.cpp") for header in included(path)}
    kernels = {path.resolve() for path in kernel_sources() if "__global__" in path.read_text()}
    assert kernels, "no kernels found"
    missing = sorted(path.name for path in kernels - reached)
    assert not missing, "no .cpp file in tests/cuda_on_cpu runs these; kernels belong in a .cuh"
