"""Figures and tables for the docs, drawn from benchmark records and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.tables import (
    baselines,
    break_even_table,
    equality_table,
    markdown_table,
    problem_name,
    stages_markdown,
    stages_on_gpus_table,
)
from nnmf_cuda.benchmarks.records import Record, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bound_ms", "latest_records", "plot_records", "write_device_tables", "write_parts"]

_SUITES = ("kernels", "scaling", "convergence", "memory", "stages")
_AXIS_TITLES = {
    "n_samples": "samples (n)",
    "n_features": "features (f)",
    "n_components": "components (k)",
    "n_batch": "starts on one X",
    "threads": "threads",
}
_BAR = 0.21  # inches


def plot_records(
    paths: Iterable[str | Path], *, out: str | Path, page: str | Path | None = None
) -> list[Path]:
    """Draw the newest records of one machine.

    ``kernels.svg``: for each problem, how many times as fast as the reference everybody is, with
    a mark where the machine's ceilings lie. ``scaling.svg``: rate along each axis below that of
    matrix products. ``convergence.svg``: seconds to scikit-learn's objective. ``stages.svg``:
    seconds of the experiment's stages, ours and those of plain eager torch. The same records give
    the same files.

    Parameters
    ----------
    paths : iterable of path
        Files of records; older ones of a problem are passed over.
    out : path
        Directory of the figures; made where it is missing.
    page : path, optional
        Markdown file whose figures and tables are replaced; see `write_parts`.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    ValueError
        If there is no record, they are of several machines or damaged (see `read_records`), `out`
        is no directory, or the page has no place for a part. Nothing is then drawn.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the figures need a directory")
    if page is not None:
        _check_page(Path(page), _SUITES)
    records = latest_records(read_records(paths))
    if not records:
        raise ValueError(
            'no benchmark records in these files (those without "suite", of an older layout, are '
            "ignored); write some with --json FILE"
        )
    if not all(r["smoke"] for r in records):  # tiny sizes say nothing beside real ones
        records = [r for r in records if not r["smoke"]]
    machines = sorted({f"{r['device_name']} ({r['device']})" for r in records})
    if len(machines) > 1:
        raise ValueError(f"records of several machines: {', '.join(machines)}; give those of one")
    suites = {suite: [r for r in records if r["suite"] == suite] for suite in _SUITES}
    figures = {
        "kernels": _kernels_figure,
        "scaling": _scaling_figure,
        "convergence": _convergence_figure,
        "stages": _stages_figure,
    }
    drawn = {suite: draw(suites[suite]) for suite, draw in figures.items()}
    saved = {
        suite: _save(figure, folder / f"{suite}.svg")
        for suite, figure in drawn.items()
        if figure is not None
    }
    if page is None:
        return list(saved.values())
    parts = {
        suite: stages_markdown(rows) if suite == "stages" else markdown_table(rows)
        for suite, rows in suites.items()
    }
    for suite, path in saved.items():
        link = Path(os.path.relpath(path, Path(page).parent)).as_posix()
        parts[suite] = f"![{suite}]({link})\n\n{parts[suite]}"
    write_parts(Path(page), parts)
    return [*saved.values(), Path(page)]


def write_device_tables(paths: Iterable[str | Path], *, page: str | Path) -> Path:
    """Write the tables of the newest records into a page, whatever machines they are of.

    Parameters
    ----------
    paths : iterable of path
        Files of records; those of other suites are passed over.
    page : path
        Markdown file with lines ``<!-- equality -->`` and ``<!-- /equality -->``, and such lines
        for ``break_even`` and ``stages``.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ValueError
        If a file is damaged, or the page has no such lines.
    """
    records = [r for r in latest_records(read_records(paths)) if not r["smoke"]]
    parts = {
        "equality": equality_table([r for r in records if r["suite"] == "equality"]),
        "break_even": break_even_table([r for r in records if r["suite"] == "break_even"]),
        "stages": stages_on_gpus_table([r for r in records if r["suite"] == "stages"]),
    }
    write_parts(Path(page), parts)
    return Path(page)


def latest_records(records: Iterable[Record]) -> list[Record]:
    """Keep of each machine and problem the records of the last run that measured it."""
    records = list(records)
    last: dict[tuple[str, ...], str] = {}
    for record in records:
        problem = _problem(record)
        last[problem] = max(last.get(problem, ""), record["run"])
    return [record for record in records if record["run"] == last[_problem(record)]]


def _problem(record: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("suite", "device_name", "op", "size", "dtype", "shape", "options", "smoke")
    return tuple(json.dumps(record[name], sort_keys=True) for name in names)


def write_parts(page: Path, parts: Mapping[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in a Markdown file.

    Raises
    ------
    ValueError
        If the page cannot be read, or has no such place for one of the parts.
    """
    text = _check_page(page, parts)
    for name, part in parts.items():
        literal = part.replace("\\", r"\\")
        text = _place(name).sub(rf"\g<1>{literal}\n\g<2>", text, count=1)
    page.write_text(text, "utf-8")


def _check_page(page: Path, names: Iterable[str]) -> str:
    """Return the text of a page that has a place for each of the parts."""
    try:
        text = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the page {page}: {reason}") from error
    for name in names:
        if _place(name).search(text) is None:
            raise ValueError(f"{page} has no lines '<!-- {name} -->' and '<!-- /{name} -->'")
    return text


def _place(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def _save(figure: Figure, path: Path) -> Path:
    """Write an SVG that depends on the figure alone: no date, no random names, text as text."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "nnmf-cuda", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    # matplotlib ends lines in blanks, which a repository does not want.
    lines = path.read_text("utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), "utf-8")
    return path


def _colour(record: Record) -> str:
    from nnmf_cuda.report.figures import BLUE, GREEN, GREY, VERMILION

    if record["impl"].startswith("ours"):
        return VERMILION
    return {"reference": GREY, "compiled": GREEN}.get(record["served_by"], BLUE)


def _groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records that were measured, by problem."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["status"] == "ok":
            groups.setdefault(problem_name(record), []).append(record)
    return groups


def _kernels_figure(records: Sequence[Record]) -> Figure | None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from nnmf_cuda.report.figures import new_figure

    reference = baselines(records)
    groups = {name: group for name, group in _groups(records).items() if name in reference}
    if not groups:
        return None
    rows = [len(group) for group in groups.values()]
    figure = new_figure(_BAR * (sum(rows) + 3.2 * len(rows)))
    grid = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[n + 1 for n in rows])
    for axes, (name, group) in zip(grid[:, 0], groups.items(), strict=True):
        speeds = [reference[name] / r["median_ms"] for r in group]
        axes.set_xscale("log")
        _bars(axes, group, speeds, [_time(r["median_ms"]) for r in group], start=1)
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold")
        marks = [reference[name] / bound for r in group if (bound := bound_ms(r)) is not None]
        if marks:
            axes.axvline(marks[0], color="black", linewidth=1.2, linestyle=":")
        axes.set_xlim(min(*speeds, *marks, 1) / 2, max(*speeds, *marks, 1) * 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    grid[-1, 0].set_xlabel(
        "times as fast as the reference; dotted: the machine's ceiling for this problem"
    )
    return figure


def _time(ms: float) -> str:
    return f"{ms / 1e3:.3g} s" if ms >= 1e3 else f"{ms:.3g} ms"


def bound_ms(record: Record) -> float | None:
    """Return the time below which the ceilings of matrix products and of reading do not allow."""
    ceilings = record["ceilings"]
    if ceilings is None or (record["flops"] is None and record["bytes"] is None):
        return None
    arithmetic = (record["flops"] or 0.0) / ceilings["gemm_gflops"]
    traffic = (record["bytes"] or 0.0) / ceilings["read_gb_per_s"]
    return float(max(arithmetic, traffic) / 1e6)


def _bars(
    axes: Axes,
    group: Sequence[Record],
    values: Sequence[float],
    texts: Sequence[str],
    *,
    start: float = 0,
) -> None:
    """Draw a bar for each record from `start` to its value."""
    from nnmf_cuda.report.figures import GREY, style

    style(axes)
    places = range(len(group))
    lengths = [value - start for value in values]
    colours = [_colour(r) for r in group]
    bars = axes.barh(places, lengths, left=start, color=colours, height=0.75)
    axes.axvline(start, color=GREY, linewidth=1)
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(places, [r["impl"] for r in group], fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _scaling_figure(records: Sequence[Record]) -> Figure | None:
    from nnmf_cuda.report.figures import GREY, VERMILION, new_figure, style

    along = {axis: _along(records, axis) for axis in _AXIS_TITLES}
    along = {axis: points for axis, points in along.items() if points}
    if not along:
        return None
    figure = new_figure(2.9 * -(-len(along) // 3))
    grid = figure.subplots(-(-len(along) // 3), 3, squeeze=False).ravel()
    for axes in grid[len(along) :]:
        axes.set_visible(False)
    for axes, (axis, points) in zip(grid, along.items(), strict=False):
        values = [value for value, _ in points]
        style(axes, xlabel=_AXIS_TITLES[axis])
        ceiling = [r["ceilings"]["gemm_gflops"] for _, r in points]
        axes.plot(values, ceiling, color=GREY, linestyle=":", marker=".", label="matrix product")
        rate = [r["rates"]["gflops"] for _, r in points]
        axes.plot(values, rate, color=VERMILION, marker="o", markersize=4, label="ours")
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [str(value) for value in values], fontsize=8, rotation=45)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    grid[0].set_ylabel("GFLOP/s")
    grid[0].legend(fontsize=8)
    return figure


def _along(records: Iterable[Record], axis: str) -> list[tuple[int, Any]]:
    """Return the points of an axis: where, and the record."""
    points = [
        (r["threads"] if axis == "threads" else r["shape"][axis], r)
        for r in records
        if r["status"] == "ok" and r["options"]["axis"] == axis
    ]
    return sorted(points, key=lambda point: point[0])


def _convergence_figure(records: Sequence[Record]) -> Figure | None:
    from nnmf_cuda.report.figures import new_figure

    groups = _groups(records)
    if not groups:
        return None
    rows = [len(group) for group in groups.values()]
    figure = new_figure(_BAR * (1.3 * sum(rows) + 4 * len(rows)))
    grid = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[n + 1 for n in rows])
    for axes, (name, group) in zip(grid[:, 0], groups.items(), strict=True):
        seconds = [r["median_ms"] / 1e3 for r in group]
        texts = [
            f"{s:.3g} s, {r['iterations']} iterations" for s, r in zip(seconds, group, strict=True)
        ]
        _bars(axes, group, seconds, texts)
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold")
        axes.set_xlim(0, 1.35 * max(seconds))
    grid[-1, 0].set_xlabel("seconds to the objective of scikit-learn")
    return figure


def _stages_figure(records: Sequence[Record]) -> Figure | None:
    from nnmf_cuda.report.figures import stage_benchmark_figure

    return stage_benchmark_figure(records) if records else None
