"""Several runs of `nnmf-cuda run`: from several seeds, fold by fold, or both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from nnmf_cuda._cli_options import say

if TYPE_CHECKING:
    from nnmf_cuda.pipeline.repeats import Repeat

__all__ = ["run_repeats"]


def run_repeats(
    arguments: Namespace,
    *,
    run_one: Callable[[Namespace], object],
    config_of: Callable[[Namespace], str],
) -> None:
    """Run for every seed and fold that is asked for, and summarise.

    Parameters
    ----------
    arguments : Namespace
        Of `run`.
    run_one : callable
        Makes one run of the arguments that it is given.
    config_of : callable
        Returns what a run of the arguments that it is given writes as `config.yaml`.
    """
    from nnmf_cuda.pipeline.environment import resolve_device

    if arguments.bench_records is not None:
        raise ValueError(
            "--bench_records is for the report of one run: leave out --seeds and --cross_validate"
        )
    resolve_device(arguments.device)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    repeats = _planned(arguments, seeds)
    homes = _run_all(arguments, repeats, run_one, config_of)
    if arguments.cross_validate:
        about = {"source": arguments.data, "preset": arguments.preset}
        _summarize_folds(Path(arguments.out), repeats, homes, about)
    else:
        _summarize_seeds(Path(arguments.out), seeds, homes)


def _planned(arguments: Namespace, seeds: Sequence[int]) -> list[Repeat]:
    from nnmf_cuda.pipeline.repeats import plan_folds, plan_seeds

    if not arguments.cross_validate:
        return plan_seeds(seeds, arguments.split_by, arguments.test_fold)
    if arguments.data is None:
        raise ValueError("--cross_validate needs --data: the built-in images have no folds")
    if arguments.test_fold is not None:
        raise ValueError(
            f"--test_fold {arguments.test_fold} is one fold, --cross_validate all: leave out one"
        )
    return plan_folds(
        arguments.data, seeds, split_by=arguments.split_by, label_key=arguments.label_key
    )


def _run_all(
    arguments: Namespace,
    repeats: Sequence[Repeat],
    run_one: Callable[[Namespace], object],
    config_of: Callable[[Namespace], str],
) -> list[Path]:
    """Run them all, each in its own directory; returns the directories."""
    from nnmf_cuda.pipeline.repeats import check_other_runs, is_finished, result_line
    from nnmf_cuda.pipeline.run_directory import check_free, remove_runs

    out = Path(arguments.out)
    runs = [_arguments_of(arguments, repeat) for repeat in repeats]
    homes = [Path(one.out) for one in runs]
    finished = [False] * len(runs)
    if arguments.resume:
        check_other_runs(out, homes)
        finished = [
            is_finished(home, config_of(one), evaluated=one.evaluation != "paper")
            for home, one in zip(homes, runs, strict=True)
        ]
    else:
        for home in (out, *homes):
            check_free(home, overwrite=arguments.overwrite)
    for number, (one, repeat, home) in enumerate(zip(runs, repeats, homes, strict=True)):
        name = ", ".join(filter(None, (repeat.split, f"seed {repeat.seed}")))
        kept = ": finished before" if finished[number] else ""
        say(f"run {number + 1} of {len(runs)}: {name}{kept}")
        if not finished[number]:
            run_one(one)
        # The first to end has shown that the settings work: only now do older runs go.
        if number == 0:
            remove_runs(out, keep=homes if arguments.resume else homes[:1])
        print(f"{name}: {result_line(home)}", flush=True)
    return homes


def _arguments_of(arguments: Namespace, repeat: Repeat) -> Namespace:
    """Return the arguments of one run of several."""
    one = arguments.clone()
    one["seed"], one["seeds"], one["cross_validate"] = repeat.seed, 1, False
    one["split_by"], one["test_fold"] = repeat.split_by, repeat.test_fold
    one["out"] = str(Path(arguments.out) / repeat.home)
    # What is left of a run that was stopped while it wrote is no result to keep.
    one["overwrite"] = arguments.overwrite or arguments.resume
    return one


def _summarize_seeds(out: Path, seeds: Sequence[int], homes: Sequence[Path]) -> None:
    from nnmf_cuda.pipeline.repeats import summarize_seeds
    from nnmf_cuda.pipeline.run_directory import write_text
    from nnmf_cuda.report.repeats import seeds_table

    summary = summarize_seeds(dict(zip(seeds, homes, strict=True)))
    write_text(out / "summary.json", json.dumps(summary, indent=2))
    print(f"\n{seeds_table(summary)}")


def _summarize_folds(
    out: Path, repeats: Sequence[Repeat], homes: Sequence[Path], about: Mapping[str, str]
) -> None:
    from nnmf_cuda.pipeline.repeats import OWN_SPLIT, summarize_folds, summarize_seeds
    from nnmf_cuda.pipeline.run_directory import write_text
    from nnmf_cuda.report.repeats import folds_page, folds_table

    of_split: dict[str, dict[int, Path]] = {}
    for repeat, home in zip(repeats, homes, strict=True):
        of_split.setdefault(repeat.split, {})[repeat.seed] = home
    summary = summarize_folds(
        {name: summarize_seeds(found) for name, found in of_split.items()},
        split_by=next(repeat.split_by or "" for repeat in repeats if repeat.split != OWN_SPLIT),
    )
    summary["about"] = dict(about)
    write_text(out / "summary.html", folds_page(summary, home=out))
    write_text(out / "summary.json", json.dumps(summary, indent=2))
    print(f"\n{folds_table(summary)}\n\nsummary: {out / 'summary.html'}")
