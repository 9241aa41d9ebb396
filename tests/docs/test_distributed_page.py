"""The example of docs/distributed.md runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from nnmf_cuda import NNMF

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


def test_the_example_gives_the_fit_of_one_process(tmp_path: Path) -> None:
    code = re.findall(r"^```python\n(# fit.py: .*?)^```", PAGE, re.M | re.S)[0]
    (tmp_path / "fit.py").write_text(code, encoding="utf-8")
    X = np.random.default_rng(0).integers(1, 255, size=(41, 30)).astype(np.uint8)
    np.save(tmp_path / "images.npy", X)
    command = re.findall(r"^# fit.py: torchrun (.*)$", code, re.M)[0].split()
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(4, 30)")
    one = NNMF(4, solver="accelerated-mu", max_iter=50, tol=0, random_state=0).fit(X)
    W = np.concatenate([np.load(tmp_path / f"W_{rank}.npy") for rank in range(2)])
    H = NNMF.load(tmp_path / "model.safetensors").components_
    np.testing.assert_allclose(W @ H, one.W_ @ one.components_, rtol=1e-3, atol=1e-3)
