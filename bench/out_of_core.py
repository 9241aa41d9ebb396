"""Rows in a file larger than the memory that a process may have: fitted, transformed, extracted."""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.large_rows import SIDE, forget_pages, watch, write_images
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["WORK", "run_out_of_core_benchmarks"]

WORK = ("fit", "transform", "partial_fit", "extract")
"""What is done with the rows, each by a process of its own."""

_ROWS, _SMOKE_ROWS = 2**21, 2**13
_LIMIT = 2**31  # bytes
_N_ITER = 2
_N_COMPONENTS = 8
_BATCH = 2**14  # rows of a mini-batch
_TIMEOUT = 3600  # seconds
_NOTHING = {"resident_bytes": None, "group_bytes": None}
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Limit:
    """A bound on the memory of a process."""

    words: str
    folder: Path | None = None  # of a control group
    peak: str = ""  # its file that says the most that was used

    def take(self, pid: int) -> None:
        """Put a process under it, if that is done from outside."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(pid))

    def peak_bytes(self) -> int | None:
        """Return the most that processes under it have used, all pages of files with it."""
        return None if self.folder is None else int((self.folder / self.peak).read_text())


def run_out_of_core_benchmarks(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    folder: str | None = None,
    progress: bool = False,
) -> list[Record]:
    """Fit, transform and extract 8 GiB of pixels under a limit of 2 GiB of memory.

    The limit is a control group's, with all pages of files that it reads, where this process may
    make one (as root on Linux); else RLIMIT_DATA, of the process's own pages.

    Parameters
    ----------
    smoke : bool, default=False
        32 MiB of pixels, under the same limit: shows that it works, not that it is enough.
    json_path, progress
        As for `run_kernel_benchmarks`.
    folder : str, optional
        Where the pixels are for the time; by default the system's for temporary files.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks` with ``op`` "out of core", ``peak_bytes`` the most
        that the process's own pages took, ``resident_bytes`` with those of the file that it had
        mapped, ``group_bytes`` all that its control group had, with what the system had read ahead,
        ``x_bytes``, ``limit_bytes`` and ``limited_by``.
    """
    from tqdm import tqdm

    recorder = Recorder("out_of_core", device=torch.device("cpu"), smoke=smoke, json_path=json_path)
    n, limit_bytes = _SMOKE_ROWS if smoke else _ROWS, _LIMIT
    shape = {"n_samples": n, "n_features": SIDE * SIDE, "n_components": _N_COMPONENTS}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        images = Path(place) / "images.npy"
        write_images(images, n)
        for work in tqdm(WORK, desc="bench", disable=None if progress else True):
            recorder.add(
                op="out of core",
                size="smoke" if smoke else "large",
                impl=work,
                served_by="estimator" if work != "extract" else "pipeline",
                shape={**shape, "n_iter": _N_ITER} if work == "fit" else shape,
                dtype="uint8",
                options={"beta_loss": 1.0},
                x_bytes=images.stat().st_size,
                limit_bytes=limit_bytes,
                **{**MEASURED, **_NOTHING, **_done(work, images, limit_bytes)},
            )
    return recorder.records


def _done(work: str, images: Path, limit_bytes: int) -> Record:
    """Return what a process took for the work."""
    forget_pages(images)  # or those that others have brought in would not count
    with _limited(limit_bytes) as limit:
        own = 0 if limit.folder is not None else limit_bytes
        command = ["bench.out_of_core", work, str(images), str(torch.get_num_threads()), str(own)]
        by = {"limited_by": limit.words}
        try:
            watched = watch(command, timeout_s=_TIMEOUT, started=limit.take)
        except RuntimeError as error:
            return {**by, "status": "failed", "reason": str(error)}
        return {
            **by,
            "status": "ok",
            "median_ms": 1e3 * watched.found["seconds"],
            "n": 1,
            "peak_bytes": watched.own,
            "resident_bytes": watched.resident,
            "group_bytes": limit.peak_bytes(),
        }


@contextmanager
def _limited(limit_bytes: int) -> Iterator[_Limit]:
    """Yield a limit of so many bytes; a control group is removed at the end."""
    for folder, name, peak in (
        (_CGROUPS / "memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        (_CGROUPS, "memory.max", "memory.peak"),
    ):
        group = folder / f"nnmf-cuda-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit_bytes))
        except OSError:
            group.rmdir()
            continue
        try:
            yield _Limit("control group", group, peak)
        finally:
            group.rmdir()
        return
    yield _Limit("RLIMIT_DATA")


# The process that is started: one work ----------------------------------------------------------


def _fit(images: Path) -> None:
    import numpy as np

    from nnmf_cuda import NNMF

    X = np.load(images, mmap_mode="r").reshape(-1, SIDE * SIDE)
    model = NNMF(_N_COMPONENTS, max_iter=_N_ITER, tol=0, random_state=0)
    model.fit(X, checkpoint=images.with_name("fit.safetensors"))
    model.save(images.with_name("model.safetensors"))


def _transform(images: Path) -> None:
    import numpy as np

    from nnmf_cuda import NNMF

    X = np.load(images, mmap_mode="r").reshape(-1, SIDE * SIDE)
    W = NNMF.load(images.with_name("model.safetensors")).transform(X)
    assert W.shape == (len(X), _N_COMPONENTS)


def _partial_fit(images: Path) -> None:
    import numpy as np

    from nnmf_cuda import NNMF

    X = np.load(images, mmap_mode="r").reshape(-1, SIDE * SIDE)
    model = NNMF(_N_COMPONENTS, fresh_restarts_max_iter=_N_ITER, random_state=0)
    for first in range(0, len(X), _BATCH):
        model.partial_fit(X[first : first + _BATCH])


def _extract(images: Path) -> None:
    from nnmf_cuda import NNMF
    from nnmf_cuda.data import iter_images
    from nnmf_cuda.models.features import FeatureExtractor
    from nnmf_cuda.pipeline.extract import extract_to_file

    H = torch.from_numpy(NNMF.load(images.with_name("model.safetensors")).components_)
    extractor = FeatureExtractor(H, torch.arange(len(H)), image_shape=(SIDE, SIDE))
    extract_to_file(iter_images([str(images)]), extractor, images.with_name("features.npy"))


_CALLS: dict[str, Callable[[Path], None]] = {
    "fit": _fit,
    "transform": _transform,
    "partial_fit": _partial_fit,
    "extract": _extract,
}


def main() -> None:
    """Do one work and print its seconds as a line of JSON: what `_done` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORK)
    parser.add_argument("images", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("limit_bytes", type=int)
    given: Any = parser.parse_args()
    if given.limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (given.limit_bytes, given.limit_bytes))
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    _CALLS[given.work](given.images)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
