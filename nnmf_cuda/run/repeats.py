"""The same experiment from several seeds and on several splits, and how far its figures move."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nnmf_cuda.data import folds_by
from nnmf_cuda.data.reading import DEFAULT_READING, ReadOptions
from nnmf_cuda.data.splits import SplitBy
from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.pipeline.run_directory import RESULTS, read_json, runs_below
from nnmf_cuda.report.repeats import EVALUATED, OWN_SPLIT, SeedsSummary, Spread

_MISSING = object()
_FOLDABLE: tuple[SplitBy, ...] = ("patient_fold", "patient", "series")


@dataclass(frozen=True)
class Repeat:
    """One run of several, and where it goes below the directory of all."""

    home: str
    seed: int
    split: str = ""  # `OWN_SPLIT`, "fold K", or "" where all runs have the same split
    split_by: SplitBy | None = None
    test_fold: int | str | None = None


def plan_seeds(
    seeds: Sequence[int], split_by: SplitBy | None, test_fold: int | str | None
) -> list[Repeat]:
    """Return a run for each seed, all on one split."""
    return [Repeat(f"seed_{seed}", seed, "", split_by, test_fold) for seed in seeds]


def plan_folds(
    path: str,
    seeds: Sequence[int],
    *,
    split_by: SplitBy | None,
    label_key: str = "labels",
    reading: ReadOptions = DEFAULT_READING,
    option: str = "--cross_validate",
) -> list[Repeat]:
    """Return a run for each fold and seed, after one on the source's own split where it has one.

    `split_by` says by what to fold: None is the first of "patient_fold", "patient" and "series"
    that the source has. Raises ValueError, which names the `option` that asked for folds, if the
    source cannot be folded so.
    """
    folds = folds_by(path, label_key=label_key, reading=reading)
    if split_by is None:
        split_by = next((name for name in _FOLDABLE if name in folds), None)
        if split_by is None:
            raise ValueError(
                f"{option} needs to know whose the images are, and {path} names no patient"
                " and no series: give --split_by random for folds image by image"
            )
    if not folds.get(split_by):
        there = " or ".join(name for name in folds if folds[name])
        raise ValueError(
            f"{option}: {path} cannot be folded by {split_by}; give --split_by {there}"
        )
    splits: list[tuple[str, SplitBy, str | None]] = [
        (f"fold {fold}", split_by, fold) for fold in folds[split_by]
    ]
    if "split" in folds:
        splits.insert(0, (OWN_SPLIT, "split", None))
    repeats = []
    for (name, by, fold), seed in product(splits, seeds):
        below = f"/seed_{seed}" if len(seeds) > 1 else ""
        repeats.append(Repeat(name.replace(" ", "_") + below, seed, name, by, fold))
    return repeats


def check_other_runs(out: Path, homes: Collection[Path]) -> None:
    """Raise ValueError if `out` holds a run beside `homes`: a summary would leave it out."""
    others = [home for home in runs_below(out) if home not in homes]
    if any((out / name).exists() for name in RESULTS):
        others.insert(0, out)
    if others:
        raise ValueError(
            f"--resume: {others[0]} holds a run that is none of those asked for: give the --seed,"
            " --seeds, --cross_validate and --split_by of the first time, or another --out"
        )


def is_finished(home: Path, config_yaml: str) -> bool:
    """Return whether a directory holds a whole run of these settings, to be used again.

    Whether it has been evaluated is another matter. Raises ValueError if it holds a whole run of
    other settings.
    """
    config = home / "config.yaml"
    # metrics.json is written last.
    if not ((home / "metrics.json").is_file() and config.is_file()):
        return False
    different = _difference(config.read_text(encoding="utf-8"), config_yaml)
    if different:
        raise ValueError(
            f"--resume: {home} is a finished run with other settings ({different}): give the"
            " settings of the first time, or another --out"
        )
    return True


def _difference(found: str, wanted: str) -> str:
    """Say which settings of two `config.yaml` differ, with both values."""
    import yaml  # type: ignore[import-untyped]

    there, here = (_flat(yaml.safe_load(text)) for text in (found, wanted))
    return ", ".join(
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**there, **here}
        if there.get(name, _MISSING) != here.get(name, _MISSING)
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        below = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if below else {f"{prefix}{name}": value}
    return flat


def result_line(home: Path) -> str:
    """Return what a finished run found, in one line, and where its report is."""
    rows = read_json(home / "metrics.json")["rows"]
    clean, robust = (
        f"{rows[f'{name}_Baseline']['accuracy']:.4f} baseline,"
        f" {rows[f'{name}_Defended']['accuracy']:.4f} defended"
        for name in ("Clean", "Robust")
    )
    evaluated = home / "robustness.json"
    line = ""
    if evaluated.exists():
        line = f"\n  {read_json(evaluated)['line']}"
    return f"accuracy clean {clean}; attacked {robust}; {home / 'report.html'}{line}"


def summarize_seeds(homes: Mapping[int, Path]) -> SeedsSummary:
    """Summarise finished runs, given the directory of each seed's."""
    metrics = [read_json(home / "metrics.json") for home in homes.values()]
    for home, found in zip(homes.values(), metrics, strict=True):
        if missing := set(METRIC_NAMES) - set(found["rows"][ROW_NAMES[0]]):
            raise ValueError(
                f"{home / 'metrics.json'} has no {', '.join(sorted(missing))}: it was run by an"
                " earlier version; run it again with --overwrite"
            )
    images = {read_json(home / "environment.json")["data_sha256"] for home in homes.values()}
    evaluations = [home / "robustness.json" for home in homes.values()]
    robustness, headline = {}, None
    if all(path.exists() for path in evaluations):
        contents = [read_json(path) for path in evaluations]
        for path, found in zip(evaluations, contents, strict=True):
            if missing := EVALUATED.keys() - found.keys():
                raise ValueError(
                    f"{path} has no {', '.join(sorted(missing))}: it was written by an earlier"
                    " version; evaluate it again with --overwrite"
                )
        robustness = {
            name: Spread.of(values)
            for name in EVALUATED
            if None not in (values := [found[name] for found in contents])
        }
        headline = Headline.mean([Headline.from_dict(found) for found in contents])
    return SeedsSummary(
        seeds=tuple(homes),
        one_split=len(images) == 1,
        majority_class_accuracy=metrics[0]["majority_class_accuracy"],
        rows={
            row: {name: Spread.of([m["rows"][row][name] for m in metrics]) for name in METRIC_NAMES}
            for row in ROW_NAMES
        },
        robustness=robustness,
        headline=headline,
    )
