"""The command `nnmf-cuda run`: once, from several seeds, or fold by fold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda.cli.options import add_device, say
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
    from nnmf_cuda.run.experiment import Experiment
import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnmf_cuda.run.repeats import Repeat

__all__ = ["asked_preset", "run_command", "run_parser", "run_repeats"]


_NOT_CONFIG = (
    "config",
    "out",
    "overwrite",
    "resume",
    "seeds",
    "cross_validate",
    "bench_records",
    "print_config",
)
"""Arguments of `run` that say where results go and what stands beside them: not part of the
experiment."""


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
        "--resume",
        action="store_true",
        help="with --seeds or --cross_validate: keep the finished runs in --out that have these"
        " settings, run the others",
    )
    parser.add_argument(
        "--preset", type=Literal[tuple(PRESETS)], default="paper", help="named settings"
    )
    parser.add_argument(
        "--evaluation",
        type=Literal["paper", "honest", "thorough"],
        default="paper",
        help="paper: APGD-CE and Square, once on each model; honest: also what evaluate --preset"
        " standard does, pixels included, in minutes; thorough: several times as long",
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
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume keeps what --overwrite replaces: leave out one of them")
    _experiment_config(arguments)  # refuses what cannot work before anything is read or removed
    if arguments.seeds > 1 or arguments.cross_validate:
        run_repeats(
            arguments,
            run_one=lambda one: _run_once(one, parser),
            config_of=lambda one: _config_yaml(one, parser),
        )
        return
    if arguments.resume:
        raise ValueError("--resume is for several runs: give --seeds or --cross_validate with it")
    experiment = _run_once(arguments, parser)
    out = Path(arguments.out)
    print(experiment.tables())
    print(f"\nresults: {out}\nreport:  {out / 'report.html'}")


def _run_once(arguments: Namespace, parser: ArgumentParser) -> Experiment:
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.run.experiment import run_experiment

    return run_experiment(
        _experiment_config(arguments),
        out=Path(arguments.out),
        config_yaml=_config_yaml(arguments, parser),
        device=resolve_device(arguments.device),
        overwrite=arguments.overwrite,
        progress=True,
        say=say,
        bench_records=_bench_records(arguments.bench_records),
        evaluation=arguments.evaluation,
    )


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


# Which preset `nnmf-cuda run` is to start from: known before its options are read.


def asked_preset(argv: Sequence[str]) -> str:
    """Return the name of the preset whose values the other options start from.

    Parameters
    ----------
    argv : sequence of str
        Arguments of `run`. ``--preset`` counts before what a file of ``--config`` says; the last
        of several counts.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    name = "paper"
    for path in _values_of("--config", argv):
        name = _checked(_preset_in(path) or name, f"{path}: preset")
    for given in _values_of("--preset", argv):
        name = _checked(given, "--preset")
    return name


def _values_of(option: str, argv: Sequence[str]) -> Iterator[str]:
    for given, following in zip(argv, [*argv[1:], None], strict=True):
        if given == option and following is not None:
            yield following
        elif given.startswith(f"{option}="):
            yield given.removeprefix(f"{option}=")


def _preset_in(path: str) -> str | None:
    """Return the preset that a file names; None where it names none or cannot be read.

    What is wrong with the file is for the parser to say, which reads it after this.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    found = content.get("preset") if isinstance(content, dict) else None
    return None if found is None else str(found)


def _checked(name: str, where: str) -> str:
    if name in PRESETS:
        return name
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{where} {name}: no such preset; {hint}choose one of {', '.join(PRESETS)}")


# Several runs of `nnmf-cuda run`: from several seeds, fold by fold, or both.


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
    from nnmf_cuda.run.repeats import plan_folds, plan_seeds

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
    from nnmf_cuda.pipeline.run_directory import check_free, remove_runs
    from nnmf_cuda.run.repeats import check_other_runs, is_finished, result_line

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
    from nnmf_cuda.pipeline.run_directory import write_text
    from nnmf_cuda.report.repeats import seeds_table
    from nnmf_cuda.run.repeats import summarize_seeds

    summary = summarize_seeds(dict(zip(seeds, homes, strict=True)))
    write_text(out / "summary.json", json.dumps(summary.as_dict(), indent=2))
    print(f"\n{seeds_table(summary)}")


def _summarize_folds(
    out: Path, repeats: Sequence[Repeat], homes: Sequence[Path], about: Mapping[str, str]
) -> None:
    from nnmf_cuda.pipeline.run_directory import write_text
    from nnmf_cuda.report.repeats import OWN_SPLIT, FoldsSummary, folds_page, folds_table
    from nnmf_cuda.run.repeats import summarize_seeds

    of_split: dict[str, dict[int, Path]] = {}
    for repeat, home in zip(repeats, homes, strict=True):
        of_split.setdefault(repeat.split, {})[repeat.seed] = home
    summary = FoldsSummary(
        {name: summarize_seeds(found) for name, found in of_split.items()},
        split_by=next(repeat.split_by or "" for repeat in repeats if repeat.split != OWN_SPLIT),
        **about,
    )
    write_text(out / "summary.html", folds_page(summary, home=out))
    write_text(out / "summary.json", json.dumps(summary.as_dict(), indent=2))
    print(f"\n{folds_table(summary)}\n\nsummary: {out / 'summary.html'}")
