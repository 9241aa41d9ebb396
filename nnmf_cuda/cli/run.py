"""The command `nnmf-cuda run`: its options, the presets it starts from, the runs it asks for."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from nnmf_cuda.cli.evaluate import Evaluate, evaluate
from nnmf_cuda.cli.options import DeviceOption, OptionParser, built, parser_of, say, show
from nnmf_cuda.cli.summary import comparison, outcome_of, run_summary
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.pipeline.config import PRESETS, DataConfig, ExperimentConfig
from nnmf_cuda.pipeline.places import Place, write_text
from nnmf_cuda.pipeline.run_directory import NotWritten, check_free, remove_runs, sweep_below

if TYPE_CHECKING:
    from nnmf_cuda.run.experiment import Experiment
    from nnmf_cuda.run.repeats import Repeat


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOption):
    """Run the whole experiment.

    Features, selection, classifier, denoiser, attack, evaluation: prints a summary, and writes the
    results and a report. Without --data it runs on a built-in synthetic phantom.
    """

    data: str | None = None
    """Class folders, a table (CSV), DICOM, NIfTI, masks beside images, stacks or archives
    (docs/from_your_files.md); default: the synthetic phantom."""
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
    eps_curve: tuple[PositiveFloat, ...] = ()
    """Instead of one run: train and attack a defence at each of these radii, on the same features,
    and draw clean, attacked, proven and ceiling against the radius; as in '[0.02, 0.05, 0.1]'."""
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
    """Return the preset that a file names; None where it names none.

    Raises ValueError for a file that the parser, which reads it after this, does not refuse in
    one line.
    """
    import yaml

    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            # Which may hold themselves, or stand for more than any memory holds.
            raise ValueError(f"--config {path} has an alias (*): write each value where it stands")
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--config {path} is not text in UTF-8 (byte {error.start} is"
            f" 0x{error.object[error.start]:02x}): save it in that encoding"
        ) from error
    except RecursionError as error:
        raise ValueError(f"--config {path} is nested too deep to be settings") from error
    except (OSError, yaml.YAMLError):
        return None
    found = content.get("preset") if isinstance(content, dict) else None
    return None if found is None else str(found)


def _checked(name: str, where: str) -> str:
    if name in PRESETS:
        return name
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{where} {name}: no such preset; {hint}choose one of {', '.join(PRESETS)}")


def run(runs: Sequence[Run], crew: Crew = ALONE) -> None:
    """Run the experiment as often as is asked for, a `Run` a preset, and print what came out.

    The processes of a crew make several runs in turn; a single one is made by rank 0.
    """
    from nnmf_cuda.pipeline.environment import resolve_device

    several = runs[0].options.seeds > 1 or runs[0].options.cross_validate
    one = len(runs) == 1 and not several
    if crew.restarted and not one:
        runs = [_started_again(asked) for asked in runs]
    first, options = runs[0], runs[0].options
    if one and crew.size > 1:
        say(
            f"one run is not divided: rank 0 makes it, and the other {crew.size - 1} wait; several"
            " (--seeds, --cross_validate, several --preset) and evaluate are"
        )
        if not crew.leads:
            return
    if options.eps_curve:
        if len(runs) > 1 or several or options.resume or options.evaluation != "paper":
            raise ValueError(
                "--eps_curve is one run of its own kind: leave out --seeds, --cross_validate,"
                " --resume, --evaluation and all but one --preset"
            )
        _run_curve(first)
        return
    if one:
        if options.resume:
            raise ValueError(
                "--resume is for several runs: give --seeds or --cross_validate, or several"
                " --preset, with it"
            )
        experiment = _run_once(first)
        if options.verbose:
            show(f"{experiment.tables()}\n")
        preset, evaluation = options.preset, options.evaluation
        outcome = outcome_of(first.out)
        show(run_summary(outcome, preset=preset, evaluation=evaluation, home=first.out))
        return
    if len(runs) > 1 and several:
        raise ValueError("--seeds and --cross_validate are for one preset: give --preset once")
    if options.bench_records is not None:
        raise ValueError(
            "--bench_records is for the report of one run: leave out --seeds, --cross_validate and"
            " all but one --preset"
        )
    resolve_device(options.device)
    with ExitStack() as stack:
        if crew.leads:
            stack.enter_context(Place(first.out).held(f"--out {first.out}"))
            sweep_below(first.out)
        crew.gathered(None)
        if len(runs) > 1:
            _run_presets(runs, crew)
        elif options.cross_validate:
            _run_folds(first, crew)
        else:
            _run_seeds(first, crew)


def _started_again(asked: Run) -> Run:
    """Return one of several runs as it goes on after a start that has failed."""
    if asked.options.overwrite:
        return asked
    return Run(replace(asked.options, resume=True), asked.config)


def _run_curve(asked: Run) -> None:
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.run.eps_curve import run_eps_curve

    options = asked.options
    with _told():
        found = run_eps_curve(
            asked.config,
            options.eps_curve,
            out=asked.out,
            config_yaml=asked.config_yaml(),
            preset=options.preset,
            device=resolve_device(options.device),
            overwrite=options.overwrite,
            say=say,
        )
    show(found.text())
    show("\n" + "\n".join(str(asked.out / name) for name in ("curve.json", "curve.svg")))


def _run_once(asked: Run) -> Experiment:
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.run.experiment import run_experiment

    options = asked.options
    with _told():
        return run_experiment(
            asked.config,
            out=asked.out,
            config_yaml=asked.config_yaml(),
            device=resolve_device(options.device),
            overwrite=options.overwrite,
            progress=True,
            say=say,
            bench_records=_bench_records(options.bench_records),
            evaluation=options.evaluation,
        )


def _evaluate(finished: Run) -> None:
    """Evaluate a run that was stopped before the end of its evaluation."""
    from nnmf_cuda.run.experiment import EVALUATIONS

    options = finished.options
    preset = EVALUATIONS[options.evaluation]
    assert preset is not None
    model, data, device = str(finished.out), finished.config.data.path, options.device
    evaluate(Evaluate(model=model, data=data, preset=preset, device=device))


@contextmanager
def _told() -> Iterator[None]:
    """Show what has been found where it could not be written."""
    try:
        yield
    except NotWritten as error:
        show(f"{error.tables}\n")
        raise


def _bench_records(path: str | None) -> list[dict[str, Any]]:
    """Return the stages among the records of a file."""
    if path is None:
        return []
    from nnmf_cuda.benchmarks.records import read_records

    records = [record for record in read_records([path]) if record["suite"] == "stages"]
    if not records:
        raise ValueError(f"--bench_records {path} has no records of bench stages")
    return records


@dataclass(frozen=True)
class Planned:
    """One of several runs, and how it is called on the terminal."""

    name: str
    run: Run


def _run_presets(runs: Sequence[Run], crew: Crew) -> None:
    out, evaluation = runs[0].out, runs[0].options.evaluation
    planned = {
        asked.options.preset: Planned(
            f"preset {asked.options.preset}", asked.repeated(f"preset_{asked.options.preset}")
        )
        for asked in runs
    }
    found = _run_all(out, list(planned.values()), crew, line_each=False)
    if not crew.leads:
        return
    homes = dict(zip(planned, found, strict=True))
    outcomes = {preset: outcome_of(home) for preset, home in homes.items()}
    summary = {preset: asdict(outcome) for preset, outcome in outcomes.items()}
    show(f"\n{comparison(outcomes, evaluation=evaluation, homes=homes)}")
    write_text(out / "summary.json", json.dumps({"presets": summary}, indent=2))


def _run_seeds(asked: Run, crew: Crew) -> None:
    from nnmf_cuda.report.repeats import seeds_table
    from nnmf_cuda.run.repeats import plan_seeds, summarize_seeds

    seeds, data = _seeds(asked), asked.config.data
    repeats = plan_seeds(seeds, data.split_by, data.test_fold)
    homes = _run_all(asked.out, [_planned(asked, repeat) for repeat in repeats], crew)
    if not crew.leads:
        return
    summary = summarize_seeds(dict(zip(seeds, homes, strict=True)))
    show(f"\n{seeds_table(summary)}")
    write_text(asked.out / "summary.json", json.dumps(summary.as_dict(), indent=2))


def _run_folds(asked: Run, crew: Crew) -> None:
    from nnmf_cuda.report.repeats import OWN_SPLIT, FoldsSummary, folds_page, folds_table
    from nnmf_cuda.run.repeats import plan_folds, summarize_seeds

    data, out = asked.config.data, asked.out
    if data.path is None:
        raise ValueError("--cross_validate needs --data: the built-in images have no folds")
    if data.test_fold is not None:
        raise ValueError(
            f"--test_fold {data.test_fold} is one fold, --cross_validate all: leave out one"
        )
    repeats = plan_folds(
        data.path,
        _seeds(asked),
        split_by=data.split_by,
        label_key=data.label_key,
        reading=data,
    )
    homes = _run_all(out, [_planned(asked, repeat) for repeat in repeats], crew)
    if not crew.leads:
        return
    of_split: dict[str, dict[int, Path]] = {}
    for repeat, home in zip(repeats, homes, strict=True):
        of_split.setdefault(repeat.split, {})[repeat.seed] = home
    summary = FoldsSummary(
        {name: summarize_seeds(found) for name, found in of_split.items()},
        split_by=next(repeat.split_by or "" for repeat in repeats if repeat.split != OWN_SPLIT),
        source=data.path,
        preset=asked.options.preset,
    )
    show(f"\n{folds_table(summary)}")
    write_text(out / "summary.html", folds_page(summary, home=out))
    write_text(out / "summary.json", json.dumps(summary.as_dict(), indent=2))
    show(f"\nsummary: {out / 'summary.html'}")


def _seeds(asked: Run) -> range:
    return range(asked.config.seed, asked.config.seed + asked.options.seeds)


def _planned(asked: Run, repeat: Repeat) -> Planned:
    data = replace(asked.config.data, split_by=repeat.split_by, test_fold=repeat.test_fold)
    name = ", ".join(filter(None, (repeat.split, f"seed {repeat.seed}")))
    config = replace(asked.config, seed=repeat.seed, data=data)
    return Planned(name, asked.repeated(repeat.home, config=config))


def _run_all(
    out: Path, planned: Sequence[Planned], crew: Crew, *, line_each: bool = True
) -> list[Path]:
    """Run them all, each in its own directory, and print a line each; returns the directories.

    The processes of a crew make those that are left in turn.
    """
    from nnmf_cuda.run.repeats import check_other_runs, is_finished, result_line

    homes, options = [one.run.out for one in planned], planned[0].run.options

    def states() -> list[tuple[bool, bool]]:
        finished = [False] * len(planned)
        if options.resume:
            check_other_runs(out, homes)
            finished = [is_finished(one.run.out, one.run.config_yaml()) for one in planned]
        else:
            for home in (out, *homes):
                check_free(home, overwrite=options.overwrite)
        both = zip(finished, planned, strict=True)
        return [(there, there and _is_evaluated(one)) for there, one in both]

    def make(number: int) -> None:
        one, (is_there, evaluated) = planned[number], found[number]
        kept = ": finished before" if evaluated else ": to be evaluated"
        say(f"run {number + 1} of {len(planned)}: {one.name}{kept if is_there else ''}")
        if not is_there:
            _run_once(one.run)
        elif not evaluated:
            _evaluate(one.run)

    def show_line(one: Planned) -> None:
        if line_each:
            show(f"{one.name}: {result_line(one.run.out)}")

    found = crew.first(states)
    left = [number for number, (_, evaluated) in enumerate(found) if not evaluated]
    turn = {number: at % crew.size for at, number in enumerate(left)}
    own = [number for number in range(len(planned)) if turn.get(number, 0) == crew.rank]
    for at, number in enumerate(own or [None]):
        if number is not None:
            make(number)
        if at == 0:
            # The first to end have shown that the settings work: only now do older runs go.
            crew.gathered(None)
            if crew.leads:
                remove_runs(out, keep=homes if options.resume else homes[: crew.size])
            crew.gathered(None)
        if number is not None and crew.size == 1:
            show_line(planned[number])
    crew.gathered(None)
    if crew.leads and crew.size > 1:
        for one in planned:
            show_line(one)
    return homes


def _is_evaluated(one: Planned) -> bool:
    """Return whether a finished run has the evaluation that is asked for."""
    return one.run.options.evaluation == "paper" or (one.run.out / "robustness.json").is_file()
