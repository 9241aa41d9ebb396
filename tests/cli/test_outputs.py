"""What a command prints and writes where names, terminals and disks are not as one would wish."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.cli.main import main
from nnmf_cuda.cli.options import harmless
from nnmf_cuda.pipeline.stages import run_stages
from nnmf_cuda.report.figures import plain
from tests.processes import exit_code, fork
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]

NAMES = ("x$_$", "_no\x1b[2J\u2028", "a\\frac{b^^$\n" + "long" * 40, "\u4e2d \udcff & <b>")
"""Names of classes that matplotlib, HTML, terminals or encodings would take for something else."""


@pytest.fixture(scope="module")
def odd_npz(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd") / "odd.npz"
    with np.load(small_npz) as given:
        arrays = dict(given)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (64, 32, 32), dtype=np.uint8)
    labels = np.array(NAMES)[np.arange(64) % 4]
    split = np.repeat(["train", "valid", "test"], [32, 16, 16])
    arrays = {"images": images, "labels": labels, "split": split}
    np.savez(path, **arrays)
    return path


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_names_of_classes_are_text_everywhere(
    odd_npz: Path, tmp_path: Path, capsys: Printed, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["run", f"--data={odd_npz}", f"--out={out}", "--verbose", *SMALL]) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err.replace("\x1b[A", "")  # which tqdm prints
    assert r"x$_$" in printed.err
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page.partition("<td>")[0].partition('id="data"')[2]
    assert r"\xff &amp; &lt;b&gt;" in page
    assert "\x1b" not in page
    assert "could not be drawn" not in page + caplog.text
    described = json.loads((out / "model" / "model.json").read_text())
    assert sorted(described["label_names"]) == sorted(NAMES)  # kept as they are

    assert main(["predict", str(odd_npz), f"--model={out}"]) == 0
    predicted = capsys.readouterr().out
    assert len(predicted.splitlines()) == 1 + 64
    assert predicted.isprintable() or set(harmless(predicted)) == set(predicted)


def test_plain_names_have_no_formula_and_no_hidden_legend() -> None:
    from matplotlib import cbook

    for name in (*NAMES, "$$", r"\$a$", "$", r"a\$", "_"):
        shown = plain(name)
        assert not cbook.is_math_text(shown)
        assert not shown.startswith("_")
        assert len(shown) <= 60
        assert shown.isprintable()
    assert plain("no tumor") == "no tumor"
    assert plain(r"\$a$").replace(r"\$", "$") == r"\$a$"


class Terminal(io.TextIOWrapper):
    """A standard output in an encoding of which a terminal might be."""

    def __init__(self, encoding: str) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8", "koi8-r"])
def test_tables_are_printed_in_any_encoding(
    encoding: str, odd_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, Terminal(encoding))
    stdout, stderr = sys.stdout, sys.stderr
    assert isinstance(stdout, Terminal)
    assert isinstance(stderr, Terminal)
    code = main(["audit", f"--data={odd_npz}", f"--json={tmp_path / 'found.json'}"])
    stdout.flush()
    stderr.flush()
    assert code == 0, stderr.bytes.getvalue()
    assert b"odd.npz" in stdout.bytes.getvalue()
    assert b"?" not in stdout.bytes.getvalue().replace(b"??", b"")

    print("\u4e2d 0.5 \u00b1 0.1 \u2013 \udcff", file=stdout, flush=True)
    line = stdout.bytes.getvalue().splitlines()[-1].decode(encoding)
    wanted = {
        "latin-1": "\\u4e2d 0.5 \u00b1 0.1 - \\udcff",
        "ascii": "\\u4e2d 0.5 +- 0.1 - \\udcff",
        "cp1252": "\\u4e2d 0.5 \u00b1 0.1 \u2013 \\udcff",
        "utf-8": "\u4e2d 0.5 \u00b1 0.1 \u2013 \\udcff",
        "koi8-r": "\\u4e2d 0.5 +- 0.1 - \\udcff",
    }
    assert line == wanted[encoding]


def test_a_whole_run_ends_well_in_latin_1(small_npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nnmf_cuda.cli", "run", f"--data={small_npz}", f"--out={out}"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *SMALL], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"attacked" in done.stdout


def test_what_standard_output_does_not_take_is_no_success(small_npz: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nnmf_cuda.cli", "audit", f"--data={small_npz}"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == ("nnmf-cuda: error: [Errno 28] No space left on device")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: 1\n".encode("utf-16"), "is not text in UTF-8 (byte 0 is 0xff): save it in that"),
        ("seed: 1\n".encode("utf-32-be"), "config"),
        ('out: "\u00e4"\n'.encode("latin-1"), "is not text in UTF-8 (byte 6 is 0xe4)"),
        (b"nnmf: &a\n  max_iter: *a\n", "has an alias (*)"),
        (b"a: " + b"[" * 4000, "depth"),
        (b"nnmf: 3\n", "a group of settings, as nnmf is, must be a mapping"),
        (b"seed: 1\0\n", "control characters are not allowed"),
    ],
)
def test_a_config_that_is_no_text_is_one_line(
    content: bytes, said: str, tmp_path: Path, capsys: Printed
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert main(["run", f"--config={path}", f"--out={tmp_path / 'out'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_config_with_a_byte_order_mark_and_crlf_is_read(tmp_path: Path, capsys: Printed) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfpreset: paper\r\nseed: -1\r\n")
    assert main(["run", f"--config={path}", f"--out={tmp_path / 'out'}"]) == 2
    assert "--seed must lie in" in capsys.readouterr().err


def broken(*_args: object, **_kwargs: object) -> Any:
    raise ArithmeticError("deliberate \x1b")


def test_a_figure_that_cannot_be_drawn_is_said_in_its_place(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("roc", "class_means"):
        monkeypatch.setattr(f"nnmf_cuda.report.figures.{name}_figure", broken)
    out = tmp_path / "out"
    assert main(["run", f"--data={small_npz}", f"--out={out}", *SMALL]) == 0
    page = (out / "report.html").read_text()
    assert page.count(r"could not be drawn (ArithmeticError: deliberate \x1b)") == 2
    drawn = {path.stem for path in (out / "figures").glob("*.png")}
    assert len(drawn) == 7
    assert not drawn & {"roc", "class_means"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ArithmeticError("x")])
def test_a_run_without_a_report_is_kept_and_its_tables_are_told(
    error: Exception, small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Printed,
) -> None:  # fmt: skip
    def fail(home: Path, _report: object) -> None:
        (home / "figures").mkdir()
        (home / "report.html").write_text("half")
        raise error

    monkeypatch.setattr("nnmf_cuda.run.experiment.write_report", fail)
    out = tmp_path / "out"
    assert main(["run", f"--data={small_npz}", f"--out={out}", *SMALL]) == 2
    printed = capsys.readouterr()
    assert f"--out {out} holds the results, but no report (" in printed.err.splitlines()[-1]
    assert "Robust_Defended" in printed.out
    written = names_below(out)
    assert "metrics.json" in written
    assert "timings.json" in written
    assert "model/model.safetensors" in written
    assert not {"report.html", "figures"} & set(written)
    assert main(["predict", str(small_npz), f"--model={out}"]) == 0


@pytest.mark.parametrize("at", ["save_features", "_save_json"])
def test_a_full_disk_leaves_the_tables_on_the_terminal(
    at: str, small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"nnmf_cuda.run.experiment.{at}", full)
    out = tmp_path / "out"
    assert main(["run", f"--data={small_npz}", f"--out={out}", *SMALL]) == 2
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert f"--out {out}: the results, which are above, could not be written (No space" in line
    assert "Robust_Defended" in printed.out
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_leaves_nothing(
    number: signal.Signals, tmp_path: Path, small_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", tmp_path / "said.txt"
    reached, reach = os.pipe()

    def stages(*given: object, **settings: object) -> object:
        # Not before: on a busy machine it takes long until a signal is heeded.
        os.write(reach, b"x")
        return run_stages(*given, **settings)  # type: ignore[arg-type]

    command = ["run", f"--data={small_npz}", f"--out={out}", *SMALL, "--classifier.epochs=100000"]

    def run() -> int:
        signal.signal(number, signal.SIG_DFL)  # whoever started the tests may have it ignored
        return main(command)

    with monkeypatch.context() as told:
        told.setattr("nnmf_cuda.run.experiment.run_stages", stages)
        process = fork(run, said=said)
    os.close(reach)
    assert os.read(reached, 1) == b"x", said.read_text()
    os.close(reached)
    assert list(out.glob(".partial-*"))
    time.sleep(0.3)
    os.kill(process, number)
    assert exit_code(process) == 128 + number, said.read_text()
    assert not out.exists()


def test_a_signal_that_is_ignored_stays_so(capsys: Printed) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        main(["info"])
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
