"""The command `nnmf-cuda run`: once, from several seeds, or fold by fold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda._cli_options import add_device, say
from nnmf_cuda.pipeline.config import (
    PRESETS,
    AttackConfig,
    ClassifierConfig,
    DataConfig,
    DefenceConfig,
    DiffusionConfig,
    ExperimentConfig,
    NNMFConfig,
    SelectionConfig,
)

if TYPE_CHECKING:
    from nnmf_cuda.pipeline.repeats import Repeat

__all__ = ["preset_of", "run_command", "run_parser"]

_NOT_CONFIG = (
    "config",
    "out",
    "overwrite",
    "seeds",
    "cross_validate",
    "bench_records",
    "print_config",
)
"""Arguments of `run` that say where results go and what stands beside them: not part of the
experiment."""


def preset_of(argv: Sequence[str]) -> ExperimentConfig:
    """Return the preset that is asked for: the other options start from its values."""
    for given, following in zip(argv, [*argv[1:], ""], strict=True):
        name = following if given == "--preset" else given.removeprefix("--preset=")
        if given.startswith("--preset") and name in PRESETS:
            return PRESETS[name]
    return PRESETS["paper"]


def run_parser(preset: ExperimentConfig) -> ArgumentParser:
    """Return the parser of `run`, whose options start from a preset."""
    parser = ArgumentParser(
        description="Run the whole experiment: features, selection, classifier, denoiser, attack,"
        " evaluation. Prints the metric table and the stage table, and writes the results. Without"
        " --data it runs on a built-in synthetic phantom."
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="an .npz, a COCO export or class folders; default: the synthetic phantom",
    )
    parser.add_argument("--out", type=str, default="nnmf-cuda-run", help="directory of the results")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results in --out",
    )
    parser.add_argument(
        "--preset", type=Literal[tuple(PRESETS)], default="paper", help="named settings"
    )
    parser.add_argument(
        "--evaluation",
        type=Literal["paper", "honest", "thorough"],
        default="paper",
        help="paper: APGD-CE and Square, once on each model; honest: also what evaluate --preset"
        " standard does, pixels included, in minutes; thorough: hours",
    )
    add_device(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="number of runs, from --seed upwards, each in its own seed_K, with a summary",
    )
    parser.add_argument(
        "--cross_validate",
        action="store_true",
        help="run on the data's own split, if it has one, and fold by fold (patient_fold, else"
        " patient, else series; or what --split_by says), with a summary side by side",
    )
    parser.add_argument(
        "--classes",
        type=str | None,
        default=None,
        help='classes in label order, as "2=Normal,1=Tumor"; the last is the positive one',
    )
    parser.add_argument(
        "--label_key", type=str, default="labels", help="array of an .npz with the labels"
    )
    parser.add_argument(
        "--split_by",
        type=Literal["split", "patient_fold", "patient", "series", "random"] | None,
        default=None,
        help="where the split comes from; default: the data's own, else by patient, fold or image",
    )
    parser.add_argument(
        "--test_fold",
        type=int | str | None,
        default=None,
        help="the fold that tests, the next one validates: of --split_by patient_fold, or one of"
        " five, 1 to 5, that are dealt by patient, series or image",
    )
    parser.add_argument(
        "--n_predictions",
        type=int,
        default=20,
        help="fresh predictions over which the defended rows are averaged",
    )
    parser.add_argument(
        "--bench_records",
        type=str | None,
        default=None,
        help="file that bench stages --json has written: its seconds of these images, here and in"
        " plain torch, are plotted in the report",
    )
    for name, kind in _GROUPS.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(preset, name))
    return parser


_GROUPS: dict[str, type] = {
    "nnmf": NNMFConfig,
    "selection": SelectionConfig,
    "classifier": ClassifierConfig,
    "diffusion": DiffusionConfig,
    "defence": DefenceConfig,
    "attack": AttackConfig,
}


def run_command(arguments: Namespace, parser: ArgumentParser) -> None:
    """Run the experiment as often as is asked for."""
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {arguments.seeds}")
    last = arguments.seed + arguments.seeds - 1
    if not 0 <= arguments.seed <= last < 2**32:
        # torch's generator on the CPU reads no more: larger seeds would repeat smaller ones.
        raise ValueError(f"--seed must lie in [0, 2**32), got {arguments.seed} to {last}")
    if arguments.seeds == 1 and not arguments.cross_validate:
        _run_once(arguments, parser)
        return
    if arguments.bench_records is not None:
        raise ValueError(
            "--bench_records is for the report of one run: leave out --seeds and --cross_validate"
        )
    seeds = range(arguments.seed, last + 1)
    if arguments.cross_validate:
        _run_folds(arguments, parser, seeds)
    else:
        _run_seeds(arguments, parser, seeds)


def _run_once(arguments: Namespace, parser: ArgumentParser) -> None:
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.pipeline.experiment import run_experiment

    out = Path(arguments.out)
    experiment = run_experiment(
        _experiment_config(arguments),
        out=out,
        config_yaml=_config_yaml(arguments, parser),
        device=resolve_device(arguments.device),
        overwrite=arguments.overwrite,
        progress=True,
        say=say,
        bench_records=_bench_records(arguments.bench_records),
        evaluation=arguments.evaluation,
    )
    print(experiment.tables())
    print(f"\nresults: {out}\nreport:  {out / 'report.html'}")


def _run_seeds(arguments: Namespace, parser: ArgumentParser, seeds: Sequence[int]) -> None:
    from nnmf_cuda.pipeline.repeats import plan_seeds, summarize_seeds
    from nnmf_cuda.pipeline.run_directory import write_text
    from nnmf_cuda.report.repeats import seeds_table

    repeats = plan_seeds(seeds, arguments.split_by, arguments.test_fold)
    homes = _run_all(arguments, parser, repeats)
    summary = summarize_seeds(dict(zip(seeds, homes, strict=True)))
    write_text(Path(arguments.out) / "summary.json", json.dumps(summary, indent=2))
    print(f"\n{seeds_table(summary)}")


def _run_folds(arguments: Namespace, parser: ArgumentParser, seeds: Sequence[int]) -> None:
    from nnmf_cuda.pipeline.repeats import OWN_SPLIT, plan_folds, summarize_folds, summarize_seeds
    from nnmf_cuda.pipeline.run_directory import write_text
    from nnmf_cuda.report.repeats import folds_page, folds_table

    if arguments.data is None:
        raise ValueError("--cross_validate needs --data: the built-in images have no folds")
    if arguments.test_fold is not None:
        raise ValueError(
            f"--test_fold {arguments.test_fold} is one fold, --cross_validate all: leave out one"
        )
    repeats = plan_folds(
        arguments.data, seeds, split_by=arguments.split_by, label_key=arguments.label_key
    )
    homes = _run_all(arguments, parser, repeats)
    of_split: dict[str, dict[int, Path]] = {}
    for repeat, home in zip(repeats, homes, strict=True):
        of_split.setdefault(repeat.split, {})[repeat.seed] = home
    summary = summarize_folds(
        {name: summarize_seeds(found) for name, found in of_split.items()},
        split_by=next(repeat.split_by or "" for repeat in repeats if repeat.split != OWN_SPLIT),
    )
    out = Path(arguments.out)
    write_text(out / "summary.html", folds_page(summary))
    write_text(out / "summary.json", json.dumps(summary, indent=2))
    print(f"\n{folds_table(summary)}\n\nsummary: {out / 'summary.html'}")


def _run_all(arguments: Namespace, parser: ArgumentParser, repeats: Sequence[Repeat]) -> list[Path]:
    """Run them all, each in its own directory; returns the directories."""
    from nnmf_cuda.pipeline.run_directory import SUMMARIES, check_free

    out = Path(arguments.out)
    homes = [out / repeat.home for repeat in repeats]
    for home in (out, *homes):
        check_free(home, overwrite=arguments.overwrite)
    for name in SUMMARIES:
        (out / name).unlink(missing_ok=True)
    for repeat, home in zip(repeats, homes, strict=True):
        say(", ".join(filter(None, (repeat.split, f"seed {repeat.seed}"))))
        one = arguments.clone()
        one["seed"], one["seeds"], one["cross_validate"] = repeat.seed, 1, False
        one["split_by"], one["test_fold"] = repeat.split_by, repeat.test_fold
        one["out"] = str(home)
        _run_once(one, parser)
    return homes


def _bench_records(path: str | None) -> list[dict[str, Any]]:
    """Return the stages among the records of a file."""
    if path is None:
        return []
    from nnmf_cuda.benchmarks import read_records

    records = [record for record in read_records([path]) if record["suite"] == "stages"]
    if not records:
        raise ValueError(f"--bench_records {path} has no records of bench stages")
    return records


def _experiment_config(arguments: Namespace) -> ExperimentConfig:
    return replace(
        PRESETS[arguments.preset],
        data=DataConfig(
            path=arguments.data,
            classes=arguments.classes,
            label_key=arguments.label_key,
            split_by=arguments.split_by,
            test_fold=arguments.test_fold,
        ),
        seed=arguments.seed,
        n_predictions=arguments.n_predictions,
        **{name: kind(**vars(arguments[name])) for name, kind in _GROUPS.items()},
    )


def _config_yaml(arguments: Namespace, parser: ArgumentParser) -> str:
    kept = arguments.clone()
    for name in _NOT_CONFIG:
        kept.pop(name, None)
    text: str = parser.dump(kept, skip_unset=False, skip_validation=True)
    return text
