"""The process that `memory` starts: one fit, and the most memory it took."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def _status() -> dict[str, int]:
    """Return the process's memory in bytes: VmHWM, VmRSS, RssFile, ..."""
    text = Path("/proc/self/status").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}


def _fit(impl: str, X: NDArray[Any], n_components: int, n_iter: int) -> None:
    if impl == "ours":
        from nnmf_cuda.nnmf.estimator import NNMF

        NNMF(n_components, max_iter=n_iter, tol=0, random_state=0).fit(X)
        return
    from sklearn.decomposition import NMF

    options = {"solver": "mu", "beta_loss": "kullback-leibler", "init": "random"}
    NMF(n_components, max_iter=n_iter, tol=0, random_state=0, **options).fit(X)


def measure(
    impl: str, dtype: str, threads: int, n_iter: int, n: int, f: int, k: int
) -> dict[str, int]:
    from nnmf_cuda.timing import reset_peak_rss

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    tiny = rng.random((8, 8), dtype=np.float32)
    _fit(impl, (255 * tiny).astype(dtype) if dtype == "uint8" else tiny, 2, n_iter)
    X = np.empty((n, f), dtype)
    for row in X:  # row by row, so that freed memory cannot hide what the fit takes
        row[:] = rng.integers(0, 256, f) if dtype == "uint8" else rng.random(f)
    before = _status()
    # Without the right to reset it, the peak is that since the start: X as well, if it is large.
    reset_peak_rss()
    _fit(impl, X, k, n_iter)
    after = _status()
    files = max(0, after.get("RssFile", 0) - before.get("RssFile", 0))
    return {
        "peak_bytes": max(0, after["VmHWM"] - before["VmRSS"] - files),
        "x_bytes": X.nbytes,
    }


def main() -> None:
    """Measure one fit and print it as a line of JSON: what `run_memory_benchmarks` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("impl")
    parser.add_argument("dtype")
    for name in ("threads", "n_iter", "n", "f", "k"):
        parser.add_argument(name, type=int)
    print(json.dumps(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
