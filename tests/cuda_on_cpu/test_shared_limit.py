"""Shared memory is asked for once for a kernel and a device, whatever threads launch.

The file is short because the rest of a launch is CUDA's own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda_on_cpu.harness import Builder, run_kernels


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("shared_limit.cpp")


@pytest.mark.parametrize("threads", [1, 4])
def test_each_kernel_is_permitted_once_on_each_device(kernels: Path, threads: int) -> None:
    limits = torch.tensor([48, 99, 227]) * 1024
    numbers = {"devices": 2, "threads": threads}
    out = run_kernels(kernels, "limits", {"kernels": limits}, numbers, seeds=(0,))
    assert out["permits"].item() == 6
    expected = torch.stack([limits, limits + 1])
    assert torch.equal(out["found"], expected.expand(threads, -1, -1))


def test_what_has_failed_is_asked_for_again(kernels: Path) -> None:
    tensors, numbers = {"kernels": torch.tensor([1024])}, {"failures": 3}
    out = run_kernels(kernels, "limit_after_failures", tensors, numbers, seeds=(0,))
    assert (out["thrown"].item(), out["permits"].item(), out["found"].item()) == (3, 1, 1024)
