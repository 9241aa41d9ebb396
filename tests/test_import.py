"""Importing the package is light: no GPU is touched, nothing of the experiment is loaded."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("PIL", "autoattack", "jinja2", "jsonargparse", "matplotlib", "pyautoattack")


def test_import_touches_no_gpu_and_loads_nothing_of_the_experiment() -> None:
    code = f"""
import sys
import nnmf_cuda
from nnmf_cuda import ops, NNMF
import torch
assert not torch.cuda.is_initialized()
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
