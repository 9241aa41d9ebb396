"""The examples of docs/consensus.md, in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.cli.main import main

pytest.importorskip("h5py")
PAGE = (Path(__file__).parents[2] / "docs" / "consensus.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ nnmf-cuda (.*)$", PAGE, re.MULTILINE)
FILES = re.findall(r"^\| `(example\.[^`]*)`", PAGE, re.MULTILINE)


def test_the_example_in_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(code, "docs/consensus.md", "exec"), {"__name__": "consensus"})
    lines = capsys.readouterr().out.splitlines()
    stability = [float(value) for value in lines[0].strip("[]").split()]
    # The planted number is the largest that is stable.
    assert stability[2] > 0.9 > stability[3]
    assert lines[1].startswith("(500, 4) (4, 300) 1.00")


def test_the_commands_run_one_after_the_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.consensus.prepared import planted_cells

    monkeypatch.chdir(tmp_path)
    planted_cells(rng, k=4).to_csv("counts.txt", sep="\t")
    assert [command.split()[1] for command in COMMANDS] == [
        "prepare",
        "factorize",
        "combine",
        "k_selection_plot",
        "consensus",
        "consensus",
    ]
    for command in COMMANDS:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "30 runs written" in printed
    assert "k=4: 40 of 40 spectra clustered" in printed
    written = re.findall(r"^wrote (.*)$", printed, re.MULTILINE)
    assert len(written) == 2 + 3 + 2 + 2 * 3 + 1
    assert all(Path(path).exists() for path in written)
    assert len(FILES) == 6
    for name in FILES:
        assert Path("example", name).exists()
