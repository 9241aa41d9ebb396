"""The page of a comparison of systems, and its tables for a terminal and for docs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from markupsafe import Markup

from nnmf_cuda.evaluation import METRIC_NAMES, Interval
from nnmf_cuda.evaluation.compared import (
    GRADIENTS,
    RANDOM_LABELS,
    Compared,
    Measured,
    RandomLabels,
    SystemFacts,
    Transfer,
)
from nnmf_cuda.report.comparison_figures import curves_figure, transfer_figure
from nnmf_cuda.report.pages import Picture, environment
from nnmf_cuda.report.repeats import OWN_SPLIT, Spread
from nnmf_cuda.report.robustness import Tile
from nnmf_cuda.report.tables import METRIC_TITLES, NONE, plain_table

_WIDTH = 100
_SYSTEM = "system"

NOT_SAID = (
    "Small networks from scratch, on the processor: no weights that others have trained, no search"
    " of settings, nothing larger. What an author reports with a large pre-trained network on other"
    " images is another thing.",
    "The figures of authors and of the paper are theirs, on their data, and no result of this"
    " program.",
    "Each system is built as the paper describes it; where its authors did something else, that"
    " stands beside it.",
    "A robust accuracy is what these attacks have left: a stronger one may leave less. Of a system"
    " that has no gradient it is the weakest kind of evidence; compare what the points leave that"
    " were found against others.",
    "Intervals hold the chance of the test images, not that of the training (--seeds), and are too"
    " narrow where few patients or series are drawn.",
)
"""What a reader must know before comparing rows."""

_OF_SEVERAL_SEEDS = (
    "Figures with ± are mean and standard deviation over seeds. Of the first seed alone are the 95"
    " % intervals, the large figures, the pictures, and which attack broke what."
)


@dataclass(frozen=True)
class TableRow:
    """A row of the main table: a system on a split; cells, why it failed, or both from seeds."""

    facts: SystemFacts
    cells: tuple[str, ...] = ()
    failure: str = ""


def main_header(found: Compared) -> tuple[str, ...]:
    """Return the titles of the main table's columns."""
    return (
        *("clean", "95 %", "bal. acc", "ROC-AUC"),
        *_radii(found),
        *("attacked by", "numbers learned", "training s", "ms/image", "proof"),
    )


def _radii(found: Compared) -> tuple[str, ...]:
    robust = [f"{eps:g}/255" for eps in found.eps_255]
    return (*robust, *(f"{name}, others too" for name in robust[-1:]))


def main_rows(found: Compared, split: str) -> list[TableRow]:
    """Return a row for each system on a split, in the table's order."""
    rows = []
    for facts in found.systems:
        runs = found.of(facts.name, split)
        failed = [f for f in found.failed if (f.system, f.split) == (facts.name, split)]
        # The mean of a row is over the seeds that did not fail: those that did are said.
        failure = "; ".join(f"seed {one.seed}: {one.reason}" for one in failed) if runs else ""
        if runs:
            rows.append(TableRow(facts, _cells(found, facts, runs), failure))
        elif failed:
            rows.append(TableRow(facts, failure=failed[-1].reason))
    return rows


def _cells(found: Compared, facts: SystemFacts, runs: Sequence[Measured]) -> tuple[str, ...]:
    first = runs[0]
    metrics = [_mean(runs, _metric(name)) for name in ("accuracy", "balanced_accuracy", "roc_auc")]
    robust = [_mean(runs, _left(i)) for i in range(1, len(first.robust.eps_255))]
    worst = [
        matrix.worst[facts.name].estimate
        for matrix in found.transfer
        if matrix.split == first.split and facts.name in matrix.worst
    ]
    n = first.n_parameters
    return (
        metrics[0],
        _ends(first.metrics["accuracy"]),
        *metrics[1:],
        *robust,
        Spread.of(worst).text(3, several=len(worst) > 1) if worst else NONE,
        f"{first.robust.how}{', random' if first.robust.is_random else ''}",
        NONE if n is None else f"{n:,}",
        _mean(runs, lambda run: run.fit_seconds, digits=1),
        _mean(runs, lambda run: run.inference_ms, digits=2),
        _proof(facts, runs),
    )


def _proof(facts: SystemFacts, runs: Sequence[Measured]) -> str:
    """Return the share that is certified and the median radius, means over seeds."""
    shares = [one.robust.certified[0] for one in runs if one.robust.certified is not None]
    if not shares:
        return NONE if facts.proof is None else "yes"
    radii = [
        one.robust.certified_radius_255 or 0.0 for one in runs if one.robust.certified is not None
    ]
    share, radius = (Spread.of(found).text(2, several=len(shares) > 1) for found in (shares, radii))
    return f"{share} to {radius}/255"


def _metric(name: str) -> Callable[[Measured], float]:
    return lambda run: run.metrics[name].estimate


def _left(radius: int) -> Callable[[Measured], float]:
    return lambda run: run.robust.accuracy[radius].estimate


def _mean(runs: Sequence[Measured], of: Callable[[Measured], float], *, digits: int = 3) -> str:
    """Return the mean over seeds, with its deviation where there are several."""
    return Spread.of([of(run) for run in runs]).text(digits, several=len(runs) > 1)


def _ends(interval: Interval) -> str:
    return f"{interval.low:.2f}–{interval.high:.2f}"


def comparison_text(found: Compared) -> str:
    """Return the main tables for a terminal, what failed, and the control with random labels."""
    parts = []
    for split in found.splits:
        header = main_header(found)
        # The words are for the page.
        left_out = {header.index(name) for name in ("bal. acc", "proof")}
        kept = [i for i in range(len(header)) if i not in left_out]
        rows = main_rows(found, split)
        table = [(row.facts.name, *(row.cells[i] for i in kept)) for row in rows if row.cells]
        title = f"{split}: {_counted(found, split)}"
        parts.append(textwrap.fill(title, _WIDTH))
        parts.append(plain_table((_SYSTEM, *(header[i] for i in kept)), table))
        parts += [f"{row.facts.name} failed: {row.failure}" for row in rows if row.failure]
        parts += [textwrap.fill(said, _WIDTH)] if (said := no_better(found, split)) else []
    if len(found.splits) > 1:
        parts.append(textwrap.fill(folds_caption(found), _WIDTH))
        parts.append(plain_table(folds_header(found), folds_rows(found)))
    if found.random_labels:
        parts.append(random_labels_text(found.random_labels))
    return "\n\n".join(parts)


def _counted(found: Compared, split: str) -> str:
    """Say of how many images the figures of a split are."""
    run = next((one for one in found.measured if one.split == split), None)
    if run is None:
        return "nothing was measured"
    drawn = {"patient": "whole patients", "series": "whole slice series", "image": "single images"}
    return (
        f"trained on {run.n_train} images, clean figures of {run.n_test} test images, attacks on"
        f" {run.robust.n} of them; constant answer {run.constant:.3f}; intervals"
        f"{' of the first seed' if _has_seeds(found) else ''} over {drawn[run.clustered_by]}"
    )


def _has_seeds(found: Compared) -> bool:
    """Return whether there is more than one seed, so that figures are means."""
    return len({one.seed for one in found.measured}) > 1


def no_better(found: Compared, split: str) -> str:
    """Name the systems whose answers hardly tell that they have learned; "" if there are none.

    A network that always answers the same keeps its accuracy under every attack.
    """
    names = [
        facts.name
        for facts in found.systems
        if facts.name != "constant"
        and (runs := found.of(facts.name, split))
        and not all(map(_has_learned, runs))
    ]
    if not names:
        return ""
    return (
        "Clean, not clearly better than the constant answer, so that what attacks leave says"
        f" nothing: {', '.join(names)}"
    )


def _has_learned(run: Measured) -> bool:
    return run.metrics["accuracy"].low > run.constant


def folds_header(found: Compared) -> tuple[str, ...]:
    """Return the titles of the table of folds."""
    own = (OWN_SPLIT,) if OWN_SPLIT in found.splits else ()
    return (_SYSTEM, *own, "folds, clean", "lowest–highest", *_radii(found))


def folds_caption(found: Compared) -> str:
    """Say of how many folds, seeds and images the table of folds is."""
    runs = [one for one in found.measured if one.split != OWN_SPLIT]
    folds = {one.split: one for one in runs}
    n_seeds = len({one.seed for one in runs})
    attacked = sum(one.robust.n for one in folds.values())
    constant = float(np.mean([one.constant for one in folds.values()]))
    return (
        f"{len(folds)} folds, {n_seeds} seed{'s' if n_seeds > 1 else ''}: mean ± standard deviation"
        f" over folds, each of which tests once; {sum(one.n_test for one in folds.values())} test"
        f" images in all, of which {attacked} attacked; their most frequent class {constant:.3f}"
    )


def folds_rows(found: Compared) -> list[list[str]]:
    """Return for each system its clean accuracy on the own split and over folds, and attacked."""
    folds = [name for name in found.splits if name != OWN_SPLIT]
    rows = []
    for facts in found.systems:
        own = found.of(facts.name, OWN_SPLIT)
        of_fold = [runs for fold in folds if (runs := found.of(facts.name, fold))]
        if not of_fold:
            continue
        clean = _over_folds(of_fold, _metric("accuracy"))
        attacked = [
            _over_folds(of_fold, _left(i)).text(3) for i in range(1, 1 + len(found.eps_255))
        ]
        worst = {
            (matrix.split, matrix.seed): matrix.worst[facts.name].estimate
            for matrix in found.transfer
            if facts.name in matrix.worst
        }
        known = [
            float(np.mean(of_seeds))
            for runs in of_fold
            if (of_seeds := [worst[at] for r in runs if (at := (r.split, r.seed)) in worst])
        ]
        mine = [_mean(own, _metric("accuracy"))] if own else [NONE]
        is_whole = len(of_fold) == len(folds)
        rows.append(
            [
                facts.name if is_whole else f"{facts.name} ({len(of_fold)} of {len(folds)} folds)",
                *(mine if OWN_SPLIT in found.splits else []),
                clean.text(3),
                f"{clean.low:.3f}–{clean.high:.3f}",
                *attacked,
                Spread.of(known).text(3) if len(known) == len(of_fold) else NONE,
            ]
        )
    return rows


def _over_folds(folds: Sequence[Sequence[Measured]], of: Callable[[Measured], float]) -> Spread:
    """Return how far the seeds' means move over folds."""
    return Spread.of([float(np.mean([of(run) for run in runs])) for runs in folds])


_LABELS_TITLE = "Trained on random labels, which nothing can predict: above chance is leakage."
RANDOM_LABELS_HEADER = (
    _SYSTEM,
    "labels drawn for each",
    "split by",
    "seen in training",
    "accuracy",
    "chance",
    "above chance",
    "95 %",
)


def random_labels_text(found: Sequence[RandomLabels]) -> str:
    """Return the control with random labels for a terminal."""
    table = plain_table(RANDOM_LABELS_HEADER, random_rows(found))
    return f"{_LABELS_TITLE}\n\n{table}\n\n{textwrap.fill(above_chance(found), _WIDTH)}"


def above_chance(found: Sequence[RandomLabels]) -> str:
    """Name the controls that leak, or say what was not looked for; "" where none was run."""
    if not found:
        return ""
    leaking = [
        f"{one.system} ({one.labels_by.replace('_', ' ')}, {one.split_by.replace('_', ' ')})"
        for one in found
        if one.leaks
    ]
    said = "No interval lies above chance"
    if leaking:
        named = "; ".join(leaking)
        said = f"Above chance by the whole interval, as one in forty is by luck: {named}"
    if all(one.labels_by == "image" for one in found):
        said += (
            ". Leakage was not looked for: no patients, series or folds are known, or too few of"
            " them to give each class one, and validation and test"
        )
    return f"{said}."


def random_rows(found: Sequence[RandomLabels]) -> list[list[str]]:
    """Return the rows of the control with random labels."""
    return [
        [
            one.system,
            one.labels_by.replace("_", " "),
            one.split_by.replace("_", " "),
            f"{one.shared:.0%}",
            f"{one.accuracy.estimate:.3f}",
            f"{one.chance:.3f}",
            f"{one.above.estimate:+.3f}",
            f"{one.above.low:+.2f} to {one.above.high:+.2f}",
        ]
        for one in found
    ]


def _tiles(found: Compared) -> list[Tile]:
    """Return the large figures of the first split."""
    if not found.measured:
        return []
    split = found.splits[0]
    seed = found.measured[0].seed
    first = {one.system: one for one in found.measured if (one.split, one.seed) == (split, seed)}
    others = [one for name, one in first.items() if name not in ("constant", "nearest")]
    tiles = []
    if others:
        best = max(others, key=lambda one: one.metrics["accuracy"].estimate)
        share = best.metrics["accuracy"]
        tiles.append(
            Tile(f"{share.estimate:.3f}", f"highest clean, {best.system}", _ends(share), True)
        )
    # Of systems without a gradient too little is known to call one the best.
    worst = {
        name: share
        for matrix in found.transfer
        if (matrix.split, matrix.seed) == (split, seed)
        for name, share in matrix.worst.items()
        if name in first and first[name].robust.how == GRADIENTS and name != "nearest"
        if _has_learned(first[name])
    }
    if worst:
        strong = max(worst, key=lambda name: worst[name].estimate)
        eps = first[strong].robust.eps_255[-1]
        tiles.append(
            Tile(
                f"{worst[strong].estimate:.3f}",
                f"most left at {eps:g}/255 of those with gradients, {strong}",
                _ends(worst[strong]),
            )
        )
    if "nearest" in first:
        share = first["nearest"].metrics["accuracy"]
        tiles.append(Tile(f"{share.estimate:.3f}", "nearest training image", "memory alone"))
    tiles += [Tile(f"{one.constant:.3f}", "constant answer") for one in list(first.values())[:1]]
    return tiles


def _pictures(found: Compared, split: str) -> list[Picture]:
    runs = [run for facts in found.systems for run in found.of(facts.name, split)[:1]]
    if not runs:
        return []
    pictures = [
        Picture.of(
            partial(curves_figure, runs),
            f"accuracy against the radius of the attack, {split}",
            "What attacks on pixels leave of each system, the others in grey; dashed: the constant"
            " answer. Blue: attacked through gradients, orange: by its answers alone; green: proven"
            " by bounds alone.",
        )
    ]
    return pictures + [
        Picture.of(
            partial(transfer_figure, matrix),
            f"transfer of {matrix.attack}, {split}",
            _transfer_caption(matrix),
        )
        for matrix in found.transfer
        if (matrix.split, matrix.seed) == (split, runs[0].seed)
    ]


def _transfer_caption(matrix: Transfer) -> str:
    return (
        f"Accuracy of each column's system on points at {matrix.eps_255:g}/255 that were found"
        f" against each row's ({matrix.attack} attack, {matrix.n} images). On the diagonal it is"
        " its own; points of a system without a gradient move only what Square has broken."
    )


def _all_metrics(found: Compared, split: str) -> list[list[str]]:
    return [
        [
            facts.name,
            *(_mean(runs, _metric(name), digits=4) for name in METRIC_NAMES),
        ]
        for facts in found.systems
        if (runs := found.of(facts.name, split))
    ]


def _breakers(found: Compared, split: str) -> list[list[str]]:
    """Return which attack was the first to break how many images, at the largest radius."""
    rows = []
    for facts in found.systems:
        for run in found.of(facts.name, split)[:1]:
            counts = {name: sum(n) for name, n in run.robust.broken_by.items() if sum(n)}
            said = ", ".join(f"{name} {n}" for name, n in counts.items()) or "none"
            right = round(run.robust.accuracy[0].estimate * run.robust.n)
            rows.append([facts.name, f"{right} of {run.robust.n}", said])
    return rows


@dataclass(frozen=True)
class _SplitSection:
    """What the page shows of one split."""

    name: str
    counted: str
    no_better: str
    rows: list[TableRow]
    pictures: list[Picture]
    metrics: list[list[str]]
    breakers: list[list[str]]


def comparison_page(found: Compared, *, home: str | Path | None = None) -> str:
    """Return the whole comparison as a page that needs nothing else and names `home`."""
    subject, env = found.subject, environment()
    sections = [
        _SplitSection(
            name,
            _counted(found, name),
            no_better(found, name),
            main_rows(found, name),
            _pictures(found, name),
            _all_metrics(found, name),
            _breakers(found, name),
        )
        for name in found.splits
    ]
    section = env.get_template("comparison.html").render(
        found=found,
        tiles=_tiles(found),
        header=main_header(found),
        sections=sections,
        metric_titles=METRIC_TITLES.values(),
        folds_header=folds_header(found),
        folds_caption=folds_caption(found) if len(found.splits) > 1 else "",
        folds_rows=folds_rows(found) if len(found.splits) > 1 else [],
        labels_header=RANDOM_LABELS_HEADER,
        labels_rows=random_rows(found.random_labels),
        labels_said=above_chance(found.random_labels),
        failures=[one for one in found.failed if one.split == RANDOM_LABELS],
        not_said=(*NOT_SAID, _OF_SEVERAL_SEEDS) if _has_seeds(found) else NOT_SAID,
        gradients=GRADIENTS,
    )
    facts: Mapping[str, object] = {
        "Data": subject.source,
        "Classes": ", ".join(subject.label_names),
        "Results": home,
        "Device": subject.device,
        "Threads": subject.threads,
        "Date": subject.date,
        "Version": subject.version,
    }
    page: str = env.get_template("page.html").render(
        title="Systems compared",
        lead=" · ".join(f"{name}: {fact}" for name, fact in facts.items() if fact is not None),
        synthetic=subject.synthetic,
        section=Markup(section),
    )
    return page
