"""The command `nnmf-cuda run`: once, from several seeds, or fold by fold."""

from __future__ import annotations

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
    from nnmf_cuda.pipeline.experiment import Experiment

__all__ = ["run_command", "run_parser"]

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
        from nnmf_cuda._cli_repeats import run_repeats

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
    from nnmf_cuda.pipeline.experiment import run_experiment

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
