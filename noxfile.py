"""Every check of the project: `nox -l` lists them.

Versions come from constraints.txt. Dependencies go in with one pip command, so that nothing
replaces the pinned torch; the package itself is then built beside them without build isolation.
Tests run from a copy of their folder, against the installed package and never the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
TEST_TOOLS = (
    *(
        "pytest",
        "pytest-xdist",
        "pytest-timeout",
        "pytest-reportlog",
        "hypothesis",
        "pandas",
        "onnx",
    ),
    # Formats that are read where the library is there; without it their tests are skipped.
    *("pydicom", "nibabel", "h5py", "zarr", "webdataset", "simplejpeg", "pyarrow"),
    # Networks and texture of the systems that are compared with; as above.
    *("monai", "einops", "scikit-image", "scikit-fuzzy"),
)
QUICK_TESTS = ("tests/test_extension.py", "tests/test_import.py", "tests/ops/test_nnmf_mu.py")

BENCHES = (
    *("kernels", "scaling", "convergence", "sparse", "missing", "consensus", "memory", "equality"),
    "break_even",
    "tf32",
    "digits",
)
NOT_COPIED = shutil.ignore_patterns("prebuilt", "__pycache__")
CUDA_ON_CPU = "tests/cuda_on_cpu"  # has a session of its own
# What `tests` alone runs: who serves an op makes no difference to it.
SAME_WITHOUT_EXTENSION = {
    "tests/csrc": "about the compiled kernels",
    "tests/test_setup.py": "what the build decides",
    "tests/bench": "measures the kernels, and is in no wheel",
    "tests/distributed": "compares fits of several processes with those of one, by the same ops",
    "tests/data": "readers know resize_grey alone, whose reference gives the kernel's bytes",
    "tests/fuzz": "what readers and settings refuse, before anything is computed",
    "tests/report": "tables and figures of made-up numbers",
    "tests/baselines": "networks and classical systems, whose few ops are tested elsewhere",
    "tests/comparison": "what becomes of any system's answers",
}
# A worker a core, each with one thread; a file's tests stay together, as they share fixtures.
PARALLEL = ("--numprocesses=auto", "--dist=loadfile")

# Pure Python, for a machine that has the rest but no network.
GPU_WHEELS = (
    *("jsonargparse", "docstring_parser", "typeshed_client", "importlib_resources"),
    *("pyautoattack", "tabulate", "pytest-xdist", "execnet", "pytest-timeout", "pytest-reportlog"),
)

nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_existing_virtualenvs = True


def install_dependencies(session: nox.Session, *tools: str) -> None:
    """Install what the package and its build need, and `tools`."""
    requirements = (*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"])
    session.install("-c", str(CONSTRAINTS), *requirements, *tools)


def install_package(session: nox.Session, *options: str, **environment: str) -> str:
    """Build and install the package, and return what pip has said.

    `environment` holds the build switches of setup.py.
    """
    for stale in ROOT.glob("build/lib*"):  # modules deleted since would be installed again
        shutil.rmtree(stale)
    build = ("--no-build-isolation", "--no-deps", "--force-reinstall", *options, str(ROOT))
    command = ("python", "-m", "pip", "install", *build)
    said = session.run(*command, env=environment, silent=True)  # shown where it fails
    with session.cd(session.create_tmp()):
        session.run("nnmf-cuda", "info")
    return str(said)


def run_tests(session: nox.Session, *arguments: str, python: str = "python", **env: str) -> None:
    """Run pytest on a copy of the tests, out of sight of the checkout's package."""
    copy = Path(session.create_tmp()).resolve() / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    for folder in ("bench", "csrc", "docs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=NOT_COPIED)
    for file in ("README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / file, copy)
    options: dict[str, Any] = {"external": True} if python != "python" else {}
    if any(argument.startswith("--numprocesses") for argument in arguments):
        env = {"OMP_NUM_THREADS": "1", **env}
    with session.cd(copy):
        session.run(python, "-m", "pytest", *arguments, env=env, **options)


@nox.session
def demo(session: nox.Session) -> None:
    """Build, run the paper's defence and the best one on the built-in phantom, side by side."""
    install_dependencies(session)
    install_package(session)
    presets = ("--preset=paper", "--preset=robust", "--evaluation=quick")
    session.run("nnmf-cuda", "run", *presets, "--out=demo-run", "--overwrite", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the suite with the extension."""
    install_dependencies(session, *TEST_TOOLS)
    install_package(session)
    run_tests(
        session, *PARALLEL, f"--ignore={CUDA_ON_CPU}", *session.posargs, NNMF_CUDA_REQUIRE_EXT="1"
    )


@nox.session
def tests_noext(session: nox.Session) -> None:
    """Run on the reference alone, as where there is no compiler, what may hang on it."""
    install_dependencies(session, *TEST_TOOLS)
    install_package(session, NNMF_CUDA_NO_EXT="1")
    left_out = (f"--ignore={path}" for path in (CUDA_ON_CPU, *SAME_WITHOUT_EXTENSION))
    run_tests(session, *PARALLEL, *left_out, *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damage files of every kind thousands of times; kill commands, and start two at one place.

    The seed is fixed; NNMF_CUDA_FUZZ_SEED gives another, NNMF_CUDA_FUZZ the cases of a kind of
    file, NNMF_CUDA_TRIALS how often what hangs on chance is tried.
    """
    install_dependencies(session, *TEST_TOOLS)
    install_package(session)
    how_often = {"NNMF_CUDA_FUZZ": "150", "NNMF_CUDA_TRIALS": "50"}
    env = {name: os.environ.get(name, default) for name, default in how_often.items()}
    run_tests(
        session,
        *(*PARALLEL, "-rP", "tests/fuzz", "tests/pipeline/test_concurrency.py"),
        *session.posargs,
        **env,
    )


@nox.session
def cuda_on_cpu(session: nox.Session) -> None:
    """Run the CUDA kernels as host code, under AddressSanitizer and in random orders."""
    install_dependencies(session, *TEST_TOOLS)
    install_package(session, NNMF_CUDA_NO_EXT="1")
    run_tests(session, *PARALLEL, CUDA_ON_CPU, *session.posargs, NNMF_CUDA_REQUIRE_SANITIZERS="1")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format of Python, C++ and CUDA, and which layer imports which."""
    session.install("-c", str(CONSTRAINTS), "ruff", "clang-format", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo", "--no-cache")
    sources = [
        str(path.relative_to(ROOT))
        for folder in ("csrc", CUDA_ON_CPU, "bench/launch_plan")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".cpp", ".cu", ".cuh", ".h"}
    ]
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package and of the benchmarks."""
    install_dependencies(session, "mypy", "types-tqdm", "types-tabulate")
    session.run("mypy")


@nox.session
def cuda_compile(session: nox.Session) -> None:
    """Compile the CUDA kernels without a GPU; fail where a hot one spills; load them."""
    if shutil.which("nvcc") is None:
        session.skip("nvcc is not on PATH: the CUDA kernels were not compiled")
    install_dependencies(session, *TEST_TOOLS)
    # Without a GPU in sight, setup.py compiles for all architectures.
    build = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "", "CUDA_VISIBLE_DEVICES": ""}
    log = install_package(session, "--verbose", **build, NNMF_CUDA_PTXAS_VERBOSE="1")
    ask = (
        "import json; from nnmf_cuda import _extension; print(json.dumps(_extension.build_info()))"
    )
    # -P: the installed package, not the checkout's
    info = json.loads(session.run("python", "-P", "-c", ask, silent=True).splitlines()[-1])
    if not info["cuda"]:
        session.error(f"the extension was built without CUDA: {info}")
    said = Path(session.create_tmp()).resolve() / "ptxas.log"
    said.write_text(log)
    architectures = [name for name in info["cuda_architectures"] if name.startswith("sm_")]
    table = ("bench/ptxas_table.py", said, "--sources", "csrc", "--architectures", *architectures)
    session.run("python", *table)
    run_tests(session, *QUICK_TESTS, NNMF_CUDA_REQUIRE_EXT="1")


@nox.session
def gate(session: nox.Session) -> None:
    """Run all that a change must pass, in one environment.

    torch is installed once, and both builds of the extension have the CPU's kernels from one
    compilation: a compiler's command names the environment.
    """
    parts = [lint, types, cuda_compile, cuda_on_cpu, tests_noext, tests]
    if shutil.which("nvcc") is None:
        session.warn("nvcc is not on PATH: the CUDA kernels are not compiled")
        parts.remove(cuda_compile)
    for part in parts:
        begin = time.monotonic()
        part(session)
        session.log(f"{part.__name__}: {time.monotonic() - begin:.0f} s")


@nox.session
def gpu_object(session: nox.Session) -> None:
    """Build the extension for a check on an H100 or H200, without a GPU; see bench/gpu_check.sh.

    It serves every Python from 3.11 on, and every torch from 2.10 on. Beside it lie wheels of what
    such machines lack.
    """
    if shutil.which("nvcc") is None:
        session.skip("nvcc is not on PATH: the CUDA kernels cannot be compiled")
    install_dependencies(session)
    folder = ROOT / "bench" / "prebuilt"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    work = Path(session.create_tmp()).resolve() / "build"
    build = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0", "CUDA_VISIBLE_DEVICES": ""}
    into = (f"--build-lib={work}/lib", f"--build-temp={work}/temp")
    session.run("python", "setup.py", "build_ext", *into, env=build)
    for built in (work / "lib" / "nnmf_cuda").glob("*.so"):
        shutil.copy2(built, folder)
    session.run("python", "-m", "bench.gpu_object", "--stamp", str(folder))
    session.run(
        *("python", "-m", "pip", "download", "--quiet", "--no-deps", "-c", str(CONSTRAINTS)),
        *("--dest", str(folder / "wheels"), *GPU_WHEELS),
    )


@nox.session
def bench_smoke(session: nox.Session) -> None:
    """Run every benchmark once at a tiny size."""
    install_dependencies(session)
    install_package(session)
    records = str(Path(session.create_tmp()).resolve() / "records.jsonl")
    Path(records).unlink(missing_ok=True)
    for kind in ("kernels", "stages"):
        session.run("nnmf-cuda", "bench", kind, "--smoke", "--json", records)
    # In a folder of their own, so that the package they measure is the installed one.
    copy = Path(session.create_tmp()).resolve() / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "bench", copy / "bench", ignore=NOT_COPIED)
    with session.cd(copy):
        for kind in BENCHES:
            session.run("python", "-m", "bench", kind, "--smoke", "--json", records)
        session.run("python", "-m", "bench", "ranks", "--smoke")
        session.run("python", "-m", "bench", "plot", records, "--out", session.create_tmp())


@nox.session
def wheel(session: nox.Session) -> None:
    """Build sdist and, isolated, the wheel from it; test the wheel in an empty environment."""
    # Isolated builds take versions from --build-constraint, which pip knows since 25.3.
    session.install("-c", str(CONSTRAINTS), "pip>=25.3", "build", "setuptools")
    work = Path(session.create_tmp()).resolve()
    dist, empty = work / "dist", work / "empty"
    for folder in (dist, empty):
        shutil.rmtree(folder, ignore_errors=True)
    sdist_only = ("--sdist", "--no-isolation", "--skip-dependency-check")
    session.run("python", "-m", "build", *sdist_only, "--outdir", str(dist), str(ROOT))
    (archive,) = dist.glob("*.tar.gz")
    isolated = ("--no-deps", "--build-constraint", str(CONSTRAINTS))
    session.run("pip", "wheel", *isolated, "--wheel-dir", str(dist), str(archive))
    (built,) = dist.glob("*.whl")
    session.run("python", "-m", "venv", str(empty))
    python = str(empty / "bin" / "python")
    pip_install = (python, "-m", "pip", "install", "-c", str(CONSTRAINTS), str(built), *TEST_TOOLS)
    session.run(*pip_install, external=True)
    run_tests(session, *QUICK_TESTS, python=python, NNMF_CUDA_REQUIRE_EXT="1")
