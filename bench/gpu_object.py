"""Provide the compiled extension of a check on a GPU, and say what machine and build it is.

Usage: python -m bench.gpu_object JOURNAL [--device cuda]
       python -m bench.gpu_object --stamp FOLDER           what `nox -s gpu_object` calls

Building takes minutes of a visit. `nox -s gpu_object` does it before, without a GPU, into the
folder ``bench/prebuilt``: what is there is taken where it is of these sources, and imports.
Otherwise the extension is built. The journal gets one line of kind "object".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.journal import Journal

__all__ = ["PREBUILT", "provide", "source_digest", "write_stamp"]

ROOT = Path(__file__).resolve().parents[1]
PREBUILT = ROOT / "bench" / "prebuilt"
_PACKAGE = ROOT / "nnmf_cuda"
_STAMP = "sources.sha256"

Record = dict[str, Any]
Describe = Callable[[str], Record]
"""Imports the package in a process of its own, and describes machine and build, or the "error"."""


def source_digest(root: Path = ROOT) -> str:
    """Return a digest of everything that is compiled."""
    digest = hashlib.sha256()
    for path in sorted(p for p in (root / "csrc").rglob("*") if p.is_file()):
        if path.suffix in {".cpp", ".cu", ".cuh", ".h"}:
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    digest.update((root / "setup.py").read_bytes())
    return digest.hexdigest()


def write_stamp(folder: Path, root: Path = ROOT) -> None:
    """Write beside built objects what sources they are of."""
    (folder / _STAMP).write_text(source_digest(root) + "\n")


def provide(
    device: str,
    *,
    describe: Describe,
    build: Callable[[], None],
    prebuilt: Path = PREBUILT,
    package: Path = _PACKAGE,
) -> Record:
    """Return the description of an extension that serves the device, built where it has to be.

    Parameters
    ----------
    device : str
        "cuda", or "cpu": there any extension will do.
    describe : callable
        As `Describe`.
    build : callable
        Builds the extension in place.
    prebuilt : Path
        Folder of objects that were built before, with their stamp.
    package : Path
        Where they are put: the folder of the package.

    Returns
    -------
    dict
        ``source`` ("prebuilt", "there" or "built"), ``notes`` (why not something quicker), and what
        `describe` returns.
    """
    notes: list[str] = []
    if os.environ.get("NNMF_CUDA_SKIP_BUILD") != "1":
        copied = _take(prebuilt, package, notes)
        if copied:
            found = describe(device)
            if "error" not in found:
                return {"source": "prebuilt", "notes": notes, **found}
            notes.append(f"the prebuilt object does not serve: {found['error']}")
            for path in copied:
                path.unlink()
    if device == "cpu" or os.environ.get("NNMF_CUDA_SKIP_BUILD") == "1":
        found = describe(device)
        if "error" not in found:
            return {"source": "there", "notes": notes, **found}
        notes.append(f"what is there does not serve: {found['error']}")
    build()
    return {"source": "built", "notes": notes, **describe(device)}


def _take(prebuilt: Path, package: Path, notes: list[str]) -> list[Path]:
    """Copy prebuilt objects into the package, if they are of these sources; return the copies."""
    objects = sorted(prebuilt.glob("*.so"))
    if not objects:
        notes.append("no prebuilt object")
        return []
    stamp = prebuilt / _STAMP
    if not stamp.exists() or stamp.read_text().strip() != source_digest():
        notes.append("the prebuilt object is of other sources")
        return []
    return [Path(shutil.copy2(path, package)) for path in objects]


# The real build and the real description -------------------------------------------------------

_DESCRIBE = """
import json, sys
import torch
from nnmf_cuda import _extension, show_config
device = sys.argv[1]
found = {"python": sys.version.split()[0], "torch": torch.__version__, "device": "cpu"}
try:
    found["build"] = _extension.build_info()
    served = {op: by[device] for op, by in show_config()["ops"].items()}
    found["served_by"] = served
    if device == "cuda":
        from nnmf_cuda.benchmarks.records import describe_gpu
        found["device"] = torch.cuda.get_device_name()
        found["gpu"] = describe_gpu(torch.device("cuda"))
        # An object of another architecture imports, and fails at its first launch.
        from nnmf_cuda import ops
        X, W, H = (torch.rand(s, device=device) + 0.1 for s in ((9, 17), (9, 3), (3, 17)))
        ops.nnmf_mu(X, W, H, n_iter=1)[0].sum().item()
    if served["nnmf_mu"] != "kernel":
        found["error"] = "nnmf_mu is served by " + served["nnmf_mu"]
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(found))
"""


def describe_in_a_process(device: str) -> Record:
    """Import the package anew; see `Describe`."""
    environment = {**os.environ, "NNMF_CUDA_REQUIRE_EXT": "1", "PYTHONPATH": _python_path()}
    command = [sys.executable, "-c", _DESCRIBE, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": last[:300]}
    found: Record = json.loads(lines[-1])
    return found


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def build_in_place(device: str) -> None:
    """Build for the GPU that is there and nothing else, nvcc's back end on all cores."""
    environment = {**os.environ, "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))}
    environment["FORCE_CUDA"] = "0"
    if device == "cuda":
        import torch

        environment["FORCE_CUDA"] = "1"
        environment["TORCH_CUDA_ARCH_LIST"] = ".".join(map(str, torch.cuda.get_device_capability()))
        flags = os.environ.get("NVCC_APPEND_FLAGS", "")
        environment["NVCC_APPEND_FLAGS"] = f"--split-compile=0 {flags}"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def main() -> int:
    """Provide the extension and write its line; 1 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal", nargs="?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stamp", type=Path)
    options = parser.parse_args()
    if options.stamp is not None:
        write_stamp(options.stamp)
        return 0
    found = provide(
        options.device,
        describe=describe_in_a_process,
        build=lambda: build_in_place(options.device),
    )
    Journal(options.journal).add("object", **found)
    print(json.dumps(found, indent=1))
    return int("error" in found)


if __name__ == "__main__":
    sys.exit(main())
