"""A fit beside a memory map holds the factors and a few blocks, never anything of X's size."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.checkpoint import Checkpoint
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.minimisation import State
from nnmf_cuda.nnmf.problem import Iterate

SHAPE = (8192, 8192)  # 67 MB of pixels
LIMIT = 0.25
"""Of X's bytes: a copy takes 1, in floating point 4; what libraries keep between tests varies."""

FITS = {
    "kullback-leibler": {},
    "svd and test for zeros": {"init": "nndsvda", "beta_loss": 0},
    "accelerated": {"solver": "accelerated-mu", "max_iter": 2},
    "frobenius": {"beta_loss": 2},
    "hals": {"beta_loss": 2, "solver": "hals"},
}


def anonymous_bytes() -> int:
    """Return the process's resident memory without the pages of mapped files."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        pytest.skip("needs Linux's RssAnon")
    return int(found[1]) * 1024


@contextmanager
def peak_of_anonymous_bytes() -> Iterator[list[int]]:
    """Yield a list that holds, after the block, what it added at most."""
    gc.collect()
    # What earlier tests have freed would hold a copy without the process growing.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
    added, before, over = [0], anonymous_bytes(), threading.Event()

    def look() -> None:
        added[0] = max(added[0], anonymous_bytes() - before)

    def watch() -> None:
        while not over.is_set():
            look()
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield added
        look()  # a busy machine may not have let the watcher run
    finally:
        over.set()
        watcher.join()


def added_by(work: Callable[[], object]) -> int:
    """Return the bytes that `work` has added at most."""
    with peak_of_anonymous_bytes() as added:
        work()
    return added[0]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Iterator[np.ndarray]:
    path = tmp_path_factory.mktemp("memory") / "pixels.npy"
    block = np.random.default_rng(0).integers(1, 256, (1024, SHAPE[1]), dtype=np.uint8)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": SHAPE}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(SHAPE[0] // len(block)):
            block.tofile(file)
    yield np.load(path, mmap_mode="r")
    path.unlink()


def test_the_watch_sees_a_copy():
    with peak_of_anonymous_bytes() as added:
        copy = np.ones(50_000_000, dtype=np.uint8)
    assert added[0] >= 0.9 * copy.nbytes


@pytest.mark.needs_ext
@pytest.mark.parametrize("fit", FITS)
def test_nnmf_fits_a_memory_map_without_a_copy(pixels, fit):
    options = {"n_components": 2, "max_iter": 1, "tol": 0, "random_state": 0} | FITS[fit]
    NNMF(**options).fit(pixels[:256])  # libraries allocate their buffers once
    assert added_by(lambda: NNMF(**options).fit(pixels)) < LIMIT * pixels.nbytes


@pytest.mark.needs_ext
def test_partial_fit_reads_a_memory_map_without_a_copy(pixels):
    model = NNMF(2, fresh_restarts_max_iter=2, random_state=0).partial_fit(pixels[:256])
    assert added_by(lambda: model.partial_fit(pixels)) < LIMIT * pixels.nbytes


def test_a_checkpoint_is_written_and_noted_without_a_copy(tmp_path):
    of_each = torch.zeros(3, dtype=torch.float64)

    def state(n: int) -> State:
        at = Iterate(torch.rand(3, n, 8), torch.rand(3, 8, 5), of_each, of_each)
        return State(at, (0, 1, 2), (0,), ((0.0,), (0.0,), (0.0,)), {})

    large, path = state(800_000), tmp_path / "fit.safetensors"
    file = Checkpoint(path, 0, {}, Dense(torch.ones(1, 1)))

    def write(state: State) -> None:
        file.note(state)
        file.write()

    write(state(1))  # libraries are loaded once
    assert added_by(lambda: write(large)) < 0.1 * large.at.W.nbytes
    assert path.stat().st_size > large.at.W.nbytes
