"""bench/ptxas_table.py on what ptxas has once said."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "ptxas_table.py"

HOT = (
    "_ZN9nnmf_cuda16half_step_kernelINS_6TilingILNS_4LossE1EffLi32ELi2E{grouped}EEE"
    "LNS_6FactorE0EEEvNS_8HalfStepINT_1TENS6_4DataEEE"
)
SPILL = """
    24 bytes stack frame, 20 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 24 bytes cumulative stack size
"""
CLEAN = """
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 37 registers, used 1 barriers, 2048 bytes smem, 368 bytes cmem[0]
"""
UPDATE = "_ZN9nnmf_cuda13update_kernelILNS_4LossE3E{T}EEvNS_10UpdateTaskIT0_EE"
SOURCE = """
template <class Tiling, Factor factor>
__global__ void __launch_bounds__(kWarp, Tiling::kResident)
    half_step_kernel(int step) {}
template <class T>
static __global__ void update_kernel(T task) {}
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location("ptxas_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def entry(name: str, says: str, architecture: str = "sm_90") -> str:
    # pip indents what a build says.
    return (
        f"  ptxas info    : Compiling entry function '{name}' for '{architecture}'\n"
        f"  ptxas info    : Function properties for {name}{says}"
        "ptxas info    : Compile time = 240.885 ms\n"
    )


HOT_NAME, LARGE_NAME = HOT.format(grouped="Lb0"), HOT.format(grouped="Lb1")
FLOAT_NAME, DOUBLE_NAME = UPDATE.format(T="f"), UPDATE.format(T="d")


def run(script: ModuleType, tmp_path: Path, log: str, *architectures: str) -> int:
    (tmp_path / "kernels.cuh").write_text(SOURCE)
    (tmp_path / "log").write_text("[1/2] nvcc -c x.cu\nptxas info    : 28 bytes gmem\n" + log)
    options = ("--sources", tmp_path, "--architectures", *(architectures or ("sm_90",)))
    return script.main([str(option) for option in (tmp_path / "log", *options)])


def test_numbers_and_names_are_read(script: ModuleType) -> None:
    # What a called function says stands before or behind the kernel that it is called by.
    called = (
        f"ptxas info    : Function properties for __internal_accurate_pow{CLEAN.splitlines()[1]}"
    )
    hot, update = script.parse(entry(HOT_NAME, SPILL) + called + entry(FLOAT_NAME, CLEAN) + called)
    assert hot == script.Kernel(
        "half_step_kernel<Tiling<Loss 1, float, float, 32, 2, false>, Factor 0>",
        "sm_90",
        registers=255,
        shared=0,
        stack=24,
        spill_stores=20,
        spill_loads=36,
    )
    assert update == script.Kernel("update_kernel<Loss 3, float>", "sm_90", 37, 2048, 0, 0, 0)


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("void a::sum<(a::Loss)1, unsigned char>(unsigned char const*)", "sum<Loss 1, uint8>"),
        ("a::sum(double const*, long)", "sum"),
        ("void (anonymous namespace)::sum<(a::b::Loss)0>(int)", "sum<Loss 0>"),
        ("void a::sum<a::B<(int)4, (bool)1> >(a::B<(int)4, (bool)1>::T)", "sum<B<int 4, bool 1>>"),
    ],
)
def test_short_names(script: ModuleType, demangled: str, name: str) -> None:
    assert script.short_name(demangled) == name


def test_a_spill_in_a_hot_kernel_fails(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = entry(HOT_NAME, SPILL) + entry(FLOAT_NAME, CLEAN)
    assert run(script, tmp_path, log) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[:7] == ["SPILLS", "sm_90", "255", "0", "24", "20", "36"]
    assert "1 hot ones use local memory, and 0 that may" in lines[-1]


def test_a_stack_frame_without_spills_fails(script: ModuleType, tmp_path: Path) -> None:
    frame = CLEAN.replace("0 bytes stack", "8 bytes stack")
    assert run(script, tmp_path, entry(HOT_NAME, CLEAN) + entry(FLOAT_NAME, frame)) == 1
    called = CLEAN.replace("2048 bytes smem", "16 bytes cumulative stack size")
    assert run(script, tmp_path, entry(HOT_NAME, CLEAN) + entry(FLOAT_NAME, called)) == 1


def test_cold_kernels_may_spill(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = entry(LARGE_NAME, SPILL) + entry(DOUBLE_NAME, SPILL) + entry(HOT_NAME, CLEAN)
    assert run(script, tmp_path, log) == 0
    said = capsys.readouterr().out
    assert "(more than 32 components)" in said
    assert "(float64)" in said
    assert "0 hot ones use local memory, and 2 that may" in said


def test_what_was_not_compiled_is_missed(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, tmp_path, entry(HOT_NAME, CLEAN)) == 1
    assert "incomplete: update_kernel was not compiled" in capsys.readouterr().out
    both = entry(HOT_NAME, CLEAN) + entry(FLOAT_NAME, CLEAN)
    assert run(script, tmp_path, both + entry(HOT_NAME, CLEAN, "sm_80"), "sm_90", "sm_80") == 1
    assert "update_kernel<Loss 3, float> is missing for sm_80" in capsys.readouterr().out
    assert run(script, tmp_path, both) == 0
    assert run(script, tmp_path, "") == 1
    with pytest.raises(SystemExit, match="does not tell all about"):
        run(script, tmp_path, entry(HOT_NAME, "\n"))
