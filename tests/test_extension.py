"""The compiled extension: what it says of itself, and what happens without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import nnmf_cuda
from nnmf_cuda import _extension
from nnmf_cuda.ops import OPS

# On a GPU a CUDA graph serves training; images are decoded on the CPU.
ONLY_CPU = ("train_feature_cnn_epoch", "train_mlp_epoch", "resize_grey")

# Runs one op by the reference and says whether an extension was found.
WITHOUT_EXTENSION = """
import logging
logging.basicConfig()
import torch
from nnmf_cuda import _extension, ops
ones = torch.ones(2, 3)
ops.nnmf_mu(ones, ones[:, :1], ones[:1], n_iter=1)
print(_extension.load(), _extension.build_info(), _extension.cpu_isa())
"""


def has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"nnmf_cuda::{op}", key)


@pytest.fixture
def package_without_extension(tmp_path: Path) -> Path:
    """Copy the package's Python files; returns the folder to import them from."""
    source = Path(nnmf_cuda.__file__).parent
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(source, tmp_path / "nnmf_cuda", ignore=ignore)
    return tmp_path


def run_python(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "NNMF_CUDA_REQUIRE_EXT"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.needs_ext
def test_build_info_names_what_was_built() -> None:
    info = _extension.build_info()
    assert info["version"] == nnmf_cuda.__version__
    assert info["stable_abi_target"] == "2.10"
    assert info["compiler"].split()[0] in {"gcc", "clang"}
    assert "-std=c++20" in info["flags"]
    assert "-march=native" not in info["flags"]
    assert "baseline" in info["cpu_instruction_sets"]
    if info["cuda"]:
        assert float(info["cuda_version"]) >= 12
        assert all(name.startswith(("sm_", "compute_")) for name in info["cuda_architectures"])
        assert info["cuda_architectures"]
    else:
        assert info["cuda_version"] is None
        assert info["cuda_architectures"] == []


@pytest.mark.needs_ext
def test_the_kernels_bind_to_no_version_of_python() -> None:
    """The module of the kernels asks for nothing of CPython but what all versions have."""
    path = Path(str(getattr(_extension.load(), "__file__", "")))
    assert path.name == "_C.abi3.so"
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True
    )
    asked = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    assert {name for name in asked if name.startswith(("Py", "_Py"))} == {
        "PyErr_SetString",
        "PyExc_RuntimeError",
        "PyModule_Create2",
        "PyUnicode_FromString",
    }


@pytest.mark.needs_ext
def test_under_another_python_the_build_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnmf_cuda._build_info", None)
    assert list(_extension.build_info()) == ["cpu_instruction_sets"]


@pytest.mark.needs_ext
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads /proc/cpuinfo")
def test_cpu_isa_is_what_this_processor_has() -> None:
    text = Path("/proc/cpuinfo").read_text()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = set(line.split())
    avx2 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"} <= flags
    avx512 = avx2 and {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags
    best = "avx512" if avx512 else "avx2" if avx2 else "baseline"
    built = _extension.build_info()["cpu_instruction_sets"]
    assert _extension.cpu_isa() == (best if best in built else "baseline")


@pytest.mark.needs_ext
@pytest.mark.parametrize("op", OPS)
def test_kernels_are_registered(op: str) -> None:
    assert has_kernel(op, "CPU")
    # A build with CUDA registers its kernels beside a CPU-only torch, too.
    assert has_kernel(op, "CUDA") == (_extension.build_info()["cuda"] and op not in ONLY_CPU)


def test_missing_extension_leaves_the_reference(package_without_extension: Path) -> None:
    result = run_python(package_without_extension, WITHOUT_EXTENSION)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "None {} None"
    assert result.stderr.count("the compiled extension is not built") == 1


def test_required_extension_that_is_missing_is_an_error(package_without_extension: Path) -> None:
    result = run_python(package_without_extension, WITHOUT_EXTENSION, NNMF_CUDA_REQUIRE_EXT="1")
    assert result.returncode != 0
    assert "ImportError: NNMF_CUDA_REQUIRE_EXT=1" in result.stderr
    assert "pip install" in result.stderr


def test_damaged_extension_is_named_as_such(package_without_extension: Path) -> None:
    name = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
    (package_without_extension / "nnmf_cuda" / name).write_bytes(b"no shared object")
    result = run_python(package_without_extension, WITHOUT_EXTENSION)
    assert result.returncode == 0, result.stderr
    assert "the compiled extension is not loadable" in result.stderr
    required = run_python(package_without_extension, WITHOUT_EXTENSION, NNMF_CUDA_REQUIRE_EXT="1")
    assert "not loadable" in required.stderr.splitlines()[-1]
