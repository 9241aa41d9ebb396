"""The options of `nnmf-cuda run`, the presets they start from, and the runs they ask for."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from nnmf_cuda.cli.options import DeviceOption, OptionParser, built, parser_of
from nnmf_cuda.pipeline.config import PRESETS, DataConfig, ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOption):
    """Run the whole experiment.

    Features, selection, classifier, denoiser, attack, evaluation: prints a summary, and writes the
    results and a report. Without --data it runs on a built-in synthetic phantom.
    """

    data: str | None = None
    """An .npz, a COCO export or class folders; default: the synthetic phantom."""
    out: str = "nnmf-cuda-run"
    """Directory of the results."""
    overwrite: bool = False
    """Replace results in --out."""
    resume: bool = False
    """Of several runs: keep the finished ones in --out that have these settings, run the others."""
    preset: Literal[tuple(PRESETS)] = "paper"  # type: ignore[valid-type]
    """Named settings of features, defence and attack, from which the other options start. Given
    several times, all are run, each in its own preset_NAME, with a table side by side."""
    evaluation: Literal["paper", "quick", "honest", "thorough"] = "paper"
    """How hard the result is attacked, whatever the preset. paper: APGD-CE and Square, once on each
    model; honest: also what evaluate --preset standard does, pixels included, in minutes; quick: a
    first look at the same; thorough: several times as long."""
    seeds: PositiveInt = 1
    """Number of runs, from --seed upwards, each in its own seed_K, with a summary."""
    cross_validate: bool = False
    """Run on the data's own split, if it has one, and fold by fold (patient_fold, else patient,
    else series; or what --split_by says), with a summary side by side."""
    bench_records: str | None = None
    """File that bench stages --json has written: its seconds of these images, here and in plain
    torch, are plotted in the report."""
    verbose: bool = False
    """Print all tables of the report too."""


def run_parser(start: ExperimentConfig) -> OptionParser:
    """Return the parser of `run`, whose options start from these settings."""
    parser = parser_of(RunOptions, "run", reads_config=True)
    parser.add_class_arguments(DataConfig, skip={"path"})
    parser.add_class_arguments(ExperimentConfig, as_group=False, skip={"data"}, default=start)
    return parser


@dataclass(frozen=True)
class Run:
    """One run, or several that differ in seed or split."""

    options: RunOptions
    config: ExperimentConfig

    @property
    def out(self) -> Path:
        """Directory of the results."""
        return Path(self.options.out)

    def config_yaml(self) -> str:
        """Return the settings as `--config` reads them back, for `config.yaml`."""
        import yaml  # type: ignore[import-untyped]

        config: dict[str, Any] = json.loads(json.dumps(asdict(self.config)))  # tuples become lists
        data = config.pop("data")
        if str(data["test_fold"]).isdecimal():  # a fold's name, which --config reads as a number
            data["test_fold"] = int(data["test_fold"])
        options = {name: getattr(self.options, name) for name in ("preset", "evaluation", "device")}
        groups = {name: config.pop(name) for name in list(config) if isinstance(config[name], dict)}
        settings = {"data": data.pop("path"), **options, "seed": config.pop("seed")}
        settings |= data | config | groups
        text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        return text

    def repeated(self, home: str, *, config: ExperimentConfig | None = None) -> Run:
        """Return one of several runs, in a directory below that of all."""
        options = replace(
            self.options,
            out=str(self.out / home),
            # What is left of a run that was stopped while it wrote is no result to keep.
            overwrite=self.options.overwrite or self.options.resume,
        )
        return Run(options, config or self.config)


def run_of(values: Namespace) -> Run:
    """Return what the arguments ask for; raises ValueError where it cannot work."""
    options = built(RunOptions, values)
    last = values.seed + options.seeds - 1
    if not 0 <= values.seed <= last < 2**32:
        # torch's generator on the CPU reads no more: larger seeds would repeat smaller ones.
        raise ValueError(f"--seed must lie in [0, 2**32), got {values.seed} to {last}")
    if options.resume and options.overwrite:
        raise ValueError("--resume keeps what --overwrite replaces: leave out one of them")
    data = built(DataConfig, values, path=options.data)
    return Run(options, built(ExperimentConfig, values, data=data))


def asked_presets(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the presets from which the other options of `run` start.

    What --preset says counts before what a file of --config says; of several files that name a
    preset, the last. Raises ValueError if there is no such preset.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", action="append", default=[])
    first.add_argument("--config", action="append", default=[])
    asked = first.parse_known_args(argv)[0]
    of_files = [
        _checked(name, f"{path}: preset")
        for path in asked.config
        if (name := _preset_in(path)) is not None
    ]
    given = dict.fromkeys(_checked(name, "--preset") for name in asked.preset)
    return tuple(given) or tuple(of_files[-1:]) or ("paper",)


def _preset_in(path: str) -> str | None:
    """Return the preset that a file names; None where it names none or cannot be read.

    What is wrong with the file is for the parser to say, which reads it after this.
    """
    import yaml

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
