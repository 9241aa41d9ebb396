"""The sections on robustness: a page of their own, or parts of the run's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES, Metrics
from nnmf_cuda.evaluation.robustness import (
    ADVERSARIALLY_TRAINED,
    PAPER_PROTOCOL,
    About,
    Curve,
    Curves,
    RobustnessReport,
)
from nnmf_cuda.report.details import details
from nnmf_cuda.report.pages import Picture, environment
from nnmf_cuda.report.robustness_figures import (
    Panel,
    certificate_figure,
    curves_figure,
    perturbations_figure,
)
from nnmf_cuda.report.tables import METRIC_TITLES, Line, calibration_note, comparison_note

COUNTS = {"fresh": "mean of fresh decisions", "majority": "majority of 20", "all": "all 20"}
"""The three ways in which an attack's success is counted, by their names in `AttackLine`."""

_GROUPS = {
    "patient": "over whole patients",
    "series": "over whole slice series",
    "image": "images taken as independent",
}


@dataclass(frozen=True)
class Tile:
    """A figure in large type: value, what it is, and a line below."""

    value: str
    title: str
    note: str = ""
    is_main: bool = False


def robustness_page(report: RobustnessReport, *, home: str | Path | None = None) -> str:
    """Return a page of HTML that needs nothing else; it names the run's directory at its top."""
    page: str = (
        environment()
        .get_template("page.html")
        .render(
            title="How robust the classifier is",
            lead=about_text(report.about, home),
            synthetic=report.about.synthetic,
            section=Markup().join(robustness_parts(report).values()),
        )
    )
    return page


def robustness_parts(
    report: RobustnessReport, *, rows: Mapping[str, Metrics] | None = None
) -> dict[str, Markup]:
    """Return HTML sections "robustness", "attack_curves" (where there are any) and "points".

    They are for a page that has the report's style; `rows`, the metric table of the paper's
    protocol, is for reading beside the worst points.
    """
    env, pictures = environment(), _pictures(report)
    names = ["robustness", "attack_curves", "points"]
    if not pictures:
        names.remove("attack_curves")
    is_one, low, high = is_one_count(report), report.verdict.low, report.verdict.high
    values = {
        "report": report,
        "counts": {"majority": "right"} if is_one else COUNTS,
        "details": details,
        "interval": f"95 % interval {low:.3f}–{high:.3f}, {_GROUPS[report.verdict.drawn]}",
        "metric_titles": tuple(METRIC_TITLES.values()),
        "pictures": pictures,
        "statistic": _statistic_text(report),
        "tiles": tiles(report),
        "worst_point_lines": _worst_point_lines(report, rows),
        "worst_point_notes": _worst_point_notes(report),
        "worst_title": _worst_title(report),
    }
    return {name: Markup(env.get_template(f"{name}.html").render(values)) for name in names}


def is_one_count(report: RobustnessReport) -> bool:
    """Whether the three ways to count agree on every attack, as they do without noise."""
    return all(line.fresh == line.majority == line.all for line in report.defence.attacks)


def about_text(about: About, home: str | Path | None) -> str:
    """Say of what, when and how something was made, as far as that is known."""
    facts = {
        "Data": about.source,
        "Run": home,
        "Preset": about.preset,
        "Defence": about.defence,
        "Device": about.device,
        "Threads": about.threads,
        "Seed": about.run_seed,
        "Date": about.date,
    }
    return " · ".join(f"{name}: {fact}" for name, fact in facts.items() if fact is not None)


def tiles(report: RobustnessReport) -> list[Tile]:
    """Return the large figures, all counted in one way, the most important first."""
    verdict = report.verdict
    worst, clean = report.defence.worst_case_accuracy, report.defence.clean_accuracy
    interval = f"95 %: {verdict.low:.3f}–{verdict.high:.3f}"
    found = [Tile(f"{worst:.3f}", _worst_title(report), interval, True)]
    headline = report.headline
    if headline.proven is not None:
        title = "proven" if headline.undecided is not None else "certified"
        found.append(Tile(f"{headline.proven:.3f}", title, headline.proof))
    if headline.ceiling is not None:
        found.append(Tile(f"{headline.ceiling:.3f}", "ceiling", "of any classifier"))
    if report.is_worst_case:
        paper = report.paper_protocol.robust_defended_by_majority
        found.append(Tile(f"{paper:.3f}", PAPER_PROTOCOL, "one attack of those in the worst case"))
    if ADVERSARIALLY_TRAINED in report.others:
        worst = report.others[ADVERSARIALLY_TRAINED].worst_case_accuracy
        found.append(
            Tile(f"{worst:.3f}", f"{ADVERSARIALLY_TRAINED}, worst case", "same size, no purifier")
        )
    constant = f"{verdict.constant:.3f}"
    found.append(Tile(constant, "constant answer", "always the most frequent class"))
    found.append(Tile(f"{clean:.3f}", "clean", "not attacked"))
    return found


def _worst_title(report: RobustnessReport) -> str:
    if report.is_worst_case:
        return "worst case over all attacks"
    return "the paper's protocol only, no worst case"


def _statistic_text(report: RobustnessReport) -> str:
    """Say how the large figures are counted."""
    if not report.is_random:
        return (
            "The defence has no noise: one answer a sample, right or wrong, in every figure here."
        )
    text = "Large figures: the share of samples that the majority of 20 fresh decisions gets right"
    rounds = report.rounds
    if rounds.n < 2:
        return f"{text}."
    return (
        f"{text}; the worst case is the mean of {rounds.n} such rounds, which lie between"
        f" {rounds.low:.4f} and {rounds.high:.4f}."
    )


def _pictures(report: RobustnessReport) -> list[Picture]:
    """Return what there is to draw: curves, certificates, attacked images."""
    pictures = []
    panels = _panels(report)
    if panels:
        pictures.append(_curves_picture(report, panels))
    if report.certificates:
        draw = partial(
            certificate_figure,
            {name: found.certificate for name, found in report.certificates.items()},
            attack_eps=report.threat_model.attack_eps,
            norm=report.threat_model.norm,
        )
        certified = " ".join(f"{n}: {found.certifies}" for n, found in report.certificates.items())
        caption = (
            "Share of samples that are right and certified to stay so within the radius, by"
            " randomised smoothing: no attack on the certified classifier can go below its line."
            f" {certified}"
        )
        pictures.append(Picture.of(draw, "Certified accuracy against the radius", caption))
    pixels = report.pixels
    if pixels is not None and len(pixels.examples.clean):
        eps_255 = pixels.eps_255[-1]
        caption = (
            f"The first samples that the attack on pixels broke at {eps_255:g}/255, of those that"
            " the defence had named rightly: the image, what was added to it, and what came out."
            " The model under attack is the defended one, from image to answer. Above: true class"
            " → answer under attack."
        )
        draw = partial(perturbations_figure, pixels.examples, eps_255=eps_255)
        pictures.append(Picture.of(draw, "Images, perturbations and attacked images", caption))
    return pictures


def _panels(report: RobustnessReport) -> list[Panel]:
    panels = [] if report.curves is None else _attack_panels(report, report.curves)
    if report.pixels is not None:
        lines = {name: c.robust_accuracy for name, c in report.pixels.chains.items()}
        if report.pixels.certified is not None:
            lines["certified"] = report.pixels.certified.robust_accuracy
        panels.append(Panel("Pixels", "eps, 1/255", report.pixels.eps_255, lines))
    return panels


def _attack_panels(report: RobustnessReport, curves: Curves) -> list[Panel]:
    def panel(title: str, xlabel: str, curve: Curve, mark: float | None = None) -> Panel:
        return Panel(title, xlabel, curve.values, {"defended": curve.robust_accuracy}, mark)

    panels = [
        panel("Size of the ball", "eps", curves.eps, report.threat_model.attack_eps),
        panel("Steps", "steps", curves.steps),
        panel("Restarts", "random starts", curves.restarts),
    ]
    if curves.draws is not None:
        panels.append(panel("Draws averaged", "draws averaged a step (EOT)", curves.draws))
    return panels


def _curves_picture(report: RobustnessReport, panels: list[Panel]) -> Picture:
    attack = "APGD on the margin, one setting varied at a time"
    draw = partial(curves_figure, panels, constant=report.verdict.constant, attack=attack)
    counted = "by its one answer to each sample"
    if report.is_random:
        counted = "by the majority of 20 fresh decisions"
    caption = (
        "Robust accuracy of the defence under one attack, APGD on the margin, of which each panel"
        f" varies one setting and holds the others; counted {counted}."
    )
    if report.curves is not None and report.curves.draws is not None:
        caption += (
            " It climbs a surrogate that averages many draws, but under draws averaged the defence"
            " itself."
        )
    if report.pixels is not None:
        caption += " In the panel on pixels the same attack moves images, end to end."
    return Picture.of(draw, "Robust accuracy against what an attack spends", caption)


def _worst_point_lines(report: RobustnessReport, paper: Mapping[str, Metrics] | None) -> list[Line]:
    """Return the rows on the worst points, each attacked one above the paper protocol's."""
    if report.worst_points is None:
        return []
    lines = []
    for name in ROW_NAMES:
        lines.append(_line("measured", name, report.worst_points.rows.rows[name]))
        if paper is not None and name.startswith("Robust"):
            lines.append(_line("interval", PAPER_PROTOCOL, paper[name]))
    return lines


def _line(kind: str, label: str, values: Metrics) -> Line:
    return Line(kind, label, tuple(f"{values[metric]:.4f}" for metric in METRIC_NAMES))


def _worst_point_notes(report: RobustnessReport) -> list[str]:
    """Return the comparisons and the calibration on the worst points, as sentences."""
    if report.worst_points is None:
        return []
    found = report.worst_points.uncertainty
    level, is_random = found.level, report.is_random
    return [
        comparison_note(found.clean, "clean", level=level, is_random=is_random),
        comparison_note(found.robust, "robust", level=level, is_random=is_random),
        calibration_note(found.calibration_errors, n_bins=found.n_bins),
    ]
