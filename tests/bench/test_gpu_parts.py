"""The parts of a check on a GPU: object, parity, headlines, compute-sanitizer, and their table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from bench import headlines, parity, sanitize
from bench.case import Size
from bench.cases import get_cases
from bench.gpu_object import provide, source_digest, write_stamp
from bench.gpu_table import VisitLines, measured_targets, read_visit, table
from bench.gpu_tests import Outcomes
from bench.journal import Journal, read_lines
from bench.kernels import run_kernel_benchmarks, verify
from bench.op_calls import op_calls
from bench.predictions import GRAPH, TARGETS, Target, predictions, problem_key
from nnmf_cuda import ops, show_config
from nnmf_cuda.benchmarks.records import read_records

# The object ------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    prebuilt, package = tmp_path / "prebuilt", tmp_path / "package"
    prebuilt.mkdir()
    package.mkdir()
    (prebuilt / "_C.abi3.so").write_text("object")
    write_stamp(prebuilt)
    return {"prebuilt": prebuilt, "package": package}


GOOD, BAD = {"device": "NVIDIA H200"}, {"error": "ImportError: undefined symbol"}


def asked(places, described, device="cuda"):
    built, answers = [], list(described)
    found = provide(
        device, describe=lambda device: answers.pop(0), build=lambda: built.append(1), **places
    )
    assert not answers
    return found, bool(built)


def test_an_object_of_these_sources_is_taken(places):
    found, built = asked(places, [GOOD])
    assert (found["source"], built) == ("prebuilt", False)
    assert (places["package"] / "_C.abi3.so").read_text() == "object"


def test_an_object_that_does_not_import_is_taken_away_again(places):
    found, built = asked(places, [BAD, GOOD])
    assert (found["source"], built) == ("built", True)
    assert found["notes"] == ["the prebuilt object does not serve: ImportError: undefined symbol"]
    assert not list(places["package"].iterdir())


def test_an_object_of_other_sources_is_not_even_tried(places):
    (places["prebuilt"] / "sources.sha256").write_text("0123\n")
    found, built = asked(places, [GOOD])
    assert (found["source"], found["notes"]) == (
        "built",
        ["the prebuilt object is of other sources"],
    )
    assert built


def test_where_there_is_none_it_is_built_and_may_fail(places):
    (places["prebuilt"] / "_C.abi3.so").unlink()
    found, built = asked(places, [BAD])
    assert built
    assert found["error"]
    assert found["notes"] == ["no prebuilt object"]


def test_what_is_there_is_taken_in_a_rehearsal_or_where_that_is_asked_for(places, monkeypatch):
    there = ({"source": "there", "notes": [], **GOOD}, False)
    assert asked(places, [GOOD], device="cpu") == there
    monkeypatch.setenv("NNMF_CUDA_SKIP_BUILD", "1")
    assert asked(places, [GOOD]) == there
    assert not list(places["package"].iterdir())
    found, built = asked(places, [BAD, GOOD])
    assert (found["source"], built) == ("prebuilt", False)
    assert found["notes"][0].startswith("what is there does not serve")


def test_the_digest_is_that_of_what_is_compiled(tmp_path):
    (tmp_path / "csrc" / "nnmf").mkdir(parents=True)
    kernel = tmp_path / "csrc" / "nnmf" / "kernel.cu"
    kernel.write_text("one")
    (tmp_path / "setup.py").write_text("setup")
    first = source_digest(tmp_path)
    (tmp_path / "csrc" / "README.md").write_text("words")
    assert source_digest(tmp_path) == first
    kernel.write_text("two")
    assert source_digest(tmp_path) != first


# Parity ----------------------------------------------------------------------------------------


def test_one_call_of_each_op_comes_first_and_none_is_forgotten():
    calls = list(op_calls())
    first = {call.ops[0] for call in calls}
    assert [call.ops[0] for call in calls[: len(first)]] == list(
        dict.fromkeys(call.ops[0] for call in calls)
    )
    plain = {"train_feature_cnn_epoch", "train_mlp_epoch", "resize_grey"}  # without a CUDA kernel
    assert {op for call in calls for op in call.ops} == set(show_config()["ops"]) - plain
    assert len({call.name for call in calls}) == len(calls)


def test_calls_are_the_same_in_every_process_and_clear_of_kinks():
    """float32 and float64 agree, so that no ReLU is so near zero that rounding decides."""
    for call, again in zip(op_calls(), op_calls(), strict=True):
        for name, value in call.arguments.items():
            other = again.arguments[name]
            pairs = zip(value, other, strict=True) if isinstance(value, list) else [(value, other)]
            assert all(torch.equal(*pair) for pair in pairs)
        error, allowed = parity.compare(call, "cpu")
        # The largest is that of HALS with as many components as samples: 2e-3 by the reference.
        assert error <= allowed < 1e-2, call.name


def test_parity_finds_what_is_off(tmp_path, monkeypatch, capsys):
    right = ops.nnls

    def wrong(gram, cross, **options):
        found = right(gram, cross, **options)
        if gram.shape[-1] == 15:
            raise RuntimeError("no such kernel\nwith details")
        if gram.shape[-1] == 33:
            found = found.clone()
            found[0, 0, 0] += 1e-6
        return found

    def compare(call, device):
        monkeypatch.setattr(ops, "nnls", right)
        truth = call.in_float64()()
        monkeypatch.setattr(ops, "nnls", wrong)
        errors = parity.output_errors(call(), truth)
        return max(errors), 1e-9

    some = [call for call in op_calls() if call.ops == ("nnls",)]
    monkeypatch.setattr(parity, "op_calls", lambda: iter(some))
    monkeypatch.setattr(parity, "compare", compare)
    journal = tmp_path / "visit.jsonl"
    monkeypatch.setattr(sys, "argv", ["parity", str(journal), "--device", "cpu"])
    Journal(journal).add("trying", part="parity", what="nnls 128")  # it died of this before
    assert parity.main() == 1
    found = {r["what"]: r for r in read_lines([journal]) if r["kind"] == "parity"}
    assert {what: r["outcome"] for what, r in found.items()} == {
        "nnls 5": "passed",
        "nnls 1": "passed",
        "nnls 15": "failed",
        "nnls 33": "failed",
        "nnls 257": "passed",
    }
    assert found["nnls 15"]["message"] == "RuntimeError: no such kernel"
    assert "above" in found["nnls 33"]["message"]
    shown = table(read_visit(journal))
    assert "parity with the CPU: 3 of 6 calls" in shown
    assert "died or hung: nnls 128" in shown
    assert "no such kernel" in shown


def test_wrong_shapes_and_nan_are_infinitely_off():
    truth = (torch.ones(3), torch.zeros(2))
    assert parity.output_errors((torch.ones(3), torch.zeros(2)), truth) == [0.0, 0.0]
    assert parity.output_errors((torch.ones(4), torch.tensor([0.0, 0.5])), truth) == [
        float("inf"),
        0.5,
    ]
    assert parity.output_errors((torch.tensor([1.0, 1.0, float("nan")]), truth[1]), truth)[
        0
    ] == float("inf")


# Headlines -------------------------------------------------------------------------------------


def test_headlines_are_predicted_and_targets_are_measured():
    timed = {what.partition(":")[0] for what, _ in headlines.problems(smoke=False)}
    assert timed == {one.problem for one in predictions()}
    assert {target.problem for target in TARGETS} <= timed


def test_ours_and_the_reference_of_all_come_before_the_graphs():
    order = [problem.only for _, problem in headlines.problems(smoke=False)]
    graphs = [GRAPH in only for only in order]
    assert graphs == sorted(graphs)
    n_graphs = sum(graphs)
    assert all(only[:2] == ("reference", "ours") for only in order[:-n_graphs])
    assert set(order[-n_graphs:]) == {("ours", GRAPH)}
    assert {
        (p.case.op, p.size.shape.get("n_draws")) for _, p in headlines.problems(smoke=False)
    } >= {
        ("defended_logits", 8),
        ("defended_logits", 64),
        ("defended_logits_gradient", 8),
        ("defended_logits_gradient", 64),
    }


def test_every_op_with_a_kernel_of_its_own_updates_has_a_headline():
    ops_timed = {case.op for case, _ in headlines.HEADLINES}
    assert ops_timed >= {"nnmf_sparse_mu", "nnmf_sparse_cd", "nnmf_weighted_mu", "crown_bounds"}


def test_a_setting_is_timed_by_a_process_that_has_it(tmp_path, monkeypatch):
    seen = []
    run = subprocess.run

    def run_or_note(command, **options):
        if "bench.headlines" not in command:
            return run(command, **options)
        seen.append((command, options))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run_or_note)

    some = [pair for pair in headlines.problems(smoke=True) if pair[1].case.op == "nnls"]
    monkeypatch.setattr(headlines, "problems", lambda smoke, setting=None: iter(some))
    journal = tmp_path / "visit.jsonl"
    words = [str(journal), "--device", "cpu", "--smoke", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["headlines", *words])
    assert headlines.main() == 0
    for (command, options), setting in zip(seen, headlines.SETTINGS, strict=True):
        assert command[-2:] == ["--setting", setting.name]
        assert options["env"].items() >= setting.environment.items()
        assert options["timeout"] <= 30
    assert headlines.main() == 0
    assert len(seen) == len(headlines.SETTINGS)  # each was tried


def test_records_of_a_setting_say_so(tmp_path, monkeypatch):
    journal = tmp_path / "visit.jsonl"
    words = [str(journal), "--device", "cpu", "--smoke", "--seconds", "0.01"]
    for setting in headlines.SETTINGS:
        monkeypatch.setattr(sys, "argv", ["headlines", *words, "--setting", setting.name])
        assert headlines.main() == 0
    names = {record["impl"] for record in read_records([journal])}
    assert names == {f"ours, {setting.name}" for setting in headlines.SETTINGS}
    known = {
        problem_key(case.op, size.name, size.dtype)
        for case, sizes in headlines.HEADLINES
        for size in sizes
    }
    assert all(set(setting.problems) <= known for setting in headlines.SETTINGS)


def test_inputs_of_every_headline_can_be_drawn():
    for what, problem in headlines.problems(smoke=False):
        size, most = problem.size, {"n_features": 256}
        small = {name: min(value, most.get(name, 4)) for name, value in size.shape.items()}
        tiny = Size(size.name, small, size.dtype, size.options)
        inputs = problem.case.inputs(tiny, 0, torch.device("cpu"))
        found, calls = verify(replace(problem, size=tiny), inputs)
        assert "ours" in calls, what
        assert all(record["status"] != "failed" for record in found.values()), what


def test_headlines_are_records_of_one_run_and_go_on(tmp_path, monkeypatch):
    journal = tmp_path / "visit.jsonl"
    some = [pair for pair in headlines.problems(smoke=True) if pair[1].case.op == "nnls"]
    monkeypatch.setattr(headlines, "problems", lambda smoke: iter(some))
    monkeypatch.setattr(headlines, "SETTINGS", ())
    words = [str(journal), "--device", "cpu", "--smoke", "--seconds", "0.01", "--run", "2026-01-02"]
    monkeypatch.setattr(sys, "argv", ["headlines", *words])
    assert headlines.main() == 0
    records = read_records([journal])
    assert [(r["impl"], r["status"]) for r in records] == [
        ("reference", "ok"),
        ("ours", "ok"),
        ("ours", "ok"),
        ("ours, CUDA graph", "skipped"),
    ]
    assert {r["run"] for r in records} == {"2026-01-02"}
    assert {r["ceilings"] for r in records} == {None}
    assert records[0]["rates"]["items_per_s"] > 0
    before = journal.read_text()
    assert headlines.main() == 0
    assert journal.read_text() == before  # everything was tried


# Targets and the table -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "speed", "met"),
    [
        (0.1, 6.0, True),
        (0.13, 7.0, False),
        (0.1, 4.0, False),
        (0.1, None, None),
        (0.5, None, False),  # whatever the reference takes
        (None, None, None),
    ],
)
def test_targets_need_both_the_time_and_the_speed(ms, speed, met):
    assert Target("p", most_ms=0.12, least_speed=5.0).is_met(ms, speed) is met


def test_targets_of_one_kind():
    assert Target("p", most_ms=1.4).is_met(1.3, None) is True
    assert Target("p", most_ms=1.4).is_met(1.5, None) is False
    assert Target("p", least_speed=20.0).is_met(9.0, 21.0) is True


def bench_record(op, size, impl, ms, *, dtype="float32", status="ok", n_iter=None, **others):
    return {
        "suite": "kernels",
        "op": op,
        "size": size,
        "dtype": dtype,
        "impl": impl,
        "status": status,
        "reason": None if status == "ok" else "no such kernel",
        "median_ms": ms,
        "iteration_ms": None if n_iter is None or ms is None else ms / n_iter,
        **others,
    }


@pytest.fixture
def visit():
    """A visit of which every part left something."""
    return VisitLines(
        lines=[
            {"kind": "object", "source": "prebuilt", "notes": [], "device": "NVIDIA H200"},
            {"kind": "begin", "part": "tests", "limit": 150},
            {"kind": "part", "part": "tests", "outcome": "out of time", "seconds": 7, "limit": 9},
            {"kind": "begin", "part": "stages", "limit": 60},
            {"kind": "trying", "part": "parity", "what": "nnls 5"},
            {"kind": "parity", "what": "nnls 5", "outcome": "passed", "message": ""},
            {
                "kind": "sanitizer",
                "tool": "memcheck",
                "outcome": "passed",
                "calls": 9,
                "message": "ERROR SUMMARY: 0",
            },
            bench_record("nnmf_mu", "paper", "reference", 7.0, n_iter=10),
            bench_record("nnmf_mu", "paper", "ours", 1.0, n_iter=10),
            bench_record("nnmf_mu", "paper", "ours, CUDA graph", 0.9, n_iter=10),
            bench_record("nnmf_mu", "paper", "torchnmf", 3.0, n_iter=10),
            bench_record("nnmf_mu", "paper", "CuPy", None, status="skipped"),
            bench_record("nnls", "many rows", "ours", None, status="failed"),
            {"suite": "equality", "status": "ok"},
            {"suite": "equality", "status": "failed"},
            {
                "suite": "stages",
                "paths": {
                    name: {"stages": {"cnn_training": {"median_s": 2.5}}} for name in ("a", "b")
                },
                "attacks": {"cuda": {"baseline": {"differing_decisions": 0.025}}},
            },
            {
                "kind": "experiment",
                "metrics": {"rows": {"Baseline clean": {"accuracy": 0.75}}},
                "timings": {"rows": [{"stage": "cnn_training", "seconds": 2.5}]},
            },
        ],
        tests=Outcomes({"passed": 1, "failed": 1}, [{"test": "t.py::1", "message": "off by 3"}]),
    )


def test_the_table_holds_every_part_and_the_predictions_beside_what_was_measured(visit):
    lines = table(visit).splitlines()

    def line(start):
        return next(text for text in lines if text.startswith(start)).split()

    # problem, predicted, ours, graph, reference, speed, others
    paper = predictions()[0]
    span = f"{paper.low_ms:g}-{paper.high_ms:g}"
    assert line("nnmf_mu paper")[3:8] == [span, "0.1000", "0.0900", "0.7000", "7.00x"]
    assert line("nnmf_mu paper")[8:] == ["torchnmf", "3.00x"]
    compared = next(text for text in lines if f"{paper.ms:g} ({span})" in text).split()
    assert compared[-3:] == ["0.0900", f"{0.09 / paper.ms:.2f}", paper.binds] or "!" in compared
    assert "measured over predicted, median by bound: issue" in "\n".join(lines)
    assert "too few measurements to say which assumption was wrong" in "\n".join(lines)
    text = "\n".join(lines)
    for part in (
        "NVIDIA H200",
        "out of time",
        "has not ended",
        "parity with the CPU: 1 of 1 calls",
        "memcheck",
        "tests: 1 passed, 1 failed",
        "failed: t.py::1: off by 3",
        "failed: no such kernel",
        "equal to scikit-learn: 1 of 2",
        "decisions unlike the reference's, cuda: baseline 2.5%",
        "accuracy: Baseline clean 0.7500",
        "seconds: cnn_training 2.50",
    ):
        assert part in text, part
    target = next(text for text in lines if "MET" in text)
    assert target.split()[:5] == ["nnmf_mu", "paper", "float32", "MET", "0.1000"]
    found = {t.problem: (ms, speed) for t, ms, speed in measured_targets(visit)}
    assert found["nnmf_mu paper float32"] == (0.1, pytest.approx(7.0))


def test_a_visit_that_did_nothing_has_a_table(tmp_path):
    shown = table(read_visit(tmp_path / "none.jsonl"))
    assert "no extension yet" in shown
    assert shown.count("not measured") == len(TARGETS)


def test_a_table_needs_no_tabulate(visit, monkeypatch):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    paper = predictions()[0]
    assert f"{paper.low_ms:g}-{paper.high_ms:g}  0.1000" in table(visit)


def test_records_of_a_visit_can_be_read_with_the_benchmarks(tmp_path):
    journal = Journal(tmp_path / "visit.jsonl")
    journal.add("visit", visit="first")
    run_kernel_benchmarks(cases=["nnls"], smoke=True, json_path=journal.path)
    assert {r["op"] for r in read_records([journal.path])} == {"nnls"}
    key = problem_key("nnls", "smoke", "float32")
    assert "ours" in read_visit(journal.path).by_problem()[key]


def test_problems_of_the_predictions_have_those_sizes():
    (mu,) = get_cases(["nnmf_mu"])
    sizes = {problem_key("nnmf_mu", s.name, s.dtype): s for s in mu.cuda_sizes}
    paper = sizes["nnmf_mu paper uint8"].shape
    assert (paper["n_samples"], paper["n_features"], paper["n_components"]) == (1500, 16384, 15)
    assert isinstance(sizes["nnmf_mu problems float32"], Size)


# compute-sanitizer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (0, "1 nnmf_mu\n2 nnls\n========= ERROR SUMMARY: 0 errors\n", "passed"),
        (99, "1 nnmf_mu\n========= ERROR SUMMARY: 3 errors\n", "failed"),
        (1, "1 nnmf_mu\n========= ERROR SUMMARY: 3 errors\n", "failed"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed"),
        (0, "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n", "failed"),
        (None, "1 nnmf_mu\n", "did not end"),
        (1, "Traceback\nImportError: torch\n", "broken"),
    ],
)
def test_outcome_of_a_tool(code, text, outcome):
    found = sanitize.outcome("memcheck", code, text)
    assert found["outcome"] == outcome
    assert found["calls"] == text.count("1 nnmf_mu") + text.count("2 nnls")
    if "ImportError" in text:
        assert found["message"] == "ImportError: torch"


def test_tools_run_at_once_are_recorded_as_they_end_and_ended_in_time(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        '#!/bin/bash\nif [[ $2 == memcheck ]]; then echo "1 nnmf_mu"\n'
        'echo "========= ERROR SUMMARY: 0 errors"\nelse sleep 777; fi\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    journal = Journal(tmp_path / "visit.jsonl")
    begin = time.monotonic()
    found = sanitize.run_tools(["racecheck", "memcheck"], journal, seconds=3, device="cpu")
    assert time.monotonic() - begin < 300
    assert [(f["tool"], f["outcome"]) for f in found] == [
        ("memcheck", "passed"),
        ("racecheck", "did not end"),
    ]
    assert [line["tool"] for line in read_lines([journal.path])] == ["memcheck", "racecheck"]
    assert "1 nnmf_mu" in (tmp_path / "visit-memcheck.txt").read_text()


def test_a_missing_sanitizer_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    journal = Journal(tmp_path / "visit.jsonl")
    (found,) = sanitize.run_tools(["memcheck"], journal, seconds=1, device="cpu")
    assert found["outcome"] == "skipped"
    assert json.loads(journal.path.read_text())["outcome"] == "skipped"


def test_every_op_is_called_under_the_sanitizer(capsys):
    assert sanitize.run_calls("cpu", 18) == 0
    printed = capsys.readouterr().out
    for op in ("nnmf_mu", "nnmf_sparse_mu", "nnmf_weighted_mu", "nnls", "project", "philox_normal"):
        assert f" {op} " in printed
    assert "18 calls, 0 with results that are not finite" in printed


def test_what_is_not_finite_is_named(monkeypatch, capsys):
    call = next(op_calls())
    broken = replace(call, function=lambda **_: (torch.tensor(float("nan")),))
    monkeypatch.setattr("bench.op_calls.op_calls", lambda: iter([broken]))
    assert sanitize.run_calls("cpu") == 1
    assert call.name in capsys.readouterr().out
