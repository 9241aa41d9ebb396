"""The examples of docs/distributed.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda import NNMF

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


def run(name: str, folder: Path, *given: str) -> str:
    """Run the script of this name as its first line says, with these files; return what it says."""
    code = re.findall(rf"^```python\n(# {name}: .*?)^```", PAGE, re.M | re.S)[0]
    (folder / name).write_text(code, encoding="utf-8")
    command = re.findall(rf"^# {name}: torchrun (.*) \S+$", code, re.M)[0].split()
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *command, *given],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_gives_the_fit_of_one_process(tmp_path: Path) -> None:
    X = np.random.default_rng(0).integers(1, 255, size=(41, 30)).astype(np.uint8)
    np.save(tmp_path / "images.npy", X)
    assert run("fit.py", tmp_path, "images.npy").startswith("(4, 30)")
    one = NNMF(4, solver="accelerated-mu", max_iter=50, tol=0, random_state=0).fit(X)
    W = np.concatenate([np.load(tmp_path / f"W_{rank}.npy") for rank in range(2)])
    H = NNMF.load(tmp_path / "model.safetensors").components_
    np.testing.assert_allclose(W @ H, one.W_ @ one.components_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sizes", [(4, 3, 5), (6,)])
def test_archives_are_dealt_among_processes(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    rng, images, names = np.random.default_rng(0), [], []
    for number, size in enumerate(sizes):
        names.append(f"{number}.tar")
        with tarfile.open(tmp_path / names[-1], "w") as archive:
            for place in range(size):
                images.append(rng.integers(1, 255, size=(64, 64)).astype(np.uint8))
                content = BytesIO()
                Image.fromarray(images[-1]).save(content, "PNG")
                member = tarfile.TarInfo(f"{place}.png")
                member.size = content.tell()
                content.seek(0)
                archive.addfile(member, content)
    run("tars.py", tmp_path, *names)
    X = np.stack(images).reshape(len(images), -1)
    one = NNMF(4, max_iter=20, tol=0, random_state=0).fit(X)
    H = NNMF.load(tmp_path / "model.safetensors").components_
    np.testing.assert_allclose(H, one.components_, rtol=1e-3, atol=1e-3)
