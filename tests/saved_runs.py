"""A small saved run and its data, for every test that needs one."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.cli.main import main

SMALL = [
    "--device=cpu",
    "--nnmf.n_components=4",
    "--nnmf.max_iter=20",
    "--classifier.epochs=10",
    "--diffusion.epochs=5",
    "--attack.n_iter=5",
    "--attack.n_restarts=1",
    "--attack.n_queries=10",
]
"""Settings with which a whole run takes about a second."""


def make_npz(path: Path, *, n_classes: int = 2, n: int = 60, seed: int = 0) -> Path:
    """Write images in which each class lights up a place of its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    images = rng.integers(0, 120, size=(n, 128, 128), dtype=np.uint8)
    for c in range(n_classes):
        images[labels == c, 32 * c : 32 * c + 24, 40:80] += 60
    split = np.repeat(["train", "valid", "test"], [n // 2, n // 4, n - n // 2 - n // 4])
    np.savez(path, images=images, labels=labels, split=split)
    return path


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, small_npz: Path) -> tuple[Path, str]:
    """Run the command line once; returns the results' directory and what was printed."""
    out, printed = tmp_path_factory.mktemp("runs") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["run", f"--data={small_npz}", f"--out={out}", "--verbose", *SMALL])
    assert code == 0
    return out, printed.getvalue()
