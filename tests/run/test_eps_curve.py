"""The curve against the radius: a defence for each, what is written, what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnmf_cuda.cli.main import main
from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.report.eps_curve import EpsCurve, EpsPoint
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]


def point(eps: float, attacked: float, proven: float | None, collapsed: bool = False) -> EpsPoint:
    undecided = None if proven is None else attacked - proven
    proof = "random answers have no proof" if proven is None else "branch and bound"
    line = Headline(attacked, 0.9, 0.5, 0.95, proven=proven, undecided=undecided, proof=proof)
    return EpsPoint(eps, line, collapsed, 12.0)


def test_table_says_up_to_where_something_is_gained() -> None:
    points = [point(0.02, 0.8, 0.75), point(0.05, 0.6, 0.6), point(0.1, 0.5, 0.5, collapsed=True)]
    curve = EpsCurve(points, "Linf", "robust", "scans.npz", 3)
    lines = curve.text().splitlines()
    assert lines[0].split()[:4] == ["eps", "clean", "ceiling", "attacked"]
    assert lines[2].split() == [
        *("0.02", "0.900", "0.950", "0.800", "0.750", "0.050", "0.500", "12")
    ]
    assert lines[4].endswith("one answer")
    assert lines[-1] == "Attacked is 0.10 above the constant answer up to Linf eps 0.05."
    content = curve.as_dict()
    assert content["worth_having"] == 0.05
    assert [found["proven_accuracy"] for found in content["points"]] == [0.75, 0.6, 0.5]
    nothing = EpsCurve([point(0.1, 0.5, None)], "L2", "paper", "scans.npz", 3)
    assert "At none of these radii" in nothing.text()
    assert "Proven: none (random answers have no proof)." in nothing.text()
    assert nothing.as_dict()["worth_having"] is None


def test_figure_has_a_line_for_each_share_that_is_there() -> None:
    curve = EpsCurve([point(0.02, 0.8, 0.75), point(0.05, 0.6, None)], "Linf", "x", "y", 0)
    axes = curve.figure().axes[0]
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert list(lines) == ["ceiling", "clean", "attacked", "proven", "constant answer"]
    assert lines["attacked"] == [0.02, 0.05]
    assert lines["proven"] == [0.02]


def test_a_defence_is_trained_at_each_radius(
    small_npz: Path, tmp_path: Path, capsys: Printed
) -> None:
    out = tmp_path / "curve"
    options = [*SMALL, "--defence.epochs=2", f"--data={small_npz}", "--device=cpu"]
    command = ["run", "--preset=trades", *options, "--eps_curve=[0.5, 0.01]", f"--out={out}"]
    assert main(command) == 0
    printed = capsys.readouterr()
    found = json.loads((out / "curve.json").read_text())
    assert [p["eps"] for p in found["points"]] == [0.01, 0.5]
    for p in found["points"]:
        assert p["ceiling"] >= p["proven_accuracy"]
        assert p["worst_case_accuracy"] == pytest.approx(
            p["proven_accuracy"] + p["undecided_accuracy"]
        )
        assert p["line"] in printed.err
    # At 0.5 any two points of the box meet.
    assert found["points"][0]["ceiling"] > found["points"][1]["ceiling"]
    assert found["points"][1]["ceiling"] == found["points"][1]["constant_answer_accuracy"]
    assert (out / "curve.svg").read_text().startswith("<?xml")
    assert "eps  " in printed.out
    assert main(command) == 2
    assert "already holds a run (config.yaml, curve.json, curve.svg)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seeds=2", "--eps_curve is one run of its own kind"),
        ("--evaluation=honest", "--eps_curve is one run of its own kind"),
        ("--eps_curve=[0.0]", "eps_curve"),
    ],
)
def test_what_cannot_be_drawn(option: str, message: str, capsys: Printed) -> None:
    assert main(["run", "--eps_curve=[0.1]", option]) == 2
    assert message in capsys.readouterr().err
