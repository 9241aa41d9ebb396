"""What the documentation says of the CUDA kernels holds for all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_kernel_has_a_line_in_the_docs() -> None:
    page = ROOT / "docs" / "gpu.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    text = page.read_text("utf-8")
    found = {
        name
        for suffix in ("cu", "cuh")
        for file in (ROOT / "csrc").rglob(f"*.{suffix}")
        for name in re.findall(
            r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(",
            file.read_text("utf-8"),
        )
    }
    assert "half_step_kernel" in found
    assert not {name for name in found if f"`{name}`" not in text}
