"""Clean, attacked, proven and ceiling against the radius, a defence trained for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.report.figures import BLUE, GREEN, GREY, INK, VERMILION, new_figure, style
from nnmf_cuda.report.tables import plain_table

_NONE = "none"


@dataclass(frozen=True)
class EpsPoint:
    """What a defence that was trained at one radius has there.

    `collapsed` says that each of its trainings ended in one answer for every sample.
    """

    eps: float
    headline: Headline
    collapsed: bool
    seconds: float

    def cells(self) -> list[str]:
        """Return a row of the table."""
        line = self.headline
        shares = (line.clean, line.ceiling, line.attacked, line.proven, line.undecided)
        shown = [_NONE if share is None else f"{share:.3f}" for share in shares]
        note = "one answer" if self.collapsed else ""
        return [f"{self.eps:g}", *shown, f"{line.constant:.3f}", f"{self.seconds:.0f}", note]


@dataclass(frozen=True)
class EpsCurve:
    """The points of one curve, by growing radius, on the same features."""

    points: Sequence[EpsPoint]
    norm: str
    preset: str
    source: str
    seed: int

    @property
    def worth_having(self) -> float | None:
        """The largest radius at which the attacked accuracy is 0.10 above the constant answer."""
        gains = [
            point.eps
            for point in self.points
            if point.headline.attacked >= point.headline.constant + 0.10
        ]
        return max(gains, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `curve.json`."""
        about: Mapping[str, Any] = {
            "preset": self.preset,
            "source": self.source,
            "seed": self.seed,
            "norm": self.norm,
            "worth_having": self.worth_having,
        }
        points = [
            {
                "eps": point.eps,
                **point.headline.as_dict(),
                "collapsed": point.collapsed,
                "seconds": point.seconds,
            }
            for point in self.points
        ]
        return {**about, "points": points}

    def text(self) -> str:
        """Return a table for a terminal, and up to which radius something is gained."""
        header = ("eps", "clean", "ceiling", "attacked", "proven", "undecided", "constant", "s", "")
        table = plain_table(header, [point.cells() for point in self.points])
        gain = "At none of these radii is the attacked accuracy 0.10 above the constant answer."
        if self.worth_having is not None:
            gain = (
                f"Attacked is 0.10 above the constant answer up to {self.norm} eps"
                f" {self.worth_having:g}."
            )
        proof = next((p.headline.proof for p in self.points if p.headline.proven is None), None)
        notes = [gain, *([] if proof is None else [f"Proven: none ({proof})."])]
        return "\n".join([table, "", *notes])

    def figure(self) -> Figure:
        """Draw the curves."""
        figure = new_figure(4.2)
        axes = figure.subplots()
        style(
            axes,
            title=f"A defence ({self.preset}) trained at each radius",
            xlabel=f"eps, {self.norm}",
            ylabel="share of test samples",
        )
        eps = [point.eps for point in self.points]
        lines: dict[str, tuple[str, list[float | None]]] = {
            "ceiling": (GREY, [point.headline.ceiling for point in self.points]),
            "clean": (GREEN, [point.headline.clean for point in self.points]),
            "attacked": (VERMILION, [point.headline.attacked for point in self.points]),
            "proven": (BLUE, [point.headline.proven for point in self.points]),
        }
        for name, (colour, shares) in lines.items():
            there = {x: share for x, share in zip(eps, shares, strict=True) if share is not None}
            if there:
                axes.plot(
                    list(there),
                    list(there.values()),
                    color=colour,
                    marker="s" if name == "proven" else "o",
                    label=name,
                )
        constant = [point.headline.constant for point in self.points]
        axes.plot(eps, constant, color=INK, linestyle="--", linewidth=1.2, label="constant answer")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(frameon=False, ncols=5, loc="lower center", fontsize=9)
        return figure
