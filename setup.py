"""Build `nnmf_cuda._C` and `nnmf_cuda._build_info`; all else is in pyproject.toml.

Beside an installed torch, `pip install --no-build-isolation -e .` is the quick way: with build
isolation pip first downloads a torch of its own to compile against.

Environment variables read here, and nothing else:

- ``FORCE_CUDA``: 1 builds the CUDA kernels although no CUDA torch is installed (nvcc is enough),
  0 leaves them out; unset: they are built where torch has CUDA and a matching nvcc is found;
- ``NNMF_CUDA_NO_EXT=1``: pure-Python install, the reference serves every op;
- ``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS``, ``CXX``, ``CUDA_HOME``: torch's own; where torch sees
  no GPU, the list is that of `default_architectures`;
- ``NNMF_CUDA_PTXAS_VERBOSE=1``: compiles all CUDA sources anew and prints what registers and memory
  each kernel takes (``-Xptxas -v``; bench/ptxas_table.py makes a table of it);
- ``DEBUG=1``: no optimisation, debug information, warnings are errors.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent
STABLE_ABI = "2.10"  # the oldest torch that the object runs with
ARCHITECTURES = ("8.0", "9.0", "10.0")  # those that nvcc knows are built, the last one as PTX too
# torch is imported only by the commands that compile: metadata and sdist do without it.
BUILD_COMMANDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"}


def find_cuda_home() -> str | None:
    """Return the toolkit's folder; nvcc on PATH may be a wrapper that lies outside it."""
    nvcc = shutil.which("nvcc")
    places = [
        os.environ.get("CUDA_HOME"),
        Path(nvcc).resolve().parents[1] if nvcc else None,
        "/usr/local/cuda",
    ]
    for place in places:
        if place and Path(place, "include/cuda_runtime.h").exists():
            if Path(place, "bin/nvcc").exists():
                return str(place)
    return None


def nvcc_version(cuda_home: str) -> str:
    """Return nvcc's version, such as '13.0'."""
    command = [f"{cuda_home}/bin/nvcc", "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", output)
    if found is None:
        raise SystemExit(f"nnmf-cuda: cannot read a version from the output of {command}")
    return found[1]


def default_architectures(cuda_home: str) -> str:
    """Return what is built where there is no GPU, as TORCH_CUDA_ARCH_LIST tells it."""
    command = [f"{cuda_home}/bin/nvcc", "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    built = [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in known]
    return ";".join(built) + "+PTX"


def require_architectures(names: list[str]) -> None:
    """Stop with the remedy where a GPU is asked for that the CUDA kernels do not know."""
    old = [name for name in names if int(re.sub(r"\D", "", name)) < 80]
    if old:
        raise SystemExit(
            f"nnmf-cuda: the CUDA kernels need a GPU of sm_80 (A100) or later, not {old[0]}. Set"
            " FORCE_CUDA=0 to build the CPU kernels only, or TORCH_CUDA_ARCH_LIST to build for"
            " other GPUs."
        )


def decide_cuda() -> tuple[str | None, str]:
    """Return the CUDA toolkit to build with, or None, and the reason in words."""
    import torch

    force, torch_cuda = os.environ.get("FORCE_CUDA"), torch.version.cuda
    if force == "0":
        return None, "FORCE_CUDA=0"
    if force != "1" and torch_cuda is None:
        return None, "this torch has no CUDA"
    cuda_home = find_cuda_home()
    if cuda_home is None:
        reason = "no CUDA toolkit found (nvcc on PATH, CUDA_HOME, /usr/local/cuda)"
    else:
        version = nvcc_version(cuda_home)
        if torch_cuda is None or version.split(".")[0] == torch_cuda.split(".")[0]:
            return cuda_home, f"nvcc {version} in {cuda_home}"
        reason = f"nvcc is {version} but torch was built with CUDA {torch_cuda}"
    if force == "1":
        raise SystemExit(f"nnmf-cuda: FORCE_CUDA=1, but {reason}")
    return None, reason


def require_compiler() -> None:
    """Stop with the remedy where there is no C++ compiler."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"nnmf-cuda: no C++ compiler ({compiler} not found). Install one, for example g++, or"
            " set NNMF_CUDA_NO_EXT=1 for a pure-Python install, in which the slower reference"
            " serves every op."
        )


def text_macro(name: str, value: str) -> tuple[str, str]:
    """Return a macro that expands to a C string."""
    return name, f'"{value}"'


def extensions() -> list[Any]:
    """Return the kernels and the facts about their build, after deciding what goes into them.

    The kernels use the stable ABIs of torch and of CPython: one object for every later version.
    """
    import pybind11
    from setuptools import Extension
    from torch.utils import cpp_extension

    require_compiler()
    cuda_home, reason = decide_cuda()
    debug = os.environ.get("DEBUG") == "1"
    major, minor = map(int, STABLE_ABI.split("."))
    optimise = ["-O0", "-g"] if debug else ["-O3", "-g0"]
    cxx = [
        *optimise,
        "-std=c++20",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-psabi",
        *["-Werror"] * debug,
    ]
    # Line numbers cost nothing at run time, and a profiler shows a kernel's source by them.
    nvcc = ["-O0" if debug else "-O3", "-std=c++20", "-lineinfo"]
    nvcc += ["-Xcompiler", "-fvisibility=hidden"]
    if os.environ.get("NNMF_CUDA_PTXAS_VERBOSE") == "1":
        nvcc += ["-Xptxas", "-v"]
        for stale in ROOT.glob("build/temp*/csrc/*/cuda/*.o"):  # nothing is said of what is kept
            stale.unlink()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    torch_abi = ("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000")
    macros: list[tuple[str, str | None]] = [
        text_macro("NNMF_CUDA_VERSION", version),
        text_macro("NNMF_CUDA_STABLE_ABI", STABLE_ABI),
        text_macro("NNMF_CUDA_FLAGS", " ".join(cxx)),
    ]
    sources, link = ["csrc/module.cpp", *sorted(ROOT.glob("csrc/*/cpu/*.cpp"))], {}
    summary = f"the CPU kernels only: {reason}"
    if cuda_home is not None:
        import torch

        cpp_extension.CUDA_HOME = cuda_home  # None beside a CPU-only torch
        if not torch.cuda.is_available():  # torch would look for a GPU and fail
            os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get(
                "TORCH_CUDA_ARCH_LIST"
            ) or default_architectures(cuda_home)
        flags = " ".join(cpp_extension._get_cuda_arch_flags())
        architectures = re.findall(r",code=(\w+)", flags)
        require_architectures(architectures)
        sources += sorted(ROOT.glob("csrc/*/cuda/*.cu"))
        # For what needs it alone: the kernels of the CPU are the same objects either way.
        nvcc += ["-DUSE_CUDA"]
        macros += [
            ("USE_CUDA", None),
            text_macro("NNMF_CUDA_CUDA_VERSION", nvcc_version(cuda_home)),
            text_macro("NNMF_CUDA_ARCHITECTURES", " ".join(architectures)),
        ]
        # cudart is linked statically and nothing of CUDA torch is: the object also loads beside a
        # CPU-only torch.
        link = {
            "library_dirs": [f"{cuda_home}/lib64"],
            "libraries": ["cudart_static", "rt", "dl", "pthread"],
        }
        summary = f"the CPU and CUDA kernels for {' '.join(architectures)}: {reason}"
    print(f"nnmf-cuda: building {summary}", flush=True)
    for stale in ROOT.glob("nnmf_cuda/_C.cpython-*.so"):  # of one Python, it would be found first
        stale.unlink()
    kernels = cpp_extension.CppExtension(
        "nnmf_cuda._C",
        [os.path.relpath(source, ROOT) for source in sources],
        py_limited_api=True,
        define_macros=[torch_abi],
        depends=[
            os.path.relpath(path, ROOT)
            for suffix in ("h", "cuh")
            for path in ROOT.glob(f"csrc/**/*.{suffix}")
        ],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        **link,
    )
    facts = Extension(
        "nnmf_cuda._build_info",
        ["csrc/build_info.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=macros,
        extra_compile_args={"cxx": cxx},
        language="c++",
    )
    return [kernels, facts]


def options() -> dict[str, Any]:
    """Return what this build adds to the static metadata."""
    if not BUILD_COMMANDS.intersection(sys.argv):
        return {}
    if os.environ.get("NNMF_CUDA_NO_EXT") == "1":
        print("nnmf-cuda: no extension: NNMF_CUDA_NO_EXT=1", flush=True)
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return {"ext_modules": extensions(), "cmdclass": {"build_ext": BuildExtension}}


setup(**options())
