"""The decisions of setup.py: what is built, and what is said where it cannot be."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch

SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, on a machine with nvcc 13.0 and a torch with CUDA 13.0."""
    if not SETUP.exists():
        pytest.skip("needs the source tree")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "egg_info"])
    for name in ("FORCE_CUDA", "NNMF_CUDA_NO_EXT", "CXX"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("nnmf_cuda_setup", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find_cuda_home", lambda: "/cuda")
    monkeypatch.setattr(module, "nvcc_version", lambda _: "13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    return module


def test_cuda_is_built_where_torch_and_nvcc_agree(build: ModuleType) -> None:
    assert build.decide_cuda() == ("/cuda", "nvcc 13.0 in /cuda")


def test_force_cuda_0_leaves_cuda_out(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert build.decide_cuda() == (None, "FORCE_CUDA=0")


def test_cpu_torch_builds_the_cpu_part_unless_forced(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.decide_cuda() == (None, "this torch has no CUDA")
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert build.decide_cuda()[0] == "/cuda"


def test_without_nvcc_the_cpu_part_is_built(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_cuda_home", lambda: None)
    assert build.decide_cuda() == (
        None,
        "no CUDA toolkit found (nvcc on PATH, CUDA_HOME, /usr/local/cuda)",
    )
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but no CUDA toolkit found"):
        build.decide_cuda()


def test_nvcc_of_another_major_version(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "nvcc_version", lambda _: "12.8")
    home, reason = build.decide_cuda()
    assert home is None
    assert reason == "nvcc is 12.8 but torch was built with CUDA 13.2"
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"FORCE_CUDA=1, but nvcc is 12\.8"):
        build.decide_cuda()


def test_missing_compiler_names_the_remedy(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(SystemExit, match="no-such-compiler not found.*NNMF_CUDA_NO_EXT=1"):
        build.require_compiler()


def test_metadata_and_pure_python_installs_build_nothing(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.options() == {}
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    monkeypatch.setenv("NNMF_CUDA_NO_EXT", "1")
    assert build.options() == {}
    assert "no extension: NNMF_CUDA_NO_EXT=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ("compute_75 compute_80 compute_90 compute_100 compute_103", "8.0;9.0;10.0+PTX"),
        ("compute_80 compute_90", "8.0;9.0+PTX"),
    ],
)
def test_architectures_are_those_that_nvcc_knows(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, known: str, wanted: str
) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout=known.replace(" ", "\n") + "\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert build.default_architectures("/cuda") == wanted


def test_a_gpu_that_is_too_old_names_the_remedy(build: ModuleType) -> None:
    build.require_architectures(["sm_80", "sm_90", "sm_100", "compute_100"])
    with pytest.raises(SystemExit, match=r"need a GPU of sm_80.*not sm_75\. Set FORCE_CUDA=0"):
        build.require_architectures(["sm_75", "sm_80"])
