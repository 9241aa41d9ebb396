"""The visits of bench/gpu_check.sh: order and limits by a made-up clock, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu_check import VISITS, Part, Settings, Visit, main, run_command, run_visit
from bench.gpu_table import read_visit, table
from bench.journal import DEVICE_LOST, Journal, read_lines

ROOT = Path(__file__).parents[2]


class FakeMachine:
    """Runs nothing, but lets the clock go on, and keeps what it was asked to run."""

    def __init__(self, takes=None, ends=None):
        self.now = 1000.0
        self.takes = takes or {}
        self.ends = {name: list(codes) for name, codes in (ends or {}).items()}
        self.ran = []

    def clock(self):
        return self.now

    def run(self, command, seconds, log):
        name = command[0]
        self.ran.append((name, seconds))
        takes = self.takes.get(name, 10.0)
        self.now += min(takes, seconds)
        if takes > seconds:
            return None
        codes = self.ends.get(name, [])
        return codes.pop(0) if codes else 0


@pytest.fixture
def settings(tmp_path):
    return Settings("cuda", tmp_path / "visit.jsonl", tmp_path / "visit.log")


def named(visit):
    """Return a visit whose commands are the names of its parts."""

    def command_of(part):
        return lambda settings, limit: [part.name]

    return replace(
        visit, parts=tuple(replace(part, command=command_of(part)) for part in visit.parts)
    )


def outcomes(settings):
    return {p["part"]: p["outcome"] for p in read_visit(settings.journal).of_kind("part")}


def visited(visit, settings, machine, *, seconds=None, here=lambda name: True):
    return run_visit(
        named(visit),
        settings,
        seconds=seconds or visit.seconds,
        run=machine.run,
        clock=machine.clock,
        is_here=here,
    )


# Order and limits ------------------------------------------------------------------------------


def test_the_first_visit_begins_with_what_is_worth_most(settings):
    machine = FakeMachine()
    assert VISITS["first"].seconds <= 255
    assert visited(VISITS["first"], settings, machine) == 0
    assert [name for name, _ in machine.ran] == ["object", "parity", "headlines", "sanitizer"]
    limits = dict(machine.ran)
    # With an object that is there, each of them has a minute at least.
    assert min(limits.values()) >= 60
    assert machine.now < 1000 + 255


def test_the_second_visit_does_the_rest(settings):
    machine = FakeMachine(takes=dict.fromkeys(("object",), 5.0))
    assert VISITS["second"].seconds <= 400
    visited(VISITS["second"], settings, machine)
    ran = [name for name, _ in machine.ran]
    assert ran[:2] == ["object", "tests"]
    order = ["tests", "peers nnmf_mu", "extract", "stages", "experiment"]
    assert [name for name in ran if name in order] == order


@pytest.mark.parametrize("visit", list(VISITS))
def test_a_visit_ends_in_time_whatever_its_parts_do(settings, visit):
    for seconds in (30, 100, VISITS[visit].seconds):
        machine = FakeMachine(takes={part.name: 1e6 for part in VISITS[visit].parts})
        patient = replace(
            VISITS[visit],
            parts=tuple(replace(part, essential=False) for part in VISITS[visit].parts),
        )
        assert visited(patient, settings, machine, seconds=seconds) == 1
        assert machine.now - 1000 <= seconds
        known = outcomes(settings)
        assert set(known) == {part.name for part in patient.parts}
        assert set(known.values()) <= {"out of time", "no time left"}
        settings.journal.unlink()


def test_a_build_takes_from_the_later_parts_not_from_the_earlier(settings):
    machine = FakeMachine(takes={"object": 150.0, "parity": 40.0, "headlines": 50.0})
    visited(VISITS["first"], settings, machine)
    assert outcomes(settings) == {
        "object": "ok",
        "parity": "ok",
        "headlines": "ok",
        "sanitizer": "ok",
    }
    limits = dict(machine.ran)
    assert limits["parity"] == 70
    assert limits["sanitizer"] < 15


def test_without_an_object_there_is_a_record_and_nothing_else(settings):
    machine = FakeMachine(ends={"object": [1]})
    assert visited(VISITS["first"], settings, machine) == 1
    assert outcomes(settings) == {"object": "failed (1)"}


def test_a_part_that_fails_takes_no_other_with_it(settings):
    machine = FakeMachine(ends={"tests": [3]})
    assert visited(VISITS["second"], settings, machine) == 1
    known = outcomes(settings)
    assert known.pop("tests") == "failed (3)"
    assert set(known.values()) == {"ok"}


def test_a_part_goes_on_after_what_it_died_of(settings):
    ends = {"parity": [-signal.SIGSEGV, DEVICE_LOST, -signal.SIGALRM, 1], "sanitizer": [-9, 0]}
    machine = FakeMachine(ends=ends)
    assert visited(VISITS["first"], settings, machine) == 1
    ran = [name for name, _ in machine.ran]
    assert ran.count("parity") == 4
    assert ran.count("sanitizer") == 1
    known = outcomes(settings)
    assert known["parity"] == "failed (1)"
    assert known["headlines"] == "ok"
    assert known["sanitizer"] == "failed (-9)"


def test_death_counts_although_the_next_process_ends_well(settings):
    machine = FakeMachine(ends={"headlines": [-signal.SIGSEGV, 0]})
    assert visited(VISITS["first"], settings, machine) == 1
    assert outcomes(settings)["headlines"] == "failed (-11)"


def test_what_lacks_a_module_is_left_out(settings):
    machine = FakeMachine()
    here = {"pytest", "sklearn", "PIL"}
    assert visited(VISITS["second"], settings, machine, here=here.__contains__) == 0
    known = outcomes(settings)
    assert known["experiment"].startswith("left out: no jsonargparse, safetensors")
    assert known["stages"].startswith("left out: no pyautoattack")
    assert known["tests"] == "ok"


def test_every_part_has_a_command_on_either_device(tmp_path):
    for device in ("cuda", "cpu"):
        settings = Settings(device, tmp_path / "a.jsonl", tmp_path / "a.log", "now", ["--seed=1"])
        for visit in VISITS.values():
            for part in visit.parts:
                command = part.command(settings, 30)
                assert command[0] == sys.executable
                assert command[1] in ("-m", "-c")
                if command[1] == "-c":
                    compile(command[2], part.name, "exec")
                else:
                    assert (ROOT / f"{command[2].replace('.', '/')}.py").exists()
    (experiment,) = (p for p in VISITS["second"].parts if p.name == "experiment")
    assert "--seed=1" in experiment.command(settings, 30)[2]


# What is on disk -------------------------------------------------------------------------------


def python(code):
    return lambda settings, limit: [sys.executable, "-c", code.format(journal=settings.journal)]


ADDS = "from bench.journal import Journal; Journal('{journal}').add('parity', what='w')"
DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from tests.bench.test_gpu_check import three_parts
from bench.gpu_check import Settings, run_command, run_visit
folder = Path({folder!r})
settings = Settings("cpu", folder / "visit.jsonl", folder / "visit.log")
run_visit(three_parts(), settings, seconds=120, run=run_command)
"""


def three_parts():
    """Return a visit whose second part writes half of its results and then waits."""
    waits = ADDS + "; import os, time; Journal('{journal}').add('pid', pid=os.getpid())"
    return Visit(
        120,
        (
            Part("one", 60, python(ADDS)),
            Part("two", 60, python(waits + "; time.sleep(100)")),
            Part("three", 60, python(ADDS)),
        ),
    )


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_kill_leaves_everything_that_was_known(tmp_path):
    journal = tmp_path / "visit.jsonl"
    driver = DRIVER.format(root=str(ROOT), tests=str(ROOT), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT)
    try:
        wait_for(lambda: any(r["kind"] == "pid" for r in read_lines([journal])))
    finally:
        process.kill()  # no handler runs
        process.wait()
    lines = read_lines([journal])
    kinds = [line["kind"] for line in lines]
    assert kinds == ["begin", "parity", "part", "begin", "parity", "pid"]
    assert lines[2]["part"] == "one"
    assert lines[2]["outcome"] == "ok"
    # The table of what had ended lies beside it, and can be made again with what had begun.
    assert "one" in (tmp_path / "visit.txt").read_text()
    shown = table(read_visit(journal))
    assert "has not ended" in next(line for line in shown.splitlines() if line.startswith("two"))
    if sys.platform == "linux":  # what it had started went with it
        child = Path("/proc", str(lines[-1]["pid"]), "stat")
        wait_for(lambda: not child.exists() or child.read_text().split()[2] == "Z", seconds=10)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    journal = Journal(tmp_path / "new" / "visit.jsonl")
    journal.add("part", part="one", outcome="ok", seconds=1, limit=2)
    with journal.path.open("a") as file:
        file.write('{"kind": "part", "part": "tw')
    assert [line["part"] for line in read_lines([journal.path])] == ["one"]
    assert "one" in table(read_visit(journal.path))


def test_what_is_tried_is_known_to_the_next_process(tmp_path):
    code = (
        "from bench.journal import Journal\n"
        f"journal = Journal({str(tmp_path / 'visit.jsonl')!r})\n"
        "with journal.trying('parity', 'hangs', seconds=1):\n"
        "    import time; time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50)
    assert done.returncode == -signal.SIGALRM
    assert Journal(tmp_path / "visit.jsonl").tried("parity") == {"hangs"}
    assert Journal(tmp_path / "visit.jsonl").tried("headlines") == set()
    assert Journal(tmp_path / "none.jsonl").tried("parity") == set()


def test_a_command_is_ended_with_what_it_has_started(tmp_path):
    code = "import subprocess, time; subprocess.Popen(['sleep', '77']); print('begun', flush=True)"
    log = tmp_path / "log"
    begin = time.monotonic()
    slow = [sys.executable, "-c", code + "; time.sleep(60)"]
    assert run_command(slow, 5, log) is None
    assert time.monotonic() - begin < 40
    assert "begun" in log.read_text()
    assert run_command([sys.executable, "-c", "raise SystemExit(3)"], 60, log) == 3
    assert "raise SystemExit(3)" in log.read_text()


def test_a_table_can_be_asked_for(settings, capsys):
    visited(VISITS["first"], settings, FakeMachine())
    capsys.readouterr()
    assert main(["table", str(settings.journal)]) == 0
    printed = capsys.readouterr().out
    assert "sanitizer" in printed
    assert printed.strip() == settings.journal.with_suffix(".txt").read_text().strip()
    with pytest.raises(SystemExit):
        main(["table"])


def test_the_script_parses_and_hands_its_words_on(tmp_path):
    for file in (ROOT / "bench").glob("*.sh"):
        subprocess.run(["bash", "-n", str(file)], check=True)
    folder = tmp_path / "bin"
    folder.mkdir()
    stub = folder / "python3"
    stub.write_text('#!/bin/bash\necho "$@"; echo "$PYTHONPATH"\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu_check.sh"), "second", "--on-cpu", "--seed", "1"],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "NNMF_CUDA_WHEELS": "none"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    words, path = done.stdout.splitlines()
    assert words == "-m bench.gpu_check second --on-cpu --seed 1"
    assert path.split(":")[0] == str(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("visit", list(VISITS))
def test_rehearsal(visit, tmp_path):
    """The parts themselves, tiny and on the CPU."""
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu_check.sh"), visit, "--on-cpu"],
        env={**os.environ, "OUT": str(tmp_path), "GPU_CHECK_SECONDS": "900"},
        capture_output=True,
        text=True,
    )
    (journal,) = tmp_path.glob("gpu-check-*T??????.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_visit(journal)
    assert {p["outcome"] for p in found.of_kind("part")} == {"ok"}
    assert json.loads(journal.read_text().splitlines()[0])["visit"] == visit
    if visit == "first":
        assert {line["outcome"] for line in found.of_kind("parity")} == {"passed"}
        assert {r["impl"] for r in found.of_suite("kernels")} >= {"ours", "reference"}
    else:
        assert found.tests.counts["passed"] > 0
        assert found.of_kind("experiment")
