"""From machine code, launches and assumptions to predictions, and back from measurements."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from bench import headlines
from bench.__main__ import main as bench_main
from bench.diagnosis import compare, suspects
from bench.kernel_work import RULES, work_of
from bench.launched import Launched
from bench.launches import Launch, build_planner, plan_of
from bench.machine_code import Code, pipe_of, read_listing
from bench.predict import sizes_of, write_page
from bench.predictions import TARGETS, predictions, predictions_table, problem_key
from bench.ptxas_table import kernels_of_sources
from bench.time_model import (
    BEST,
    DEVICES,
    EXPECTED,
    SOURCES,
    WORST,
    Assumptions,
    KernelWork,
    issue_cycles,
    time_of,
)

ROOT = Path(__file__).parents[2]

# Machine code -------------------------------------------------------------------------------------

# Of count_columns_kernel<int> for sm_90, some lines left out: a division whose slow way is called,
# and a loop in a loop.
COUNT = """
		Function : _ZN9nnmf_cuda20count_columns_kernelIiEEvNS_11ColumnCountIT_EE
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
                                                                      /* 0x000ff00000000800 */
        /*0080*/              @!P0 BRA 0xc0 ;                         /* 0x0000000000088947 */
        /*00a0*/                   CALL.REL.NOINC 0x5c0 ;
        /*00c0*/                   I2F.U32.RP R0, R2 ;
        /*00e0*/                   MUFU.RCP R0, R0 ;
        /*0140*/                   IMAD.HI.U32 R6, R5, R3, R4 ;
        /*02d0*/               @P0 EXIT ;
        /*0300*/                   LDC.64 R2, c[0x0][0x210] ;
        /*0320*/                   LEA R2, P0, R12, R2, 0x2 ;
        /*0340*/                   LDG.E R5, desc[UR6][R2.64] ;
        /*03b0*/               @P0 BRA 0x540 ;
        /*03e0*/                   ULDC.64 UR8, c[0x0][0x218] ;
        /*0420*/                   LDG.E R16, desc[UR6][R14.64] ;
        /*0440*/                   IMAD.WIDE.U32 R16, R4, UR4, R16 ;
        /*0490*/                   VIADD R11, R11, 0x1 ;
        /*04a0*/                   STG.E desc[UR6][R8.64], R11 ;
        /*0530*/              @!P0 BRA 0x420 ;
        /*0540*/                   BSYNC B0 ;
        /*0550*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*05a0*/              @!P0 BRA 0x300 ;
        /*05b0*/                   EXIT ;
        /*05c0*/                   LDC.64 R2, c[0x0][0x238] ;
        /*0630*/                   I2F.U64.RP R12, R4 ;
        /*0800*/                   BRA 0x630 ;
        /*0810*/                   BRA 0x810;
        /*0820*/                   NOP;
"""

# Of half_step_kernel, Kullback-Leibler in float32: what a tile is made of, much left out.
TILE = """
		Function : half
        /*29c0*/                   IADD3 R2, P0, R2, 0x10, RZ ;
        /*2c70*/                   ULDC UR4, c[0x0][0x2d4] ;
        /*2d00*/                   LDGSTS.E [R5], desc[UR6][R8.64] ;
        /*2d10*/                   LDGSTS.E [R5+0x50], desc[UR6][R10.64] ;
        /*3b90*/              @!P3 BRA 0x2c70 ;
        /*3cc0*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR6][R8.64] ;
        /*3cd0*/                   LDGSTS.E.BYPASS.128 [R5+0x50], desc[UR6][R10.64] ;
        /*3e70*/                   LDGSTS.E.BYPASS.128 [R7], desc[UR6][R12.64], P4 ;
        /*3fc0*/              @!P3 BRA 0x3e70 ;
        /*4370*/              @!P3 BRA 0x3cc0 ;
        /*46f0*/                   LDS.128 R136, [R228] ;
        /*4700*/                   FFMA R3, R4, R136, R3 ;
        /*4710*/                   FFMA R3, R5, R137.reuse, R3 ;
        /*4720*/                   MUFU.RCP R7, R3 ;
        /*4730*/                   FMNMX R3, R3, UR5, !PT ;
        /*6b90*/              @!P1 BRA 0x46f0 ;
        /*6e70*/              @!P1 BRA 0x29c0 ;
        /*6e80*/                   EXIT ;
"""


def test_loops_of_a_kernel_are_found_and_what_is_called_is_left_out():
    (kernel,) = read_listing(COUNT, "sm_90").values()
    assert kernel.own.opcodes == {
        **dict.fromkeys(("LDC", "BRA", "CALL", "I2F", "MUFU", "IMAD"), 1),
        "EXIT": 2,
    }
    (outer,) = kernel.loops
    (inner,) = outer.inner
    assert (outer.begin, outer.end, inner.begin, inner.end) == (0x300, 0x5A0, 0x420, 0x530)
    assert inner.own.opcodes == {"LDG": 1, "IMAD": 1, "VIADD": 1, "STG": 1, "BRA": 1}
    assert outer.own.slots == 8  # without those of the loop in it
    assert kernel.all_loops() == [outer, inner]
    assert kernel.registers == 17
    assert kernel.hot_loop() is None


def test_the_hot_loop_and_what_is_around_it():
    (kernel,) = read_listing(TILE, "sm_90").values()
    hot = kernel.hot_loop()
    assert hot.own.multiply_adds == 64
    tile = kernel.around(hot)
    assert tile.begin == 0x29C0
    assert [loop.copied_bytes for loop in tile.inner] == [4, 16, 0]
    assert kernel.around(tile) is None


def test_units_and_cycles_of_instructions():
    assert [pipe_of(name) for name in ("FFMA", "IADD3", "MUFU", "DFMA", "HMMA", "LDS")] == [
        *("fma", "alu", "xu", "fp64", "tensor", "memory")
    ]
    assert pipe_of("UIADD3") == pipe_of("BRA") == "control"
    assert issue_cycles(Code({"FFMA": 10, "IADD3": 2})) == 12  # all are issued
    assert issue_cycles(Code({"FFMA": 10, "MUFU": 4})) == 32  # a unit has four lanes
    assert issue_cycles(Code({"DFMA": 10})) == 20
    assert (Code({"FFMA": 1}) * 3 + Code({"FFMA": 1, "LDS": 2})).opcodes == {"FFMA": 4, "LDS": 2}


# Launches -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    if shutil.which("c++") is None or not (ROOT / "csrc").is_dir():
        pytest.skip("needs a C++ compiler and the source tree")
    return build_planner(tmp_path_factory.mktemp("planner"))


def plan(planner, case, size, setting=None):
    call = {"nnls_drift": "nnls"}.get(case.op, case.op)
    given = {"multiprocessors": 132, "shared_bytes": 228 * 1024}
    environment = {} if setting is None else setting.environment
    return plan_of(
        planner,
        f"{call} {size.dtype}",
        {**sizes_of(case.op, size), **given},
        environment=environment,
    )


def test_every_headline_has_a_plan_of_kernels_that_exist(planner):
    known = kernels_of_sources(ROOT / "csrc")
    for case, sizes in headlines.HEADLINES:
        for size in sizes:
            found = plan(planner, case, size)
            assert found.launches, case.op
            for launch in found.launches:
                assert any(name in launch.symbol for name in known), launch.symbol
                assert 0 < launch.threads <= 1024
                assert launch.shared_bytes <= 227 * 1024


def test_the_cut_of_the_papers_size_covers_all_of_it(planner):
    (case, sizes) = headlines.HEADLINES[0]
    for size in sizes[:2]:
        found = plan(planner, case, size)
        s, notes = size.shape, found.notes
        for of, length, depth in (
            ("W", s["n_samples"], s["n_features"]),
            ("H", s["n_features"], s["n_samples"]),
        ):
            tiles, splits, each = (notes[f"{of}_{what}"] for what in ("tiles", "splits", "each"))
            assert tiles == math.ceil(length / notes[f"{of}_items"])
            in_all = math.ceil(depth / notes[f"{of}_depth"])
            assert splits == math.ceil(in_all / each)
        halves = [one.blocks for one in found.launches if "half_step_kernel" in one.symbol]
        expected = [notes[f"{of}_tiles"] * notes[f"{of}_splits"] for of in "WH"]
        assert halves == expected * s["n_iter"]


def test_a_call_that_does_not_exist_is_an_error(planner):
    with pytest.raises(ValueError, match="no such call"):
        plan_of(planner, "nnmf_mu float16", {})
    with pytest.raises(ValueError, match="n=... is missing"):
        plan_of(planner, "nnls float32", {"warm": 0})


# From work to time --------------------------------------------------------------------------------


def work(**values):
    return KernelWork(
        **{"kernel": "k", "times": 1.0, "blocks": 528, "issue_cycles": 0.0, "warps": 4.0, **values}
    )


PLAIN = replace(EXPECTED["h200"], launch_us=0.0, memory_cycles=0.0, issue_share=1.0, clock_ghz=2.0)


def test_a_kernel_takes_as_long_as_the_longest_of_four():
    def of(**values):
        found = time_of([work(**values)], DEVICES["h200"], PLAIN)
        return found.binds, found.ms

    assert of(issue_cycles=2e6) == ("issue", pytest.approx(1.0))
    assert of(memory_bytes=4.2e9) == ("memory", pytest.approx(1.0))
    assert of(l2_bytes=5.7e9) == ("l2", pytest.approx(1.0))
    assert of(chain={"l2": 1000, "cycles": 1e6}) == ("latency", pytest.approx(0.5 + 0.1315))
    assert of(issue_cycles=2e6, memory_bytes=4.2e8) == ("issue", pytest.approx(1.0))
    assert of(issue_cycles=2e6, times=3.0) == ("issue", pytest.approx(3.0))


def test_few_warps_issue_less_and_what_fits_into_l2_is_not_read_again():
    def ms(**values):
        return time_of([work(**values)], DEVICES["h200"], PLAIN).ms

    assert ms(issue_cycles=1e6, warps=1) > ms(issue_cycles=1e6, warps=2) > ms(issue_cycles=1e6)
    assert ms(memory_bytes=4e7, cached_bytes=4e7) == pytest.approx(4e7 / 5.7e12 * 1e3)
    assert ms(memory_bytes=5e7, cached_bytes=5e7) == pytest.approx(5e7 / 4.2e12 * 1e3)


def test_launches_and_the_host_are_beside_it():
    found = time_of([work(times=4.0)], DEVICES["h200"], EXPECTED["h200"], calls=2)
    assert found.by_bound["launch"] == pytest.approx(4 * (1.3e-3 + 600 / 1.98e6))
    assert found.host_ms == pytest.approx((4 * 3 + 2 * 25) * 1e-3)


def test_work_follows_the_machine_code_and_the_launch():
    (code,) = read_listing(TILE, "sm_90").values()
    sizes = {"W_items": 128, "W_depth": 16, "W_tiles": 12, "W_splits": 86, "W_each": 12}
    sizes |= {"n": 1500, "f": 16384, "k": 15, "padded": 16, "used": 16, "batch": 1, "own_X": 0}
    launch = Launch("half_step_kernelLossE1FactorE0", 1032, 32, 22528)
    found = work_of(Launched(launch, code, sizes, DEVICES["h200"]), "half_step_kernel<...>")
    # Eight warps a multiprocessor, two a scheduler; a tile is 65,536 multiply-adds in 64 a pass.
    tile = 1024 * 8 + 8  # the pass: six instructions, but 8 cycles of the reciprocal; around it
    assert found.issue_cycles == pytest.approx(2 * (11.9 * tile), rel=0.02)
    assert found.memory_bytes == found.cached_bytes == 1500 * 16384 * 4
    doubled = replace(launch, blocks=2 * 1032)
    twice = work_of(Launched(doubled, code, sizes, DEVICES["h200"]), "half_step_kernel<...>")
    assert twice.issue_cycles == 2 * found.issue_cycles


def test_assumptions_have_a_source_and_a_range():
    names = {field.name for field in fields(Assumptions)}
    assert set(SOURCES) == names
    for device in DEVICES:
        expected = asdict(EXPECTED[device])
        for these in (BEST[device], WORST[device]):
            assert set(asdict(these)) == names
        assert asdict(BEST[device]) != expected != asdict(WORST[device])


def test_rules_are_those_of_kernels_that_exist():
    if not (ROOT / "csrc").is_dir():
        pytest.skip("needs the source tree")
    assert set(RULES) <= kernels_of_sources(ROOT / "csrc")


# The predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_every_headline_and_setting_is_predicted(device):
    wanted = {
        (problem_key(case.op, size.name, size.dtype), "ours")
        for case, sizes in headlines.HEADLINES
        for size in sizes
    }
    wanted |= {
        (problem, f"ours, {setting.name}")
        for setting in headlines.SETTINGS
        for problem in setting.problems
    }
    found = predictions(device)
    assert {(one.problem, one.impl) for one in found} >= wanted
    for one in found:
        assert one.low_ms <= one.ms <= one.high_ms
        assert sum(one.by_bound_ms.values()) == pytest.approx(one.ms, rel=0.02)
    assert {target.problem for target in TARGETS} <= {one.problem for one in found}


@pytest.mark.parametrize("device", DEVICES)
def test_predictions_are_what_the_model_makes_of_their_work(device):
    """Whoever changes an assumption writes them anew: python -m bench predict."""
    path = ROOT / "bench" / "results" / f"predictions-{device}.json"
    assert json.loads(path.read_text())["assumptions"] == asdict(EXPECTED[device])
    for one in predictions(device):
        kernels = [KernelWork.from_json(kernel) for kernel in one.kernels]
        for ms, assumed in ((one.ms, EXPECTED), (one.low_ms, BEST), (one.high_ms, WORST)):
            found = time_of(kernels, DEVICES[device], assumed[device], calls=one.calls)
            assert found.ms == pytest.approx(ms, rel=0.01), one.problem


def test_objects_and_devices_are_given_as_words(monkeypatch, capsys):
    given = []

    def write(objects, *, devices):
        given.append((objects, devices))
        return [Path("predictions-h200.json")]

    monkeypatch.setattr("bench.predict.write_predictions", write)
    bench_main(["predict", "--objects", "A.o", "build/*/B.o", "--devices", "h200"])
    bench_main(["predict", "--objects", "build/temp*/csrc/*/cuda/*.o"])
    assert given == [
        (["A.o", "build/*/B.o"], ["h200"]),
        (["build/temp*/csrc/*/cuda/*.o"], list(DEVICES)),
    ]
    assert "predictions-h200.json" in capsys.readouterr().out


def test_the_page_has_the_predictions(tmp_path):
    page = ROOT / "docs" / "gpu.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    text = page.read_text("utf-8")
    assert predictions_table() in text, "python -m bench predict --page docs/gpu.md writes it"
    copy = tmp_path / "gpu.md"
    copy.write_text(text.replace(" | issue | ", " | fate | "))
    write_page(copy)
    assert copy.read_text() == text
    copy.write_text("no marks")
    with pytest.raises(ValueError, match="has no <!-- predictions -->"):
        write_page(copy)


# From measurements to an assumption ---------------------------------------------------------------


def measured_with(**changes):
    """What would be measured where assumptions are other ones."""
    assumed = replace(EXPECTED["h200"], **changes)
    return {
        (one.problem, one.impl): time_of(
            [KernelWork.from_json(kernel) for kernel in one.kernels],
            DEVICES["h200"],
            assumed,
            calls=one.calls,
        ).ms
        for one in predictions()
    }


@pytest.mark.parametrize(
    ("name", "value"), [("clock_ghz", 1.2), ("launch_us", 4.0), ("l2_cycles", 600.0)]
)
def test_the_assumption_that_was_wrong_is_named(name, value):
    compared = compare(predictions(), measured_with(**{name: value}))
    best = suspects(compared, "h200")[0]
    assert best.explains
    assert best.name == name
    assert best.found == pytest.approx(value, rel=0.1)


def test_nothing_is_blamed_where_nothing_explains():
    wild = {
        key: ms * (3 if i % 2 else 1 / 3) for i, (key, ms) in enumerate(measured_with().items())
    }
    assert not suspects(compare(predictions(), wild), "h200")[0].explains
    assert suspects(compare(predictions(), measured_with()), "h200") == []  # as predicted
    few = dict(list(wild.items())[:2])
    assert suspects(compare(predictions(), few), "h200") == []
